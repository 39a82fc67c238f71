"""What a training step takes on one and on several replicas, and what it takes to do with less memory.

    python -m benchmarks.train_scaling [--preset=digits] [--replicas=1,2] [--batch_size=16] [--rounds=5] [--json=FILE]

Rows: every number of replicas with every kind of gradient checkpointing (train.recompute), and the fewest replicas with
every number of microbatches (train.accumulate_steps). Replicas are GPUs, or without any, shares of the CPU. A replica's
batch is the same in all rows (weak scaling): efficiency is images/s over those of one replica times the number of
replicas. `peak_memory_bytes` is TensorFlow's on the GPU with most in use, or on a CPU that of the process.

Each row has a process of its own; they take turns, --seconds each in each of --rounds rounds. All are in memory
meanwhile; a row for which there is no room has no results: --alone starts a process anew for every turn. The images are
random ones in memory (benchmarks.data_throughput reads files). Let nothing else run.
"""

import argparse
import functools
import itertools
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import results
from benchmarks.all import Measured, run_round
from benchmarks.results import say
from benchmarks.workloads import Worker, WorkerEnded, python
from nvae_tf import presets
from nvae_tf.config import PRECISIONS, RECOMPUTATIONS, XLA_USES, TrainConfig
from nvae_tf.errors import exit_on_user_error

_NAMES_OF_GPUS = """
import json, tensorflow as tf
details, gpus = tf.config.experimental.get_device_details, tf.config.list_physical_devices("GPU")
print(json.dumps([details(gpu).get("device_name", gpu.name) for gpu in gpus]))
"""


class Variant(NamedTuple):
    """The settings of the group `train` in which one row differs from the others."""

    replicas: int
    recompute: str
    accumulate_steps: int

    def __str__(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self._asdict().items())


