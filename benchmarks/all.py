"""All that users wait for and the memory that it takes, in pairs with PyTorch's yardstick or with another revision.

    python -m benchmarks.all [--only=NAME,...] [--presets=NAME,...] [--rounds=5] [--json=FILE]
    python -m benchmarks.all --against=CHECKOUT [--only=NAME,...]        e.g. after `git worktree add ../before main`
    python -m benchmarks.all --presets=digits --rounds=1

The first takes an hour on two cores, the last, a trial, some minutes. Workloads, each with untrained weights and the
architecture of a preset, by default of those in brackets:

WORKLOADS
In each round a workload runs in a new process and takes turns with another: the yardstick, a small PyTorch workload
(`make torch`; --no-yardstick does without), or with --against the same workload of that checkout. Both have two
threads. A round's time is the median of its turns; commands and the importance-weighted bound have one turn. A ratio
is the median over the rounds, with the lowest and the highest in brackets. Let nothing else run meanwhile.

Exit code: 0 done, 1 a workload failed, 2 a mistake in the command, 130 Ctrl-C.
"""

import argparse
import contextlib
import functools
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks import results
from benchmarks.results import say
from benchmarks.workloads import PRESETS, WORKLOADS, Worker, WorkerEnded, python

ROUNDS, TURNS = 5, 5
# Steps before the timed ones, in which allocators and caches settle.
WARM_UP_STEPS = 2
# Steps of the yardstick beside a slow workload: one step would be a bad clock.
CLOCK_STEPS_OF_SLOW = 3
# What is measured in every round, and how a cell of the table shows it.
QUANTITIES = {
    "seconds": ("time", "{:.3g} s"),
    "first_step_seconds": ("first step", "{:.3g} s"),
    "peak_memory_bytes": ("peak memory", "{:.3g} bytes"),
}
EXPLANATION = """
Time: of a batch or a command. First step: after the imports. Peak memory: of the process, of a command the largest of
its processes, without a GPU's. The yardstick is alike only to training on MNIST and CIFAR-10; for other workloads
cifar10 is a clock, no more."""


class Job(NamedTuple):
    """A workload, one of `WORKLOADS`, with one of its presets."""

    workload: str
    preset: str

    def __str__(self) -> str:
        return f"{self.workload} {self.preset}"


class Measured(NamedTuple):
    """What one side of a round has given."""

    seconds: list[float]  # of every turn
    summary: dict[str, Any]

    def quantities(self) -> dict[str, float | None]:
        """The numbers of the round by their names in `QUANTITIES`; None where a workload has none."""
        return self.summary | {"seconds": statistics.median(self.seconds)}


Sides, Round = dict[str, Callable[[], Worker]], dict[str, Measured]


def sides_of(job: Job, folder: str, yardstick: str | None = None, against: pathlib.Path | None = None) -> Sides:
    """The processes of a round, by name: `ours`, and `yardstick` or `against`; each has files of its own."""
    sides: Sides = {}
    for name, checkout in (("ours", results.ROOT), ("against", against)):
        if checkout:
            place = pathlib.Path(folder, name)
            place.mkdir()
            command = python("benchmarks.workloads", *job, place)
            sides[name] = functools.partial(Worker, f"{job} ({name})", command, checkout)
    if yardstick:
        command = python("benchmarks.workloads", "yardstick", yardstick)
        sides["yardstick"] = functools.partial(Worker, "yardstick", command)
    return sides


def run_round(sides: Sides, turns: int, warm_up: int, clock_steps: int = 1, number: int = 1) -> Round:
    """Runs each side in a new process, in turn; who is first changes. WorkerEnded if one fails."""
    order = list(sides)[:: 1 if number % 2 else -1]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in order:
            workers[name] = stack.enter_context(sides[name]())
            # Nothing else runs until it has ended: the time to the first step is measured as well.
            workers[name].ask("ready")
        for turn in range(-warm_up, turns):
            for name in order if turn % 2 else order[::-1]:
                steps = clock_steps if name == "yardstick" else 1
                time = statistics.median(workers[name].ask("step")["seconds"] for _ in range(steps))
                seconds[name] += [time] if turn >= 0 else []
        return {name: Measured(seconds[name], worker.ask("summary")) for name, worker in workers.items()}


