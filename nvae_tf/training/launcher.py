"""Signals that stop a training, and its worker processes on this machine; imports neither NumPy nor TensorFlow."""

import contextlib
import ctypes
import dataclasses
import itertools
import json
import math
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from nvae_tf.errors import INTERRUPTED_CODE, USER_ERROR_CODE

# NVIDIA's driver keeps one entry per GPU here.
GPUS_OF_DRIVER = pathlib.Path("/proc/driver/nvidia/gpus")
# Ctrl-C, the end that systems ask for, and a closed terminal.
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED_CODES = (INTERRUPTED_CODE, 128 + signal.SIGTERM)
_LOG_HEADING = "--- started "
_LAST_LINES = 20  # lines of a log that are shown after a crash
_PR_SET_PDEATHSIG = 1  # of Linux's prctl


class StopRequested(Exception):
    """Raised by `StopRequest.check`, to leave an evaluation or the drawing of samples in the middle."""


@contextlib.contextmanager
def _signals_handled(handler: Callable[[int, object], object]) -> Iterator[None]:
    """Calls a handler for the stopping signals that come within its block."""
    # `nohup` ignores the closing of the terminal.
    heeded = [number for number in STOPPING_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heeded}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class StopRequest(contextlib.ExitStack):
    """Inside its `with` block the first signal only requests a stop; a second Ctrl-C ends the process at once."""

    def __init__(self):
        super().__init__()
        self.signal_number: int | None = None  # the signal that has come

    def check(self) -> None:
        """Raises StopRequested if a signal has come."""
        if self.signal_number is not None:
            raise StopRequested

    def __enter__(self) -> "StopRequest":
        # Python lets the main thread alone set handlers; a run in another thread is stopped by its owner.
        if threading.current_thread() is threading.main_thread():
            self.enter_context(_signals_handled(self._remember))
        return self

    def _remember(self, number: int, _: object) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number
        # The terminal may be gone: closing it sends SIGHUP. Or the signal came while a line is written.
        with contextlib.suppress(OSError, RuntimeError):
            print("\nStopping soon, with a checkpoint ...", flush=True)


def tf_configs(processes: int) -> list[str]:
    """`TF_CONFIG` of each worker; each has a port on this machine that was free a moment ago."""
    with contextlib.ExitStack() as held:
        # All ports are held at the same time, so that no two are the same.
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(processes)]
        workers = [f"127.0.0.1:{server.getsockname()[1]}" for server in sockets]
    tasks = [{"type": "worker", "index": index} for index in range(processes)]
    return [json.dumps({"cluster": {"worker": workers}, "task": task}) for task in tasks]


def gpus_of_processes(processes: int, gpus_per_process: int) -> list[str] | None:
    """`CUDA_VISIBLE_DEVICES` of each process: a slice of this process's, or of 0, 1, 2 ...; None for 0 per process."""
    if not gpus_per_process:
        return None
    wanted, visible = processes * gpus_per_process, os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        # Without the driver's folder their number is unknown.
        count = len(list(GPUS_OF_DRIVER.glob("*"))) if GPUS_OF_DRIVER.is_dir() else wanted
        names, where = [str(index) for index in range(count)], "the machine's driver knows"
    else:
        # CUDA ignores everything from the first negative number on.
        names = itertools.takewhile(lambda name: not name.startswith("-"), visible.replace(" ", "").split(","))
        names, where = list(filter(None, names)), f"CUDA_VISIBLE_DEVICES={visible} has"
    if len(names) < wanted:
        flags = f"--processes={processes} --gpus_per_process={gpus_per_process}"
        raise ValueError(f"{flags}: takes {wanted} GPUs, {where} {len(names)}")
    return [",".join(names[first : first + gpus_per_process]) for first in range(0, wanted, gpus_per_process)]


@dataclasses.dataclass(frozen=True)
class WorkerPlan:
    """The worker processes to start, and how they end."""

    command: Sequence[str]  # the command line of every worker
    processes: int
    gpus: list[str] | None  # see `gpus_of_processes`
    log_folder: pathlib.Path  # for the output of all workers but the first, whose output is this process's
    grace_seconds: float  # the time that workers may take to stop; then they are killed
    restarts: int = 0  # the number of times that all workers start again after a crash
    patience_seconds: float = 3.0  # after a failure: others that fail too, or notice the lost peer, end by themselves

    def log(self, index: int) -> pathlib.Path | None:
        """The file that a worker's output is appended to."""
        return self.log_folder / f"worker-{index}.log" if index else None