class LastingWorker(Worker):
    """A worker that leaves the others their turns when it has ended: from then on it answers with the reason."""

    _failure = None

    def ask(self, word: str) -> dict[str, Any]:
        try:
            return super().ask(word) if self._failure is None else self._failure
        except WorkerEnded as error:  # for want of a GPU's memory, most likely, or by its settings
            say(str(error))
            self._failure = {"seconds": math.nan, "failure": error.reason()}
            return self._failure


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Returns all results, in seconds and bytes; ValueError for fewer GPUs than replicas."""
    # In a process of its own, so that others can use them.
    done = subprocess.run([sys.executable, "-c", _NAMES_OF_GPUS], capture_output=True, text=True, check=True)
    gpus = json.loads(done.stdout.splitlines()[-1])
    rows = variants(chosen_numbers(options.replicas, len(gpus)), options.recompute, options.accumulate_steps)
    same = {name: getattr(options, name) for name in ("batch_size", "precision", "xla")}

    def started(variant: Variant) -> Worker:
        say(f"{variant}: building the model and running its first steps")
        strategy = "mirrored" if variant.replicas > 1 else "one_device"
        settings = json.dumps(variant._asdict() | same | {"strategy": strategy})
        command = python("benchmarks.workloads", "variant", options.preset, settings, options.seconds)
        return LastingWorker(str(variant), command)

    sides = {variant: functools.partial(started, variant) for variant in rows}
    named = {"preset": options.preset, "rounds": options.rounds, "alone": options.alone, "gpus": gpus} | same
    return named | {"rows": rows_of(take_turns(sides, options.rounds, options.alone), options.batch_size)}


def chosen_numbers(wanted: list[int] | None, gpus: int) -> list[int]:
    """Returns the numbers of replicas: 1, 2, 4 ... and all GPUs, or on a CPU 1 and 2, if none are asked for."""
    if wanted is None:
        most = gpus or 2
        return sorted({2**power for power in range(most.bit_length())} | {most})
    if gpus and max(wanted) > gpus:
        raise ValueError(f"--replicas={max(wanted)}: there are {gpus} GPUs; ask for no more")
    return wanted


def variants(replicas: list[int], recompute: list[str], microbatches: list[int]) -> list[Variant]:
    rows = [Variant(count, kind, 1) for count in replicas for kind in recompute]
    rows += [Variant(min(replicas), recompute[0], count) for count in microbatches]
    return list(dict.fromkeys(rows))


def take_turns(sides: dict[Variant, Callable[[], Worker]], rounds: int, alone: bool) -> dict[Variant, list[Measured]]:
    """What each variant takes in its turns: of one process for all rounds, or `alone` of one for each."""
    if not alone:
        return {variant: [measured] for variant, measured in run_round(sides, rounds, warm_up=0).items()}
    turns: dict[Variant, list[Measured]] = {variant: [] for variant in sides}
    for number, variant in itertools.product(range(1, rounds + 1), sides):
        if not any("failure" in measured.summary for measured in turns[variant]):
            say(f"round {number} of {rounds}: {variant}")
            turns[variant].append(run_round({variant: sides[variant]}, 1, warm_up=0)[variant])
    return turns


def rows_of(measured: dict[Variant, list[Measured]], batch_size: int) -> list[dict[str, Any]]:
    """Returns every variant's results; where its worker has failed, little more than why."""
    rows = {}
    for variant, parts in measured.items():
        images, summaries = variant.replicas * batch_size, [part.summary for part in parts]
        rows[variant] = row = variant._asdict() | {"images_a_step": images, "failure": summaries[-1].get("failure")}
        if row["failure"]:
            continue
        turns = [seconds for part in parts for seconds in part.seconds]
        row |= {"first_step_seconds": statistics.median(each["first_step_seconds"] for each in summaries)}
        row |= {name: summaries[-1][name] for name in ("graph_nodes", "skipped_steps")}
        row |= {"step_seconds": statistics.median(turns), "every_step_seconds": turns}
        row |= {"images_per_second": images / row["step_seconds"]}
        peaks = [max(summary["gpu_peak_bytes"], default=summary["peak_memory_bytes"]) for summary in summaries]
        row |= {"peak_memory_bytes": max(peaks)}
    for variant, row in rows.items():
        rate = row.get("images_per_second")
        one = rows.get(variant._replace(replicas=1), {}).get("images_per_second")
        row["efficiency"] = rate / (variant.replicas * one) if rate and one else None
    return list(rows.values())


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    # `own_images` leaves the size of images to the data.
    known = sorted(set(presets.preset_files()) - {"own_images"})
    parser = results.benchmark_parser("benchmarks.train_scaling", __doc__)
    add = parser.add_argument
    add("--preset", choices=known, default="digits", metavar="NAME", help="whose settings, of configs/ (digits)")
    add("--replicas", type=numbers, metavar="N,N", help="how many (GPUs: 1,2,4 and so on to all of them; CPU: 1,2)")
    kinds = results.names(RECOMPUTATIONS)
    add("--recompute", type=kinds, default=list(RECOMPUTATIONS), metavar="KIND,KIND", help="(none,groups,all)")
    add("--accumulate_steps", type=numbers, metavar="N,N", help="microbatches (those of 1,2,4 that divide the batch)")
    add("--batch_size", type=int, metavar="N", help="images a step and replica (the preset's)")
    add("--precision", choices=PRECISIONS, default="float32", help="(float32)")
    add("--xla", choices=XLA_USES, default="auto", help="(auto)")
    add("--rounds", type=results.at_least(1), default=5, help="turns of each row (5)")
    add("--seconds", type=results.at_least(0.01, float), default=2.0, help="length of a turn; one step at least (2)")
    add("--alone", action="store_true", help="one process at a time, started anew for every turn")
    options = parser.parse_args(arguments)
    options.batch_size = options.batch_size or presets.preset(options.preset).train.batch_size
    options.accumulate_steps = options.accumulate_steps or [n for n in (1, 2, 4) if options.batch_size % n == 0]
    try:
        # Before anything starts: what no row could follow.
        for count in options.accumulate_steps:
            TrainConfig(accumulate_steps=count, batch_size=options.batch_size)
        if options.xla == "jit" and options.replicas != [1]:
            raise ValueError("--xla=jit: XLA can't compile the whole step of several replicas; add --replicas=1")
    except ValueError as error:
        parser.error(str(error))
    return options


def numbers(text: str) -> list[int]:
    return [results.at_least(1)(number) for number in text.split(",")]


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with exit_on_user_error():
        result = results.run(options, measure)
    if all(row["failure"] for row in result["rows"]):
        sys.exit("benchmarks.train_scaling: no row has results")


if __name__ == "__main__":
    main()