def measure(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """Runs the rounds and returns the result. WorkerEnded if a process fails."""
    clock = "mnist" if job.preset == "mnist" and job.workload.endswith("training") else "cifar10"
    yardstick = None if options.no_yardstick else clock
    workload, rounds = WORKLOADS[job.workload], []
    is_slow = workload.is_slow or workload.is_command
    turns, warm_up, clock_steps = (1, 0, CLOCK_STEPS_OF_SLOW) if is_slow else (TURNS, WARM_UP_STEPS, 1)
    with tempfile.TemporaryDirectory() as folder:
        sides = sides_of(job, folder, yardstick, options.against)
        for number in range(1, options.rounds + 1):
            rounds.append(run_round(sides, turns, warm_up, clock_steps, number))
            times = (f"{name} {statistics.median(side.seconds):.3f} s" for name, side in rounds[-1].items())
            say(f"{job}: round {number} of {options.rounds}: {', '.join(times)}")
    return summarize(job, yardstick, rounds)


def summarize(job: Job, yardstick: str | None, rounds: Sequence[Round]) -> dict[str, Any]:
    """A result: of each quantity our numbers, one for each round, and their ratios to those of the other side."""
    row = failed(job, None) | {"yardstick": yardstick}
    other = next((side for side in rounds[0] if side != "ours"), None)
    for name in QUANTITIES:
        pairs = [[each[side].quantities().get(name) for side in ("ours", other) if side] for each in rounds]
        row[name] = [pair[0] for pair in pairs]
        # The yardstick is another program: only its time says something.
        comparable = other == "against" or (other == "yardstick" and name == "seconds")
        row[f"{name}_ratios"] = [ours / theirs for ours, theirs in pairs if ours] if comparable else []
    return row


def failed(job: Job, reason: str | None) -> dict[str, Any]:
    batch_size = WORKLOADS[job.workload].batch_sizes[job.preset]
    return job._asdict() | {"batch_size": batch_size, "failure": reason}


def run_jobs(jobs: list[Job], options: argparse.Namespace) -> dict[str, Any]:
    """Measures one job after the other and returns the content of the file, which is written after each."""
    result = {**results.stamp(), "against": str(options.against or ""), "complete": False, "results": []}
    with contextlib.suppress(KeyboardInterrupt):
        for number, job in enumerate(jobs, 1):
            say(f"workload {number} of {len(jobs)}: {job}")
            try:
                row = measure(job, options)
            except WorkerEnded as error:
                say(str(error))
                row = failed(job, error.reason())
            result["results"].append(row)
            results.write_json(result, options.json)
        result["complete"] = True
    results.write_json(result, options.json)
    return result


def table(result: dict[str, Any]) -> str:
    other = f"/ {pathlib.Path(result['against']).name}" if result["against"] else "/ yardstick"
    columns = ["workload", "preset", "batch", "rounds"]
    columns += [heading for name, _ in QUANTITIES.values() for heading in (name, other)]
    lines = [*results.place(result), f"revision {result['revision'] or 'unknown'}", ""]
    lines += [*results.markdown(columns, [_cells(row) for row in result["results"]]), EXPLANATION]
    return "\n".join(lines + ([] if result["complete"] else ["", "Interrupted: not all workloads were measured."]))


def _cells(row: dict[str, Any]) -> list[Any]:
    named = [WORKLOADS[row["workload"]].what, row["preset"], row["batch_size"]]
    if row["failure"] is not None:
        return [*named, f"failed: {row['failure']}"]
    cells = [*named, len(row["seconds"])]
    for name, (_, form) in QUANTITIES.items():
        values, ratios = row[name], row[f"{name}_ratios"]
        cells.append(None if None in values else form.format(statistics.median(values)))
        spread = ratios and f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        cells.append(spread or None)
    return cells


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with `jobs`."""
    workloads = (f"    {name:<23} {work.what} ({', '.join(work.presets)})\n" for name, work in WORKLOADS.items())
    parser = results.benchmark_parser("benchmarks.all", __doc__.replace("WORKLOADS\n", "".join([*workloads, "\n"])))
    add, names = parser.add_argument, results.names
    add("--only", type=names(WORKLOADS), default=WORKLOADS, metavar="NAME,...", help="some of the workloads (all)")
    add("--presets", type=names(PRESETS), metavar="NAME,...", help=f"of {', '.join(PRESETS)} (see above)")
    add("--rounds", type=results.at_least(1), default=ROUNDS, metavar="N", help=f"pairs of processes ({ROUNDS})")
    add("--against", type=pathlib.Path, metavar="CHECKOUT", help="another folder of this project to compare with")
    options = results.parse_with_yardstick(parser, arguments)
    if options.against and not (options.against / "benchmarks" / "workloads.py").is_file():
        parser.error(f"--against={options.against}: no checkout of this project, it has no benchmarks/workloads.py")
    options.jobs = [Job(name, each) for name in options.only for each in options.presets or WORKLOADS[name].presets]
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    result = run_jobs(options.jobs, options)
    print(table(result))
    if not result["complete"]:
        sys.exit(130)
    if any(row["failure"] is not None for row in result["results"]):
        sys.exit(1)


if __name__ == "__main__":
    main()
