"""One workload of `benchmarks.all`, in a process of its own that takes turns with the yardstick's."""

import contextlib
import statistics
import sys
import tempfile
from typing import Any, NamedTuple

from benchmarks.interleaved import Worker
from benchmarks.noise import relative_standard_error
from benchmarks.train_step import WARM_UP_STEPS, say
from benchmarks.workloads import MOST_ROUNDS_OF_SLOW, WORKLOADS

# Of a yardstick after a turn that takes long: one step would be a bad clock.
YARDSTICK_STEPS_OF_SLOW = 3


class Job(NamedTuple):
    """A workload, one of `WORKLOADS`, with one of its presets."""

    workload: str
    preset: str

    def __str__(self) -> str:
        return f"{self.workload} {self.preset}"


class Turns(NamedTuple):
    """What was measured: seconds of ours in each round, and of the yardstick (none without it), and our own summary."""

    seconds: list[float]
    yardstick_seconds: list[float]
    summary: dict[str, Any]


def measure(job: Job, rounds: int, with_yardstick: bool) -> dict[str, Any]:
    """Returns a job's figures, in seconds and bytes, as `--json` writes them.

    Raises:
      WorkerEnded: it failed.
    """
    workload = WORKLOADS[job.workload]
    yardstick = workload.yardstick(job.preset) if with_yardstick else None
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        say(f"{job}: {'preparing' if workload.is_command else 'building, and the first time'}")
        ours = Worker(str(job), python("benchmarks.workloads.worker", *job, folder))
        stack.enter_context(ours)
        # Nothing else runs until it has ended: the time to the first step is a figure as well.
        ours.ask("summary")
        clock = None
        if yardstick:
            clock = stack.enter_context(Worker("yardstick", python("benchmarks.yardstick_worker", yardstick)))
        turns = take_turns(job, ours, clock, min(rounds, MOST_ROUNDS_OF_SLOW) if workload.is_slow else rounds)
    return figures(job, yardstick, turns)


def python(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def take_turns(job: Job, ours: Worker, clock: Worker | None, rounds: int) -> Turns:
    """Times both in turn; quick workloads warm up before."""
    is_slow = WORKLOADS[job.workload].is_slow
    clock_steps = YARDSTICK_STEPS_OF_SLOW if is_slow else 1
    for _ in range(WARM_UP_STEPS):
        if not is_slow:
            ours.ask("step")
        if clock:
            clock.ask("step")
    seconds, clock_seconds = [], []
    for number in range(1, rounds + 1):
        seconds.append(ours.ask("step")["seconds"])
        told = f"{job}: round {number} of {rounds}: {seconds[-1]:.3f} s"
        if clock:
            clock_seconds.append(statistics.median(clock.ask("step")["seconds"] for _ in range(clock_steps)))
            told += f", yardstick {clock_seconds[-1]:.3f} s"
        say(told)
    return Turns(seconds, clock_seconds, ours.ask("summary"))


def figures(job: Job, yardstick: str | None, turns: Turns) -> dict[str, Any]:
    """Medians, their ratio, and how sure it is: from the ratios of the rounds, or without a yardstick the seconds."""
    median = statistics.median(turns.seconds)
    ratio, of_rounds = None, turns.seconds
    if yardstick:
        ratio = median / statistics.median(turns.yardstick_seconds)
        of_rounds = [ours / clock for ours, clock in zip(turns.seconds, turns.yardstick_seconds, strict=True)]
    return described(job) | {
        "yardstick": yardstick,
        "ratio": ratio,
        "median_seconds": median,
        "noise": relative_standard_error(of_rounds),
        "seconds": turns.seconds,
        "yardstick_seconds": turns.yardstick_seconds,
        **{name: turns.summary[name] for name in ("first_step_seconds", "import_seconds", "peak_memory_bytes")},
        "failure": None,
    }


def failed(job: Job, reason: str) -> dict[str, Any]:
    """What is told of a job that has no figures."""
    return described(job) | {"failure": reason}


def described(job: Job) -> dict[str, Any]:
    return {
        "workload": job.workload,
        "preset": job.preset,
        "batch_size": WORKLOADS[job.workload].batch_sizes[job.preset],
    }
