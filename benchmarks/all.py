"""All that users wait for and the memory that it takes, in pairs with PyTorch's yardstick or with another revision.

    python -m benchmarks.all [--only=NAME,...] [--presets=NAME,...] [--rounds=5] [--json=FILE]
    python -m benchmarks.all --against=CHECKOUT [--only=NAME,...]        e.g. after `git worktree add ../before main`
    python -m benchmarks.all --presets=digits --rounds=1

The first takes an hour on two cores, the last, a trial, some minutes. Workloads, each with untrained weights and the
architecture of a preset, by default of those in brackets:

WORKLOADS
In each round a workload runs in a new process and takes turns with another: the yardstick, a small PyTorch workload
(`make torch`; --no_yardstick does without), or with --against the same workload of that checkout. Both have two
threads. A round's time is the median of its turns; commands and the importance-weighted bound have one turn. A ratio
is the median over the rounds, with the lowest and the highest in brackets. Let nothing else run meanwhile. Where a
workload fails, or after Ctrl-C, the results are those before it.

Exit code: 0 done, 1 a workload failed, 2 a mistake in the command, 130 Ctrl-C.
"""

import contextlib
import functools
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from benchmarks import results
from benchmarks.workloads import PRESETS, WORKLOADS, python, worker
from nvae_tf import command_line
from nvae_tf.config import check_choice

TURNS = 5  # of each process in a round
WARM_UP_STEPS = 2  # steps before the timed ones, in which allocators and caches settle
CLOCK_STEPS_OF_SLOW = 3  # steps of the yardstick beside a slow workload: one step would be a bad clock
QUANTITIES = ("seconds", "first_step_seconds", "peak_memory_bytes")  # what is measured in every round
EXPLANATION = """
Medians of the rounds, with the lowest and the highest; ratios to the other side. Seconds: of a batch or a command.
First step: after the imports. Peak memory: of the process, of a command the largest of its processes, without a GPU's.
The yardstick is alike only to training on MNIST and CIFAR-10, for others a clock."""

# A workload and a preset; what each process of a round has measured, by its name.
Job, Round = tuple[str, str], dict[str, dict[str, Any]]


def run_round(sides: dict[str, Callable], turns: int, warm_up: int, clock_steps: int = 1, number: int = 1) -> Round:
    """Runs each side in a new process, in turn; who is first changes. ChildProcessError if one fails."""
    order = list(sides)[:: 1 if number % 2 else -1]
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    with contextlib.ExitStack() as stack:
        ask = {}
        for name in order:
            ask[name] = stack.enter_context(sides[name]())
            # Nothing else runs until it has ended: the time to the first step is measured as well.
            ask[name]("ready")
        for turn in range(-warm_up, turns):
            for name in order if turn % 2 else order[::-1]:
                steps = clock_steps if name == "yardstick" else 1
                time = statistics.median(ask[name]("step")["seconds"] for _ in range(steps))
                seconds[name] += [time] if turn >= 0 else []
        return {
            name: ask[name]("summary") | {"seconds": statistics.median(times), "every_second": times}
            for name, times in seconds.items()
        }


def measure(
    job: Job, rounds: int, yardstick: bool, against: str | None = None, turns: int = TURNS, settings: Sequence[str] = ()
) -> list[Round]:
    """Runs the rounds of a workload, of training with changed settings; ChildProcessError if a process fails."""
    name, sides, measured, warm_up, clock_steps = " ".join(job), {}, [], WARM_UP_STEPS, 1
    if WORKLOADS[job[0]].is_slow:
        turns, warm_up, clock_steps = 1, 0, CLOCK_STEPS_OF_SLOW
    with tempfile.TemporaryDirectory() as folder:
        for side, checkout in (("ours", results.ROOT), ("against", against)):
            if checkout:
                # Each has files of its own.
                (place := pathlib.Path(folder, side)).mkdir()
                command = python("benchmarks.workloads", *job, place, *settings)
                sides[side] = functools.partial(worker, f"{name} ({side})", command, checkout)
        if yardstick:
            command = python("benchmarks.workloads", "yardstick", yardstick_of(job), folder)
            sides["yardstick"] = functools.partial(worker, "yardstick", command)
        for number in range(1, rounds + 1):
            measured.append(run_round(sides, turns, warm_up, clock_steps, number))
            times = (f"{side} {numbers['seconds']:.3f} s" for side, numbers in measured[-1].items())
            results.say(f"{name}: round {number} of {rounds}: {', '.join(times)}")
    return measured


def yardstick_of(job: Job) -> str:
    """The preset of the yardstick; it is alike only to training with these two, for others a clock, no more."""
    return "mnist" if job[0].endswith("training") and job[1] == "mnist" else "cifar10"


def summarize(rounds: Sequence[Round]) -> dict[str, list[float]]:
    """Gives each quantity our numbers, one for each round, and their ratios to the numbers of the other side."""
    row = {}
    for name in QUANTITIES:
        row |= {name: [each["ours"].get(name) for each in rounds], f"{name}_ratios": []}
        for side in rounds[0].keys() - {"ours"}:
            # The yardstick is another program: only its time says something.
            if None not in row[name] and (side == "against" or name == "seconds"):
                row[f"{name}_ratios"] = [each["ours"][name] / each[side][name] for each in rounds]
    return row


def main(
    only: Annotated[Sequence[str], "Some of the workloads."] = tuple(WORKLOADS),
    presets: Annotated[Sequence[str] | None, f"Some of {', '.join(PRESETS)}; see above."] = None,
    rounds: Annotated[int, "Pairs of processes.", 1] = 5,
    against: Annotated[str | None, "Another folder of this project to compare with."] = None,
    no_yardstick: results.NoYardstick = False,
    json: results.Json = None,
) -> None:
    """Runs the workloads in turn, and prints the results."""
    for name, chosen, known in (("--only", only, WORKLOADS), ("--presets", presets or (), PRESETS)):
        for each in chosen:
            check_choice(name, each, known)
    if against and not pathlib.Path(against, "benchmarks", "workloads.py").is_file():
        raise ValueError(f"--against={against}: no checkout of this project, it has no benchmarks/workloads.py")
    has_yardstick = not (no_yardstick or against)
    results.check_options(json, has_yardstick)
    jobs = [(name, preset) for name in only for preset in presets or WORKLOADS[name].presets]
    result = {**results.stamp(), "against": against or "", "complete": False, "results": []}
    try:
        for number, job in enumerate(jobs, 1):
            results.say(f"workload {number} of {len(jobs)}: {' '.join(job)}")
            row = {"workload": job[0], "preset": job[1], "batch_size": WORKLOADS[job[0]].batch_sizes[job[1]]}
            row["yardstick"] = yardstick_of(job) if has_yardstick else None
            result["results"].append(row | summarize(measure(job, rounds, has_yardstick, against)))
            result["complete"] = number == len(jobs)
            results.write_json(result, json)
    except ChildProcessError as error:
        sys.exit(f"error: {error}")
    finally:
        print(results.text(result) + f"\n{EXPLANATION}")


if __name__ == "__main__":
    workloads = (f"    {name:<23} {work.what} ({', '.join(work.presets)})\n" for name, work in WORKLOADS.items())
    command_line.run(main, page=__doc__.replace("WORKLOADS\n", "".join([*workloads, "\n"])))
