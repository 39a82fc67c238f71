"""Workloads timed in turn: each is in a process of its own and runs one step whenever it is asked to.

Seconds differ between machines and hours; the ratio of two workloads that alternate step by step differs much less.
Processes of their own keep the workloads' threads and peak memory apart.

The parent writes one word a line to the worker's standard input, `ready`, `step` or `summary`; the worker answers each
with a line of JSON on a pipe made for that. The worker's output is kept, and shown if it fails.
"""

import contextlib
import json
import math
import os
import pathlib
import re
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

THREADS = 2
# Where the load average is higher at the start, or the slowest time is more than so many of the fastest, something else
# was running. PyTorch's threads suffer from that many times more than TensorFlow's.
BUSY = 0.7
UNEVEN = 1.5
_ANSWERS = "BENCHMARK_ANSWERS_FILE_DESCRIPTOR"


class WorkerEnded(OSError):
    """A worker ended too early; the message has its output."""

    def reason(self) -> str:
        """Its last two lines: what the worker said, and how it ended."""
        return " ".join(str(self).splitlines()[-2:])


class Worker:
    """A workload in a process of its own, whose program calls `serve`. Leaving the `with` block ends the process."""

    def __init__(self, name: str, command: list[str]):
        self.name = name
        answers, answers_of_worker = os.pipe()
        self._answers = os.fdopen(answers)
        self._log = tempfile.TemporaryFile("w+")
        # PyTorch's threads, and TensorFlow's where a program does not set them.
        variables = ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
        # A session of its own: Ctrl-C reaches the parent alone, which then ends the worker quietly.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            text=True,
            env=os.environ | dict.fromkeys(variables, str(THREADS)) | {_ANSWERS: str(answers_of_worker)},
            pass_fds=[answers_of_worker],
            start_new_session=True,
        )
        os.close(answers_of_worker)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception) -> None:
        if self._process.returncode is None:
            # With the processes that it has started, which are in its session.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._answers.close()
        self._log.close()

    def ask(self, word: str) -> dict[str, Any]:
        """Sends a word and waits for the answer; WorkerEnded if the process ends instead."""
        try:
            print(word, file=self._process.stdin, flush=True)
            answer = self._answers.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            how = how_it_ended(self._process.wait())
            self._log.seek(0)
            raise WorkerEnded(f"{self._log.read()}The worker `{self.name}` {how}.")
        return json.loads(answer)


def how_it_ended(status: int) -> str:
    if status == -signal.SIGKILL:
        return "was killed, most likely because the machine's memory ran out"
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with exit status {status}"


def serve(step: Callable[[], float], summary: Callable[[], dict[str, Any]]) -> None:
    """The worker's side of `Worker`: `step` gives the seconds of one step, `summary` the other measurements."""
    words = {
        "ready": dict,
        "step": lambda: {"seconds": step()},
        "summary": lambda: {"peak_memory_bytes": peak_memory_bytes()} | summary(),
    }
    with os.fdopen(int(os.environ[_ANSWERS]), "w") as answers:
        for line in sys.stdin:
            print(json.dumps(words[line.strip()]()), file=answers, flush=True)


def peak_memory_bytes() -> int:
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        # Linux' getrusage counts what the parent had when it started this process.
        return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def take_turns(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each way in every round, in this process; each runs once before, which builds its graph."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for name, work in ways.items():
        say(f"building the graph of {name}")
        work()
    for number in range(1, rounds + 1):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
        say(f"round {number} of {rounds}: " + ", ".join(f"{name} {times[-1]:.3f} s" for name, times in seconds.items()))
    return seconds


def relative_standard_error(values: Sequence[float]) -> float | None:
    """The standard error of the values' median, over that median; None for fewer than two values."""
    if len(values) < 2:
        return None
    deviation = statistics.stdev(values)
    if len(values) >= 8:
        # Of many values quartiles are worth more than the standard deviation, which a single outlier spoils.
        low, high = np.percentile(values, (25, 75))
        deviation = (high - low) / 1.349
    # A normal distribution's quartiles are 1.349 deviations apart; its median is less sure than its mean by this root.
    return float(math.sqrt(math.pi / 2) * deviation / math.sqrt(len(values)) / statistics.median(values))


def are_uneven(repeated: Sequence[float]) -> bool:
    return bool(repeated) and max(repeated) > UNEVEN * min(repeated)


def note_uneven(times: Mapping[str, Sequence[float]]) -> None:
    for name, repeated in times.items():
        if are_uneven(repeated):
            say(f"note: the times of {name} are uneven; something else was running, so measure again")


def say(line: str) -> None:
    """Reports progress; standard output is for the results alone."""
    print(line, file=sys.stderr, flush=True)
