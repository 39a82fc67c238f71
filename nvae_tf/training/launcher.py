"""Signals that stop a training, and its worker processes on this machine; imports neither NumPy nor TensorFlow."""

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

GPUS_OF_DRIVER = pathlib.Path("/proc/driver/nvidia/gpus")  # NVIDIA's driver keeps one entry per GPU here
# Ctrl-C, the end that systems ask for, and a closed terminal.
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOPPED_CODES = tuple(128 + number for number in STOPPING_SIGNALS)
_LAST_LINES = 20  # lines of a log that are shown after a crash
_SECONDS_BETWEEN_LOOKS = 0.02
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

    signal_number: int | None = None  # the signal that has come

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


def gpus_of_processes(processes: int, gpus_per_process: int) -> list[dict[str, str]]:
    """The environment variable that gives each process its GPUs, a slice of this process's, or of 0, 1, 2 ...

    ValueError: the variable, or the machine's driver, has fewer GPUs.
    """
    wanted, visible = processes * gpus_per_process, os.environ.get("CUDA_VISIBLE_DEVICES")
    if not wanted:
        return [{}] * processes
    # Without the driver's folder their number is unknown.
    count = len(list(GPUS_OF_DRIVER.glob("*"))) if GPUS_OF_DRIVER.is_dir() else wanted
    names = map(str, range(count)) if visible is None else visible.split(",")
    names = [name.strip() for name in names if name.strip()]
    if len(names) < wanted:
        flags = f"--processes={processes} --gpus_per_process={gpus_per_process}"
        raise ValueError(f"{flags}: takes {wanted} GPUs, there are {len(names)} (CUDA_VISIBLE_DEVICES={visible})")
    slices = (names[first : first + gpus_per_process] for first in range(0, wanted, gpus_per_process))
    return [{"CUDA_VISIBLE_DEVICES": ",".join(own)} for own in slices]


def run_workers(
    command: Sequence[str],
    gpus: Sequence[Mapping[str, str]],
    log_folder: pathlib.Path,
    grace_seconds: float,
    report: Callable[[str], None],
) -> int:
    """Starts a worker for each of `gpus`, passes signals on, stops all when one fails; returns its exit code, or 0.

    Worker N writes to `worker-N.log`, worker 0 where this process does. Workers that still run `grace_seconds` after
    one has failed are killed. OSError: no log can be made.
    """
    workers, signals = [], []

    def pass_on(number: int, _: object) -> None:
        signals.append(number)
        _send(workers, signal.SIGKILL if signals.count(signal.SIGINT) >= 3 else number)

    logs = [None, *(log_folder / f"worker-{index}.log" for index in range(1, len(gpus)))]
    with _signals_handled(pass_on):
        try:
            for log, tf_config, variables in zip(logs, tf_configs(len(gpus)), gpus, strict=True):
                workers.append(_start(command, os.environ | variables | {"TF_CONFIG": tf_config}, log))
                for number in signals:  # those that came before
                    _send(workers[-1:], number)
            while None in (codes := [worker.poll() for worker in workers]) and not any(codes):
                time.sleep(_SECONDS_BETWEEN_LOOKS)
            failed = next((index for index, code in enumerate(codes) if code), 0)
            if not signals:
                _send(workers, signal.SIGTERM)
            deadline = time.monotonic() + grace_seconds
            while late := [str(index) for index, worker in enumerate(workers) if worker.poll() is None]:
                if time.monotonic() > deadline:
                    report(f"worker {', '.join(late)} did not end within {grace_seconds:g} s, and is killed")
                    break
                time.sleep(_SECONDS_BETWEEN_LOOKS)
        finally:
            _send(workers, signal.SIGKILL)
            codes = [worker.wait() for worker in workers]
    code = codes[failed] if codes[failed] >= 0 else 128 - codes[failed]
    if code and not (signals and code in STOPPED_CODES):
        end = logs[failed].read_text(errors="replace").splitlines()[-_LAST_LINES:] if failed else ()
        ended = f"worker {failed} ended with exit code {code}"
        report("\n    ".join([f"{ended}; its last lines:" if end else f"{ended}.", *end]))
    return code


def _start(command: Sequence[str], environment: dict[str, str], log: pathlib.Path | None) -> subprocess.Popen:
    """Starts a worker in a session of its own: Ctrl-C reaches it through the launcher alone, not twice."""
    output = None
    if log:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab", buffering=0)
        output.write(f"--- started {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
    settings = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output, "preexec_fn": _end_with_launcher}
    with output or contextlib.nullcontext():
        return subprocess.Popen(command, env=environment, start_new_session=True, **settings)


def _end_with_launcher() -> None:
    """Asks Linux to send SIGTERM to this process when the launcher is gone, even if that was killed."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _send(workers: Sequence[subprocess.Popen], number: int) -> None:
    """Sends a signal; SIGKILL also to what the workers have started."""
    for worker in workers:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if number == signal.SIGKILL:
                os.killpg(worker.pid, number)
            else:
                worker.send_signal(number)
