"""All that users wait for and the memory that it takes, and whether another revision did better.

    python -m benchmarks.all [--only=NAME,...] [--presets=NAME,...] [--rounds=20] [--json=FILE]
    python -m benchmarks.all --against=CHECKOUT [--only=NAME,...]        e.g. after `git worktree add ../before main`
    python -m benchmarks.all --compare=earlier.json --json=now.json
    python -m benchmarks.all --presets=digits --rounds=1

The first takes an hour on two cores, the last, a trial, some minutes. Workloads, each with untrained weights and the
architecture of a preset, by default of those in brackets:

WORKLOADS
In each round a workload runs in a new process and takes turns with another: the yardstick, a small PyTorch workload
(`make torch`; --no-yardstick does without), or with --against the same workload of that checkout. Both have two
threads. A round's time is the median of its turns; commands and the importance-weighted bound have one. Rounds are
compared in pairs, as ratios. Let nothing else run meanwhile.

A time or the peak memory may grow by 5%, the time to the first step by 20%. A regression is what grew by more and has
surely grown (one-sided bounds of Student's t over the rounds, 99%). Where it is unclear whether something grew by more
there is another round, up to --rounds; what is unclear then counts as a regression. --compare compares, through the
yardstick, with an earlier file of --json, whose rounds are what they are: --against needs fewer. Without either, rounds
go on until two such files could be compared.

Exit code: 0 done, 1 a workload failed, 2 a mistake in the command, 3 none failed but there is a regression, 130 Ctrl-C.
"""

import argparse
import contextlib
import functools
import json
import math
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from benchmarks import results
from benchmarks.results import say
from benchmarks.workloads import PRESETS, WORKLOADS, Worker, WorkerEnded, python
from nvae_tf.errors import wrap_read_errors
from nvae_tf.files import git_revision

FORMAT = 2
FEWEST_ROUNDS, MOST_ROUNDS, TURNS = 3, 20, 5
# Steps before the timed ones, in which allocators and caches settle.
WARM_UP_STEPS = 2
# Of the yardstick beside a slow workload: one step would be a bad clock.
CLOCK_STEPS_OF_SLOW = 3
CERTAINTY = 0.99
# What is compared: where a result has it, round by round, and by how much it may grow.
QUANTITIES = {
    "time": ("seconds", 0.05),
    "first step": ("every_first_step_seconds", 0.20),
    "peak memory": ("every_peak_memory_bytes", 0.05),
}
REGRESSION, UNCLEAR = "**regression**", "**unclear**"
COLUMNS = "workload,preset,batch,time,yardstick,time / yardstick,noise,rounds,time to first step,peak memory".split(",")
EXPLANATION = """
Time: of a batch or a command. Noise: the standard error of the time to compare. Time to first step: after the imports.
Peak memory: of the process, of a command the largest of its processes, without a GPU's. The yardstick is alike only to
training on MNIST and CIFAR-10; for other workloads cifar10 is a clock, no more."""


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
    """Runs rounds until the comparison is clear, and returns the result. WorkerEnded if a process fails."""
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
            say(f"{job}: round {number} of at most {options.rounds}: {', '.join(times)}")
            row = summarize(job, yardstick, rounds)
            if number >= FEWEST_ROUNDS and is_clear(row, options.earlier):
                break
    return row


def summarize(job: Job, yardstick: str | None, rounds: Sequence[Round]) -> dict[str, Any]:
    """A result: lists with an entry for each round, medians, and how sure the ratio is, or without one the time."""
    ours = _by_round(rounds, "ours")
    clock = [statistics.median(each["yardstick"].seconds) for each in rounds] if yardstick else []
    logs = np.log(ours["seconds"]) - (np.log(clock) if yardstick else 0.0)
    firsts = ours["every_first_step_seconds"]
    return failed(job, None) | {
        "yardstick": yardstick,
        "ratio": float(np.exp(logs.mean())) if yardstick else None,
        "median_seconds": statistics.median(ours["seconds"]),
        "noise": float(logs.std(ddof=1) / math.sqrt(len(logs))) if len(logs) > 1 else None,
        "yardstick_seconds": clock,
        "first_step_seconds": None if None in firsts else statistics.median(firsts),
        "import_seconds": rounds[0]["ours"].summary["import_seconds"],
        "peak_memory_bytes": statistics.median(ours["every_peak_memory_bytes"]),
        **ours,
        "against": _by_round(rounds, "against") if "against" in rounds[0] else None,
    }