def run_workers(plan: WorkerPlan, report: Callable[[str], None]) -> int:
    """Starts the workers, passes signals on and waits for their end; `nvae-launch` has the rules and the exit codes.

    OSError: a process or the log folder can't be made.
    """
    signals: list[int] = []
    with _signals_handled(lambda number, _: signals.append(number)):
        for attempt in range(plan.restarts + 1):
            if attempt:
                report(f"restart {attempt} of {plan.restarts}: all workers start again, from the latest checkpoint.")
            exit_code = _run_once(plan, signals, report)
            if exit_code in (0, USER_ERROR_CODE, *STOPPED_CODES) or signals:
                break
        return exit_code


def _run_once(plan: WorkerPlan, signals: list[int], report: Callable[[str], None]) -> int:
    """Runs the workers until all have ended; returns the exit code of the first that failed, or 0."""
    workers: list[subprocess.Popen] = []
    try:
        # New ports at every start: the old ones may be taken by now.
        for index, tf_config in enumerate(tf_configs(plan.processes)):
            workers.append(_start(plan, index, tf_config))
        failed = _wait(plan, workers, signals, report)
    finally:
        # A worker still runs only after an error of this process. What it has started belongs to its session.
        for worker in workers:
            _send(worker, signal.SIGKILL)
            worker.wait()
    if failed is None:
        return 0
    exit_code = failed.returncode if failed.returncode >= 0 else 128 - failed.returncode
    if not (signals and exit_code in STOPPED_CODES):
        # The output of worker 0 has been seen: where it ended in the same way, its end says enough.
        shown = workers[0] if workers[0].returncode == failed.returncode > 0 else failed
        report(_ending(plan, workers.index(shown), shown))
    return exit_code


def _start(plan: WorkerPlan, index: int, tf_config: str) -> subprocess.Popen:
    """Starts a worker in a session of its own: Ctrl-C reaches it through the launcher alone, not twice."""
    environment = os.environ | {"TF_CONFIG": tf_config}
    if plan.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = plan.gpus[index]
    with contextlib.ExitStack() as opened:
        file = None
        if log := plan.log(index):
            log.parent.mkdir(parents=True, exist_ok=True)
            file = opened.enter_context(log.open("ab"))
            file.write(f"{_LOG_HEADING}{time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
            file.flush()
        settings = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file, "preexec_fn": _end_with_launcher}
        return subprocess.Popen(plan.command, env=environment, start_new_session=True, **settings)


def _end_with_launcher() -> None:
    """Asks Linux to send SIGTERM to this process when the launcher is gone, even if that was killed."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait(
    plan: WorkerPlan, workers: list[subprocess.Popen], signals: list[int], report: Callable[[str], None]
) -> subprocess.Popen | None:
    """Waits until all workers have ended; returns the first that failed. One that fails ends the others."""
    failed, is_stopping, num_passed_on, deadline = None, False, 0, math.inf
    while running := [worker for worker in workers if worker.poll() is None]:
        time.sleep(0.02)
        if failed is None and (failed := next((worker for worker in workers if worker.poll()), None)):
            deadline = time.monotonic() + (plan.grace_seconds if is_stopping else plan.patience_seconds)
        to_send = None
        for number in signals[num_passed_on:]:
            num_passed_on, is_stopping = num_passed_on + 1, True
            is_third_interrupt = signals[:num_passed_on].count(signal.SIGINT) >= 3
            to_send = signal.SIGKILL if is_third_interrupt else signal.SIGTERM if number == signal.SIGHUP else number
        if to_send is None and time.monotonic() > deadline:
            names = ", ".join(str(workers.index(worker)) for worker in running)
            if is_stopping:
                report(f"not ended within {plan.grace_seconds:g} s and killed: worker {names}.")
            else:
                report(f"the others would wait for worker {workers.index(failed)}, and are stopped: worker {names}.")
            to_send = signal.SIGKILL if is_stopping else signal.SIGTERM
            is_stopping, deadline = True, time.monotonic() + plan.grace_seconds
        if to_send is not None:
            for worker in running:
                _send(worker, to_send)
    return failed


def _send(worker: subprocess.Popen, number: int) -> None:
    """Sends a signal; SIGKILL also to what the worker has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if number == signal.SIGKILL:
            os.killpg(worker.pid, number)
        else:
            worker.send_signal(number)


def _ending(plan: WorkerPlan, index: int, worker: subprocess.Popen) -> str:
    """How a worker ended, and the last lines of its log since its start."""
    if worker.returncode < 0:
        hint = " (by the system, if memory has run out)" if worker.returncode == -signal.SIGKILL else ""
        text = f"worker {index} was killed by {signal.Signals(-worker.returncode).name}{hint}"
    else:
        text = f"worker {index} ended with exit code {worker.returncode}"
    if (log := plan.log(index)) is None:
        return f"{text}."
    try:
        lines = log.read_text(errors="replace").rpartition(_LOG_HEADING)[2].splitlines()[1:][-_LAST_LINES:]
    except OSError:
        return f"{text}; its output was in {log}, which can't be read."
    return "\n    ".join([f"{text}; the end of {log}:", *lines])
