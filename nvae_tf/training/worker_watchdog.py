"""A process that ends the workers of a launcher that is gone without having done so itself."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

_SECONDS_BETWEEN_LOOKS = 0.1


class Watchdog:
    """Inside its `with` block a small process reads from a pipe which workers there are.

    When this process is gone, killed with SIGKILL even, the pipe is closed: workers that are still known then get
    SIGTERM, and SIGKILL if they are there `grace_seconds` later. A process of its own does this, not the workers,
    because they run any command, and not the kernel (PR_SET_PDEATHSIG), which has one signal only, on Linux only.
    """

    def __init__(self, grace_seconds: float):
        self._grace_seconds = grace_seconds
        self._process: subprocess.Popen | None = None

    def watch(self, worker: int) -> None:
        """From now on there is this worker, the leader of its own process group."""
        self._write(f"+{worker}\n")

    def forget(self, worker: int) -> None:
        """This worker has ended."""
        self._write(f"-{worker}\n")

    def _write(self, line: str) -> None:
        # Who kills the watchdog goes without it.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode())

    def __enter__(self) -> "Watchdog":
        command = [sys.executable, "-I", "-S", str(pathlib.Path(__file__).resolve()), str(self._grace_seconds)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0, start_new_session=True
        )
        return self

    def __exit__(self, *_) -> None:
        self._process.stdin.close()
        self._process.wait()


def _read_workers() -> set[int]:
    """The workers that are left when the launcher ends."""
    workers: set[int] = set()
    for line in sys.stdin:
        if line.startswith("+"):
            workers.add(int(line[1:]))
        else:
            workers.discard(int(line[1:]))
    return workers


def _signal_those_left(workers: set[int], send) -> set[int]:
    left = set()
    for worker in workers:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(worker)
            left.add(worker)
    return left


def main() -> None:
    """The process: waits for the end of the pipe, then for the end of the workers."""
    workers = _read_workers()
    if not workers:
        return
    with contextlib.suppress(OSError):
        print("train.launch is gone; its workers are told to stop.", file=sys.stderr, flush=True)
    workers = _signal_those_left(workers, lambda worker: os.kill(worker, signal.SIGTERM))
    deadline = time.monotonic() + float(sys.argv[1])
    while workers and time.monotonic() < deadline:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
        workers = _signal_those_left(workers, lambda worker: os.kill(worker, 0))
    _signal_those_left(workers, lambda worker: os.killpg(worker, signal.SIGKILL))


if __name__ == "__main__":
    main()
