"""All that users wait for and the memory that it takes, in one table.

    python -m benchmarks.all [--only=NAME,...] [--presets=NAME,...] [--rounds=15] [--json=FILE]
    python -m benchmarks.all --json=now.json --compare=earlier.json
    python -m benchmarks.all --presets=digits --rounds=2

The first takes half an hour on two cores, the last, a trial, some minutes. Workloads, each with the architecture of a
preset and untrained weights (time does not depend on them), by default of those in brackets:

WORKLOADS
Each has a process of its own, so its peak memory is its own (that of a GPU is not in it), and takes turns with the
yardstick, a small PyTorch workload (benchmarks/torch_yardstick.py), in a process beside it, both with two threads:
compare the ratio of their medians. A command is a process anew in each turn, TensorFlow's start included. Slow
workloads take 3 turns at most. Let nothing else run meanwhile.

--json writes the results after every workload; --compare reports what has become slower or larger than in such a file
by more than the noise explains (python -m benchmarks.all_comparison --help has the limits). The yardstick and the
import need PyTorch (`make torch`); --no-yardstick does without a yardstick, in seconds alone. Ctrl-C ends with what
there is.

Exit code: 0 done, 1 a workload failed (the others go on), 2 a mistake in the command, 3 nothing failed but there is a
regression, 130 interrupted.
"""

import argparse
import contextlib
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from benchmarks import results
from benchmarks.all_comparison import FORMAT, REGRESSION_CODE, compare, read_result, table_of_changes
from benchmarks.interleaved import Worker, WorkerEnded, note_uneven, relative_standard_error, say
from benchmarks.workloads import MANY_ROUNDS, MOST_ROUNDS_OF_SLOW, NEED_TORCH, PRESETS, WORKLOADS, python

FAILURE_CODE, INTERRUPTED_CODE = 1, 130
# Steps before the timed ones, in which allocators and caches settle.
WARM_UP_STEPS = 2
# Of a yardstick after a turn that takes long: one step would be a bad clock.
YARDSTICK_STEPS_OF_SLOW = 3
COLUMNS = ("workload", "preset", "batch", "time", "yardstick", "time / yardstick", "noise", "rounds")
COLUMNS += ("time to first step", "peak memory")
EXPLANATION = """
Time: the median of a batch or of a whole command. Noise: the standard error of the time to compare, from
the rounds. Time to first step: building the model, or loading it, and the first time, after the imports.
Peak memory: of the workload's own process; of a command, that of the largest of its processes.
Yardstick: which small PyTorch workload (benchmarks/torch_yardstick.py) took turns. There is none for
architectures and work other than training on MNIST and CIFAR-10: cifar10 is a clock there, no more."""


class Job(NamedTuple):
    """A workload, one of `WORKLOADS`, with one of its presets."""

    workload: str
    preset: str

    def __str__(self) -> str:
        return f"{self.workload} {self.preset}"


class Turns(NamedTuple):
    """Seconds of ours in each round, and of the yardstick (none without it), and the summaries of both."""

    seconds: list[float]
    yardstick_seconds: list[float]
    summary: dict[str, Any]
    yardstick_summary: dict[str, Any] | None = None


def measure(job: Job, rounds: int, yardstick: str | None) -> Turns:
    """Runs a job, and a yardstick if one is named, each in a process of its own, in turn; WorkerEnded if it fails."""
    workload = WORKLOADS[job.workload]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        say(f"{job}: {'preparing' if workload.is_command else 'building, and the first time'}")
        ours = stack.enter_context(Worker(str(job), python("benchmarks.workloads", *job, folder)))
        # Nothing else runs until it has ended: the time to the first step is measured as well.
        ours.ask("ready")
        clock = None
        if yardstick:
            clock = stack.enter_context(Worker("yardstick", python("benchmarks.workloads", "yardstick", yardstick)))
        return take_turns(job, ours, clock, min(rounds, MOST_ROUNDS_OF_SLOW) if workload.is_slow else rounds)


def take_turns(job: Job, ours: Worker, clock: Worker | None, rounds: int) -> Turns:
    """Times both in turn; quick workloads warm up before."""
    is_slow = WORKLOADS[job.workload].is_slow
    clock_steps = YARDSTICK_STEPS_OF_SLOW if is_slow else 1
    for _ in range(WARM_UP_STEPS):
        for worker in (None if is_slow else ours, clock):
            if worker:
                worker.ask("step")
    seconds, clock_seconds = [], []
    for number in range(1, rounds + 1):
        seconds.append(ours.ask("step")["seconds"])
        text = f"{job}: round {number} of {rounds}: {seconds[-1]:.3f} s"
        if clock:
            clock_seconds.append(statistics.median(clock.ask("step")["seconds"] for _ in range(clock_steps)))
            text += f", yardstick {clock_seconds[-1]:.3f} s"
        say(text)
    return Turns(seconds, clock_seconds, ours.ask("summary"), clock.ask("summary") if clock else None)


