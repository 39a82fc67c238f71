"""Two workloads timed in turn: each lives in a process of its own and runs one step whenever it is told to.

Seconds differ between machines and hours; the ratio of two workloads that alternate step by step differs
much less. Processes of their own keep the workloads' threads and peak memory apart.

The parent writes one word a line to the worker's standard input, `step` or `summary`; the worker answers
each with a line of JSON on a pipe made for that. What the worker prints meanwhile is kept, and
shown if it fails.

    with Worker("ours", [sys.executable, "-m", "benchmarks.some_worker"]) as ours:
        ours.ask("step")["seconds"]
"""

import contextlib
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

THREADS = 2
_ANSWERS = "BENCHMARK_ANSWERS_FILE_DESCRIPTOR"


class WorkerEnded(RuntimeError):
    """A worker ended before its time; the message has what it printed."""


class Worker:
    """A workload in a process of its own, as its parent sees it. Leaving the `with` block ends the process.

    Args:
      name: what messages call it.
      command: the program and its arguments; the program calls `serve`.
    """

    def __init__(self, name: str, command: list[str]):
        self.name = name
        answers, answers_of_worker = os.pipe()
        self._answers = os.fdopen(answers)
        self._log = tempfile.TemporaryFile("w+")
        environment = {
            # PyTorch's threads, and TensorFlow's where a program does not set them.
            "OMP_NUM_THREADS": str(THREADS),
            "TF_NUM_INTRAOP_THREADS": str(THREADS),
            "TF_NUM_INTEROP_THREADS": str(THREADS),
            _ANSWERS: str(answers_of_worker),
        }
        # A session of its own: Ctrl-C reaches the parent alone, which then ends the worker quietly.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
            text=True,
            env=os.environ | environment,
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
        """Sends a word and waits for the answer.

        Raises:
          WorkerEnded: the process ended instead of answering.
        """
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
    """Returns a process's exit status in words."""
    if status == -signal.SIGKILL:
        return "was killed, most likely because the machine's memory ran out"
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"


def serve(step: Callable[[], float], summary: Callable[[], dict[str, Any]]) -> None:
    """Answers the parent's words until it closes the pipe: the worker's side of `Worker`.

    Args:
      step: runs one step and returns its seconds.
      summary: returns what else there is to tell, as JSON knows it; `peak_memory_bytes`, taken before the
        call, is added to it.
    """
    with os.fdopen(int(os.environ[_ANSWERS]), "w") as answers:
        for line in sys.stdin:
            word = line.strip()
            if word == "step":
                answer = {"seconds": step()}
            elif word == "summary":
                answer = {"peak_memory_bytes": peak_memory_bytes()} | summary()
            else:
                raise ValueError(f"A benchmark's worker knows the words `step` and `summary`, not `{word}`.")
            print(json.dumps(answer), file=answers, flush=True)


def peak_memory_bytes() -> int:
    """Returns the largest resident memory that this process has had."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        # Linux' getrusage counts what the parent had when it started this process.
        kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(kilobytes) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
