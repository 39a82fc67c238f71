"""All that users wait for and the memory that it takes, in one table.

    python -m benchmarks.all [--only=NAME,...] [--presets=NAME,...] [--rounds=15] [--json=FILE]
    python -m benchmarks.all --json=now.json --compare=earlier.json
    python -m benchmarks.all --presets=digits --rounds=2

The first takes half an hour on two cores, the last, a trial, some minutes. Workloads, each with the architecture of a
preset and untrained weights (time does not depend on them), by default of those in brackets:

WORKLOADS
Each has a process of its own, so its peak memory is its own (that of a GPU is not in it), and takes turns with the
yardstick, a small PyTorch workload (benchmarks/torch_yardstick.py), in a process beside it, both with two threads: the
figure to compare is the ratio of their medians. A command is a process anew in each turn, TensorFlow's start included.
Slow workloads take 3 turns at most. Let nothing else run meanwhile.

--json writes the figures after every workload; --compare tells what has become slower or larger than in such a file by
more than the noise explains (python -m benchmarks.all_comparison --help has the limits). The yardstick and the import
need PyTorch (`make torch`); --no-yardstick does without a yardstick, in seconds alone. Ctrl-C ends with what there is.

Exit code: 0 done, 1 a workload failed (the others go on), 2 a mistake in the command, 3 nothing failed but there is a
regression, 130 interrupted.
"""

import argparse
import importlib.util
import pathlib
import sys
from typing import Any

from benchmarks.all_comparison import REGRESSION_CODE, compare, table_of_changes
from benchmarks.all_table import table
from benchmarks.command_line import at_least_one, benchmark_parser, tell_uneven
from benchmarks.interleaved import WorkerEnded
from benchmarks.result_file import new_result, read_result, write_result
from benchmarks.train_step import BUSY, say
from benchmarks.workload_measurement import Job, failed, measure
from benchmarks.workloads import MANY_ROUNDS, NEED_TORCH, PRESETS, WORKLOADS

FAILURE_CODE, INTERRUPTED_CODE = 1, 130


def run_jobs(jobs: list[Job], options: argparse.Namespace) -> dict[str, Any]:
    """Measures one job after the other and returns the content of the file, which is written after each."""
    result = new_result()
    if (load := result["machine"]["load_average_at_start"]) > BUSY:
        say(f"note: the load average is {load:.1f}: something else is running, or was a moment ago")
    try:
        for number, job in enumerate(jobs, 1):
            say(f"workload {number} of {len(jobs)}")
            result["results"].append(measured_or_failed(job, options))
            if options.json:
                write_result(options.json, result)
        result["complete"] = True
    except KeyboardInterrupt:
        say("interrupted")
    if options.json:
        write_result(options.json, result)
    return result


def measured_or_failed(job: Job, options: argparse.Namespace) -> dict[str, Any]:
    """A job's figures, or why there are none."""
    try:
        row = measure(job, options.rounds, not options.no_yardstick)
    except WorkerEnded as error:
        say(str(error))
        return failed(job, " ".join(str(error).splitlines()[-2:]))
    tell_uneven({str(job): row["seconds"], f"the yardstick beside {job}": row["yardstick_seconds"]})
    return row


def chosen_jobs(options: argparse.Namespace) -> list[Job]:
    """The workloads that are asked for, each with its own presets or with those that are asked for and possible.

    Raises:
      ValueError: one that is asked for by name needs PyTorch, or other presets.
    """
    jobs = []
    for name in options.only or WORKLOADS:
        if name in NEED_TORCH and importlib.util.find_spec("torch") is None:
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
    parser = benchmark_parser("all", __doc__.replace("WORKLOADS\n", f"{workloads}\n"))
    add = parser.add_argument
    add("--only", type=names(WORKLOADS), metavar="NAME,...", help="some of the workloads (default: all)")
    add("--presets", type=names(PRESETS), metavar="NAME,...", help=f"of {', '.join(PRESETS)} (default: see above)")
    add("--rounds", type=at_least_one, default=MANY_ROUNDS, metavar="N", help=f"turns of each ({MANY_ROUNDS})")
    add("--compare", type=pathlib.Path, metavar="FILE", help="an earlier file of --json")
    add("--no-yardstick", action="store_true", help="our own figures alone, without a ratio")
    options = parser.parse_args(arguments)
    if not options.no_yardstick and importlib.util.find_spec("torch") is None:
        parser.error("the yardstick needs PyTorch, which is not installed: `make torch`, or give --no-yardstick")
    if options.compare and options.json and options.compare.resolve() == options.json.resolve():
        parser.error(f"--json={options.json}: would overwrite the file that it is compared with; name another")
    try:
        options.earlier = read_result(options.compare) if options.compare else None
    except ValueError as error:
        parser.error(f"--compare: {error}")
    try:
        options.jobs = chosen_jobs(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def names(known: Any) -> Any:
    """Reads a list of known names."""

    def read(text: str) -> list[str]:
        found = list(dict.fromkeys(text.split(",")))
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r}: must be some of {', '.join(known)}")
        return found

    return read


def exit_code(result: dict[str, Any], has_regression: bool) -> int:
    """See above."""
    if not result["complete"]:
        return INTERRUPTED_CODE
    if any(row["failure"] is not None for row in result["results"]):
        return FAILURE_CODE
    return REGRESSION_CODE if has_regression else 0


def main(arguments: list[str] | None = None) -> None:
    """Measures, writes, prints and compares."""
    options = parse_arguments(arguments)
    result = run_jobs(options.jobs, options)
    print(table(result))
    has_regression = False
    if options.earlier:
        comparison = compare(options.earlier, result)
        has_regression = comparison.regressions > 0
        print(f"\n{table_of_changes(comparison, options.earlier)}")
    if code := exit_code(result, has_regression):
        sys.exit(code)


if __name__ == "__main__":
    main()