def _by_round(rounds: Sequence[Round], side: str) -> dict[str, list]:
    measured = [each[side] for each in rounds]
    return {
        "seconds": [statistics.median(one.seconds) for one in measured],
        "every_first_step_seconds": [one.summary["first_step_seconds"] for one in measured],
        "every_peak_memory_bytes": [one.summary["peak_memory_bytes"] for one in measured],
    }


def failed(job: Job, reason: str | None) -> dict[str, Any]:
    batch_size = WORKLOADS[job.workload].batch_sizes[job.preset]
    return job._asdict() | {"batch_size": batch_size, "failure": reason}


class Change(NamedTuple):
    """By how much something has grown, and the bounds of that, parts of 1."""

    quantity: str
    growth: float
    least: float
    most: float
    limit: float

    @property
    def verdict(self) -> str:
        if self.most <= self.limit:
            return "better" if self.most < 0.0 else ""
        return REGRESSION if self.growth > self.limit and self.least > 0.0 else UNCLEAR


def growth_of(before: np.ndarray, after: np.ndarray, paired: bool) -> tuple[float, float, float]:
    """Growth and its one-sided bounds, from the logarithms of rounds: Student's t of pairs, or Welch's of two sets."""
    groups = [after - before] if paired else [before, after]
    middle, reach = after.mean() - before.mean(), math.inf
    if min(map(len, groups)) > 1:
        parts = [group.var(ddof=1) / len(group) for group in groups]
        squares = sum(part**2 / (len(group) - 1) for part, group in zip(parts, groups, strict=True))
        reach = stdtrit(sum(parts) ** 2 / squares, CERTAINTY) * math.sqrt(sum(parts)) if squares else 0.0
    return tuple(float(np.expm1(value)) for value in (middle, middle - reach, middle + reach))


def changes_between(before: dict[str, Any], after: dict[str, Any], paired: bool = False) -> list[Change]:
    """How a result differs from an earlier one; times through the yardstick where both have the same."""
    rows, changes = (before, after), []
    has_clock = after["yardstick"] is not None and before.get("yardstick") == after["yardstick"]
    for quantity, (key, limit) in QUANTITIES.items():
        if None not in (*before[key], *after[key]):
            by_clock = has_clock and quantity != "peak memory"
            logs = [np.log(row[key]) - (np.log(row["yardstick_seconds"]) if by_clock else 0.0) for row in rows]
            changes.append(Change(quantity, *growth_of(*logs, paired), limit))
    return changes


def changes_of(row: dict[str, Any], earlier: dict[str, Any] | None) -> list[Change]:
    """How a result differs from that of the other checkout, or else of the earlier file, if that has one."""
    if row["against"]:
        return changes_between(row["against"], row, paired=True)
    same = ("workload", "preset", "batch_size")
    rows = [old for old in (earlier or {"results": []})["results"] if all(old[key] == row[key] for key in same)]
    return changes_between(rows[0], row) if rows and rows[0]["failure"] is None else []


def is_clear(row: dict[str, Any], earlier: dict[str, Any] | None) -> bool:
    """Whether the comparison is, or if there is none, that of two such results would be."""
    if changes := changes_of(row, earlier):
        return UNCLEAR not in [change.verdict for change in changes]
    return all(change.most <= change.limit / 2 for change in changes_between(row, row))


def table_of_changes(result: dict[str, Any], earlier: dict[str, Any] | None, since: str) -> tuple[str, int]:
    """The comparison as a text, and how many regressions it has."""
    rows, notes = [], []
    for row in (row for row in result["results"] if row["failure"] is None):
        name = f"{row['workload']} {row['preset']}"
        changes = changes_of(row, earlier)
        notes += [] if changes else [f"{name}: the earlier file has no result of such batches"]
        for change in changes:
            bounds = f"{change.least:+.1%} to {change.most:+.1%}" if change.most < 10.0 else None  # too few rounds
            rows.append([name, change.quantity, f"{change.growth:+.1%}", bounds, f"{change.limit:.0%}", change.verdict])
    for group in ("machine", "versions") if earlier else ():
        for name in sorted((earlier[group].keys() | result[group].keys()) - {"load_average_at_start"}):
            old, new = (each[group].get(name, "missing") for each in (earlier, result))
            notes += [f"{group}: {name} was {old} and is {new}"] if old != new else []
    found = sum(row[-1] in (REGRESSION, UNCLEAR) for row in rows)
    lines = results.markdown(("workload", "measured", "change", "surely within", "may grow by", ""), rows)
    lines = [f"Compared with {since}", "", *lines, "", *(f"note: {note}" for note in notes)]
    return "\n".join([*lines, f"{found} regressions"]), found


