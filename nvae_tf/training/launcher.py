"""Signals that stop a training, and its worker processes on this machine; imports neither NumPy nor TensorFlow."""

import contextlib
import dataclasses
import itertools
import json
import math
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence

import psutil

from nvae_tf.config import check
from nvae_tf.errors import INTERRUPTED_CODE, USER_ERROR_CODE

TF_CONFIG = "TF_CONFIG"
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
# NVIDIA's driver keeps one entry per GPU here.
GPUS_OF_DRIVER = pathlib.Path("/proc/driver/nvidia/gpus")
# Ctrl-C, the end that systems ask for, and a closed terminal.
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED_CODES = (INTERRUPTED_CODE, 128 + signal.SIGTERM)
# Of a log, shown after a crash.
_LAST_LINES, _LAST_BYTES = 20, 2**16


class StopRequested(Exception):
    """Raised by `StopRequest.check`, to leave an evaluation or the drawing of samples in the middle."""


class StopRequest:
    """Inside its `with` block the first signal only requests a stop; a second Ctrl-C ends the process at once."""

    def __init__(self):
        self.signal_number: int | None = None  # that has come
        self._handlers_before: dict[int, object] = {}

    def check(self) -> None:
        """Raises StopRequested if a signal has come."""
        if self.signal_number is not None:
            raise StopRequested

    def __enter__(self) -> "StopRequest":
        # Python lets the main thread alone set handlers; a run in another thread is stopped by its owner.
        if threading.current_thread() is threading.main_thread():
            # `nohup` ignores the closing of the terminal.
            heeded = [number for number in STOPPING_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._handlers_before = {number: signal.signal(number, self._remember) for number in heeded}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

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
        # All are held at the same time, so that no two are the same.
        sockets = [held.enter_context(socket.socket()) for _ in range(processes)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        workers = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    tasks = [{"type": "worker", "index": index} for index in range(processes)]
    return [json.dumps({"cluster": {"worker": workers}, "task": task}) for task in tasks]


def gpus_of_processes(processes: int, gpus_per_process: int) -> list[str] | None:
    """`CUDA_VISIBLE_DEVICES` of each process: a slice of this process's, or of 0, 1, 2 ...; None for 0 per process."""
    if not gpus_per_process:
        return None
    wanted, visible = processes * gpus_per_process, os.environ.get(VISIBLE_GPUS)
    if visible is None:
        # Without the driver's folder their number is unknown.
        count = len(list(GPUS_OF_DRIVER.glob("*"))) if GPUS_OF_DRIVER.is_dir() else wanted
        names, where = [str(index) for index in range(count)], "the machine's driver knows"
    else:
        # CUDA ignores everything from the first negative number on.
        names = itertools.takewhile(lambda name: not name.startswith("-"), visible.replace(" ", "").split(","))
        names, where = list(filter(None, names)), f"{VISIBLE_GPUS}={visible} has"
    flags = f"--processes={processes} --gpus_per_process={gpus_per_process}"
    check(len(names) >= wanted, f"{flags}: takes {wanted} GPUs, {where} {len(names)}")
    return [",".join(names[first : first + gpus_per_process]) for first in range(0, wanted, gpus_per_process)]


@dataclasses.dataclass(frozen=True)
class WorkerPlan:
    """What is started, and how it ends."""

    command: Sequence[str]  # of every worker
    processes: int
    gpus: list[str] | None  # see `gpus_of_processes`
    log_folder: pathlib.Path  # gets the output of all workers but the first, whose output is this process's
    grace_seconds: float  # that workers may take to stop once another has ended; then they are killed
    restarts: int = 0  # of all workers after a crash
    patience_seconds: float = 3.0  # after a failure: others that fail too, or notice the lost peer, end by themselves


def run_workers(plan: WorkerPlan, report: Callable[[str], None]) -> int:
    """Starts the workers, passes signals on and waits for their end; `nvae-launch` has the rules and the exit codes.

    OSError: a process or the log folder can't be made.
    """
    signals: list[int] = []
    # nohup ignores SIGHUP, and so must we.
    numbers = STOPPING_SIGNALS[: 2 if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else 3]
    handlers = {number: signal.signal(number, lambda number, _: signals.append(number)) for number in numbers}
    command = [sys.executable, "-m", __name__, str(plan.grace_seconds)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "bufsize": 0}
    try:
        # It stops the workers if this process is killed.
        with subprocess.Popen(command, start_new_session=True, **pipes) as watchdog:
            for attempt in range(plan.restarts + 1):
                if attempt:
                    again = "all workers start again, from the latest checkpoint."
                    report(f"restart {attempt} of {plan.restarts}: {again}")
                exit_code = _Workers(plan, watchdog, signals, report).run()
                if exit_code in (0, USER_ERROR_CODE, *STOPPED_CODES) or signals:
                    break
        return exit_code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Worker:
    """A process in a session of its own: a terminal's Ctrl-C reaches it through the launcher alone, not twice."""

    def __init__(self, index: int, plan: WorkerPlan, tf_config: str):
        self.index, self.is_killed, self._log = index, False, plan.log_folder / f"worker-{index}.log" if index else None
        with contextlib.ExitStack() as opened:
            file = None
            if self._log:
                plan.log_folder.mkdir(parents=True, exist_ok=True)
                file = opened.enter_context(self._log.open("ab"))
                file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}  {shlex.join(plan.command)}\n".encode())
                file.flush()
                self._log_start = file.tell()
            environment = os.environ | {TF_CONFIG: tf_config} | ({VISIBLE_GPUS: plan.gpus[index]} if plan.gpus else {})
            streams = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": file}
            self.process = subprocess.Popen(plan.command, env=environment, start_new_session=True, **streams)

    @property
    def exit_code(self) -> int:
        code = self.process.returncode
        return code if code >= 0 else 128 - code

    def kill(self) -> None:
        """Kills it, with all that it has started."""
        self.is_killed = True
        _kill_group(self.process.pid)

    def ending(self) -> str:
        number = -self.process.returncode
        if number <= 0:
            return f"worker {self.index} ended with exit code {-number}"
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        hint = " (by the system, if memory has run out)" if number == signal.SIGKILL and not self.is_killed else ""
        return f"worker {self.index} was killed by {name}{hint}"

    def ending_with_log(self) -> str:
        """How it ended, and the last lines of its output since its start, unless they have been shown."""
        if self._log is None:
            return f"{self.ending()}."
        try:
            with self._log.open("rb") as file:
                file.seek(max(self._log_start, self._log.stat().st_size - _LAST_BYTES))
                lines = file.read().decode(errors="replace").splitlines()[-_LAST_LINES:]
        except OSError:
            return f"{self.ending()}; its output was in {self._log}, which can't be read."
        return "\n    ".join([f"{self.ending()}; the end of {self._log}:", *lines])


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


class _Workers:
    """The workers of one start, until all have ended."""

    def __init__(self, plan: WorkerPlan, watchdog: subprocess.Popen, signals: list[int], report: Callable[[str], None]):
        self._plan, self._watchdog, self._signals, self._report = plan, watchdog, signals, report
        self._running: list[_Worker] = []
        self._ended: list[_Worker] = []
        self._failed: _Worker | None = None  # the first
        self._is_failure_reported = self._are_stopping = False
        self._num_passed_on, self._deadline = 0, math.inf

    def run(self) -> int:
        try:
            # Anew at every start: ports may be taken meanwhile.
            for index, tf_config in enumerate(tf_configs(self._plan.processes)):
                self._running.append(_Worker(index, self._plan, tf_config))
                # Without its watchdog, which somebody has killed, the training goes on.
                with contextlib.suppress(BrokenPipeError):
                    self._watchdog.stdin.write(f"{self._running[-1].process.pid}\n".encode())
            while self._running:
                time.sleep(0.02)
                self._look()
        finally:
            # Not empty after an error of this process.
            for worker in self._running:
                worker.kill()
                worker.process.wait()
        if self._failed is None:
            return 0
        self._report_failure()
        known = {0, self._failed.exit_code, *STOPPED_CODES}
        for worker in self._ended:
            if worker.exit_code not in known and not worker.is_killed:
                self._report(f"after that {worker.ending()}.")
        return self._failed.exit_code

    def _look(self) -> None:
        """Notes which workers have ended, passes on signals that have come, and acts at the deadline."""
        for worker in [each for each in self._running if each.process.poll() is not None]:
            self._running.remove(worker)
            self._ended.append(worker)
            if worker.exit_code and self._failed is None:
                self._failed = worker
                seconds = self._plan.grace_seconds if self._are_stopping else self._plan.patience_seconds
                self._deadline = time.monotonic() + seconds
        for number in self._signals[self._num_passed_on :]:
            self._num_passed_on += 1
            must_die = self._signals[: self._num_passed_on].count(signal.SIGINT) >= 3
            number = signal.SIGKILL if must_die else signal.SIGTERM if number == signal.SIGHUP else number
            self._stop(number, self._plan.grace_seconds if self._failed else math.inf)
        if self._running and time.monotonic() > self._deadline:
            self._report_failure()
            names = ", ".join(str(worker.index) for worker in self._running)
            if self._are_stopping:
                self._report(f"not ended within {self._plan.grace_seconds:g} s and killed: worker {names}.")
                self._stop(signal.SIGKILL, math.inf)
            else:
                self._report(f"the others would wait for it and are stopped: worker {names}.")
                self._stop(signal.SIGTERM, self._plan.grace_seconds)

    def _stop(self, number: int, wait_seconds: float) -> None:
        self._are_stopping, self._deadline = True, time.monotonic() + wait_seconds
        for worker in self._running:
            worker.kill() if number == signal.SIGKILL else worker.process.send_signal(number)

    def _report_failure(self) -> None:
        """Once: which worker failed first, and how. What the user has asked for is no failure."""
        first = self._failed
        if not self._is_failure_reported and not (self._signals and first.exit_code in STOPPED_CODES):
            # All have reported the same mistake; the output of worker 0 has been seen.
            same = [worker for worker in self._ended if worker.index == 0 and worker.exit_code == first.exit_code]
            self._report((same or [first])[0].ending_with_log())
        self._is_failure_reported = True


def _stop_orphans(grace_seconds: float) -> None:
    """The watchdog process: when its launcher is gone, even by SIGKILL, stops the workers that are left."""
    workers = []
    # The launcher writes their process ids to this pipe, which ends with the launcher.
    for line in sys.stdin:
        with contextlib.suppress(psutil.NoSuchProcess):
            workers.append(psutil.Process(int(line)))
    workers = [worker for worker in workers if worker.is_running()]
    if workers:
        with contextlib.suppress(OSError):
            print("nvae-launch is gone; its workers are stopped.", file=sys.stderr, flush=True)
    for worker in workers:
        with contextlib.suppress(psutil.Error):
            worker.terminate()
    for worker in psutil.wait_procs(workers, timeout=grace_seconds)[1]:
        _kill_group(worker.pid)


if __name__ == "__main__":
    _stop_orphans(float(sys.argv[1]))