def summarize(job: Job, yardstick: str | None, turns: Turns) -> dict[str, Any]:
    """Medians, their ratio, and how sure it is: from the ratios of the rounds, or without a yardstick the seconds."""
    median = statistics.median(turns.seconds)
    ratio, of_rounds = None, turns.seconds
    if yardstick:
        ratio = median / statistics.median(turns.yardstick_seconds)
        of_rounds = [ours / clock for ours, clock in zip(turns.seconds, turns.yardstick_seconds, strict=True)]
    return failed(job, None) | {
        "yardstick": yardstick,
        "ratio": ratio,
        "median_seconds": median,
        "noise": relative_standard_error(of_rounds),
        "seconds": turns.seconds,
        "yardstick_seconds": turns.yardstick_seconds,
        **{name: turns.summary[name] for name in ("first_step_seconds", "import_seconds", "peak_memory_bytes")},
    }


def failed(job: Job, reason: str | None) -> dict[str, Any]:
    batch_size = WORKLOADS[job.workload].batch_sizes[job.preset]
    return job._asdict() | {"batch_size": batch_size, "failure": reason}


def new_result() -> dict[str, Any]:
    return {"format": FORMAT, **results.stamp(), "complete": False, "results": []}


def run_jobs(jobs: list[Job], options: argparse.Namespace) -> dict[str, Any]:
    """Measures one job after the other and returns the content of the file, which is written after each."""
    result = new_result()
    with contextlib.suppress(KeyboardInterrupt):
        for number, job in enumerate(jobs, 1):
            say(f"workload {number} of {len(jobs)}")
            try:
                yardstick = None if options.no_yardstick else WORKLOADS[job.workload].yardstick(job.preset)
                row = summarize(job, yardstick, measure(job, options.rounds, yardstick))
                note_uneven({str(job): row["seconds"], f"the yardstick beside {job}": row["yardstick_seconds"]})
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
    if not result["complete"]:
        lines += ["", "Interrupted: not all workloads were measured."]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    workload = WORKLOADS.get(row["workload"])
    named = [workload.what if workload else row["workload"], row["preset"], str(row["batch_size"] or "-")]
    if row["failure"] is not None:
        return [*named, f"failed: {row['failure']}"]
    return named + [
        _seconds(row["median_seconds"]),
        row["yardstick"] or "-",
        "-" if row["ratio"] is None else f"{row['ratio']:.3g}",
        "-" if row["noise"] is None else f"{row['noise']:.1%}",
        str(len(row["seconds"])),
        _seconds(row["first_step_seconds"]),
        f"{row['peak_memory_bytes'] / 1e9:.2f} GB",
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} s" if value < 100.0 else f"{value:.0f} s"


def chosen_jobs(options: argparse.Namespace) -> list[Job]:
    """The workloads of `--only`, or all, each with its own presets or with the possible ones of `--presets`."""
    jobs = []
    for name in options.only or WORKLOADS:
        if name in NEED_TORCH and not results.has_torch():
            if options.only:
                raise ValueError(f"--only={name}: needs PyTorch, which is not installed: `make torch`")
            say(f"note: {name} is left out: it needs PyTorch, which is not installed (`make torch`)")
            continue
        possible = WORKLOADS[name].batch_sizes
        chosen = [preset for preset in options.presets or WORKLOADS[name].presets if preset in possible]
        if options.only and not chosen:
            raise ValueError(f"--only={name}: is not measured with these --presets, but with {', '.join(possible)}")
        jobs += [Job(name, preset) for preset in chosen]
    return jobs


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The options, with `jobs` and the content of the file of `--compare`, `earlier`."""
    workloads = "".join(
        f"    {name:<22}{workload.what} ({', '.join(workload.presets)})\n" for name, workload in WORKLOADS.items()
    )
    parser = results.benchmark_parser("all", __doc__.replace("WORKLOADS\n", f"{workloads}\n"))
    add = parser.add_argument
    add("--only", type=names(WORKLOADS), metavar="NAME,...", help="some of the workloads (default: all)")
    add("--presets", type=names(PRESETS), metavar="NAME,...", help=f"of {', '.join(PRESETS)} (default: see above)")
    add("--rounds", type=results.at_least(1), default=MANY_ROUNDS, metavar="N", help=f"turns of each ({MANY_ROUNDS})")
    add("--compare", type=pathlib.Path, metavar="FILE", help="an earlier file of --json")
    options = results.parse_with_yardstick(parser, arguments)
    if options.compare and options.json and options.compare.resolve() == options.json.resolve():
        parser.error(f"--json={options.json}: would overwrite the file that it is compared with; name another")
    try:
        options.jobs = chosen_jobs(options)
        options.earlier = read_result(options.compare, "--compare: ") if options.compare else None
    except ValueError as error:
        parser.error(str(error))
    return options


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r}: must be some of {', '.join(known)}")
        return list(dict.fromkeys(text.split(",")))

    return read


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    result = run_jobs(options.jobs, options)
    print(table(result))
    comparison = compare(options.earlier, result) if options.earlier else None
    if comparison:
        print(f"\n{table_of_changes(comparison, options.earlier)}")
    if not result["complete"]:
        sys.exit(INTERRUPTED_CODE)
    if any(row["failure"] is not None for row in result["results"]):
        sys.exit(FAILURE_CODE)
    if comparison and comparison.regressions:
        sys.exit(REGRESSION_CODE)


if __name__ == "__main__":
    main()