def read_result(file: pathlib.Path) -> dict[str, Any]:
    """Reads a file of `--json`; ValueError if it is missing or another."""
    with wrap_read_errors(f"--compare: {file}: can't be read (", ")"):
        result = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise ValueError(f"--compare: {file}: no file of benchmarks.all --json, or of another version; measure anew")
    return result


def run_jobs(jobs: list[Job], options: argparse.Namespace) -> dict[str, Any]:
    """Measures one job after the other and returns the content of the file, which is written after each."""
    result = {"format": FORMAT, **results.stamp(), "complete": False, "results": []}
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
    lines = [*results.place(result), f"revision {result['revision'] or 'unknown'}", ""]
    lines += [*results.markdown(COLUMNS, [_cells(row) for row in result["results"]]), EXPLANATION]
    return "\n".join(lines + ([] if result["complete"] else ["", "Interrupted: not all workloads were measured."]))


def _cells(row: dict[str, Any]) -> list[Any]:
    named = [WORKLOADS[row["workload"]].what, row["preset"], row["batch_size"]]
    if row["failure"] is not None:
        return [*named, f"failed: {row['failure']}"]
    seconds, first = (value and f"{value:.3g} s" for value in (row["median_seconds"], row["first_step_seconds"]))
    ratio, noise = row["ratio"] and f"{row['ratio']:.3g}", None if row["noise"] is None else f"{row['noise']:.1%}"
    memory = f"{row['peak_memory_bytes'] / 1e9:.2f} GB"
    return [*named, seconds, row["yardstick"], ratio, noise, len(row["seconds"]), first, memory]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with `jobs` and the content of the file of `--compare`, `earlier`."""
    workloads = (f"    {name:<23} {work.what} ({', '.join(work.presets)})\n" for name, work in WORKLOADS.items())
    parser = results.benchmark_parser("benchmarks.all", __doc__.replace("WORKLOADS\n", "".join([*workloads, "\n"])))
    add, names = parser.add_argument, results.names
    add("--only", type=names(WORKLOADS), default=WORKLOADS, metavar="NAME,...", help="some of the workloads (all)")
    add("--presets", type=names(PRESETS), metavar="NAME,...", help=f"of {', '.join(PRESETS)} (see above)")
    add("--rounds", type=results.at_least(1), default=MOST_ROUNDS, metavar="N", help=f"the most ({MOST_ROUNDS})")
    add("--against", type=pathlib.Path, metavar="CHECKOUT", help="another folder of this project to compare with")
    add("--compare", type=pathlib.Path, metavar="FILE", help="an earlier file of --json to compare with")
    options = results.parse_with_yardstick(parser, arguments)
    if options.against and options.compare:
        parser.error("--against, --compare: give one of them")
    if options.against and not (options.against / "benchmarks" / "workloads.py").is_file():
        parser.error(f"--against={options.against}: no checkout of this project, it has no benchmarks/workloads.py")
    if options.compare and options.json and options.compare.resolve() == options.json.resolve():
        parser.error(f"--json={options.json}: would overwrite the file that it is compared with; name another")
    options.jobs = [Job(name, each) for name in options.only for each in options.presets or WORKLOADS[name].presets]
    try:
        options.earlier = read_result(options.compare) if options.compare else None
    except ValueError as error:
        parser.error(str(error))
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    result, found = run_jobs(options.jobs, options), 0
    print(table(result))
    if options.against or options.compare:
        revision = git_revision(options.against) if options.against else options.earlier["revision"]
        since = f"{options.against or options.compare}, revision {revision or 'unknown'}"
        text, found = table_of_changes(result, options.earlier, since)
        print(f"\n{text}")
    if not result["complete"]:
        sys.exit(130)
    if code := 1 if any(row["failure"] is not None for row in result["results"]) else 3 if found else 0:
        sys.exit(code)


if __name__ == "__main__":
    main()
