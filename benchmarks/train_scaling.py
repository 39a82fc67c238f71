"""What a training step takes on one and on several replicas, and what it takes to do with less memory.

    python -m benchmarks.train_scaling [--preset=digits] [--replicas=1,2] [--batch_size=16] [--rounds=5] [--json=FILE]

Rows: every number of replicas with every kind of recomputation (train.recompute), and the fewest replicas with every
number of parts that a batch is cut into (train.accumulate_steps). Replicas are GPUs, or without any, parts of the CPU.
A replica's batch is the same in all rows (weak scaling): efficiency is images/s over those of one replica times the
number of replicas.

Each row has a process of its own; they take turns, --seconds each in each of --rounds rounds. All of them are in memory
meanwhile. Where they do not fit, --alone starts a process anew for every turn; on a machine of its own --rounds=1 is
then enough. The images are random ones in memory (benchmarks.data_throughput reads files). Let nothing else run.
"""

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil

from benchmarks.interleaved import Worker, WorkerEnded
from benchmarks.train_scaling_table import Record, Variant, doubts, figures, table
from benchmarks.train_scaling_worker import LIST_GPUS
from benchmarks.train_step import BUSY, describe_machine, say
from nvae_tf import presets
from nvae_tf.config import PRECISIONS, RECOMPUTATIONS, XLA_USES, TrainConfig

WORKER = (sys.executable, "-m", "benchmarks.train_scaling_worker")
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
# `own_images` leaves the size of images to the data.
PRESETS = sorted({file.stem for file in CONFIGS.glob("*.py")} - {"common", "own_images"})
PARTS = (1, 2, 4)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Returns all figures, in seconds and bytes, as `--json` writes them.

    Raises:
      ValueError: there are fewer GPUs than replicas, or too little memory.
    """
    machine = describe_machine()
    del machine["threads_used"]  # as many as TensorFlow takes
    machine["gpus"] = list_gpus()
    if machine["load_average_at_start"] > BUSY:
        say(f"note: the load average is {machine['load_average_at_start']:.1f}: something else is running, or was")
    replicas = chosen_numbers(options.replicas, len(machine["gpus"]))
    records = {variant: Record() for variant in variants(replicas, options.recompute, options.accumulate_steps)}
    with contextlib.ExitStack() as stack:
        if options.alone:
            take_turns(records, lambda variant: ready(variant, options), options)
        else:
            workers = side_by_side(records, options, stack)
            take_turns(records, lambda variant: contextlib.nullcontext(workers[variant]), options)
    named = ("preset", "batch_size", "precision", "xla", "rounds", "alone")
    return (
        {name: getattr(options, name) for name in named} | figures(records, options.batch_size) | {"machine": machine}
    )


def list_gpus() -> list[str]:
    """Returns the names of the GPUs; this process does not touch them."""
    done = subprocess.run(
        [*WORKER, LIST_GPUS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def chosen_numbers(wanted: list[int] | None, gpus: int) -> list[int]:
    """Returns the numbers of replicas: 1, 2, 4 ... and all GPUs, or on a CPU 1 and 2, if none are asked for."""
    if wanted is None:
        most = gpus or 2
        return sorted({2**power for power in range(most.bit_length())} | {most})
    if gpus and max(wanted) > gpus:
        raise ValueError(f"--replicas={max(wanted)}: there are {gpus} GPUs; ask for no more")
    return wanted


def variants(replicas: list[int], recompute: list[str], parts: list[int]) -> list[Variant]:
    rows = [Variant(count, kind, 1) for count in replicas for kind in recompute]
    rows += [Variant(min(replicas), recompute[0], count) for count in parts]
    return list(dict.fromkeys(rows))


def side_by_side(
    records: dict[Variant, Record], options: argparse.Namespace, stack: contextlib.ExitStack
) -> dict[Variant, Worker]:
    """Starts all workers, one after the other: the time to the first step is a figure as well.

    Raises:
      ValueError: they take more memory than there is.
    """
    free, peaks, workers = psutil.virtual_memory().available, [0], {}
    # The largest first: then it is known early that they do not fit.
    for variant in sorted(records, key=lambda variant: -variant.replicas):
        if sum(peaks) + max(peaks) > free:
            raise ValueError(
                f"{len(workers)} of {len(records)} processes take {sum(peaks) / 1e9:.1f} GB of the {free / 1e9:.1f} GB "
                "that are free, and one more may not fit; take a smaller --batch_size, fewer rows, or --alone"
            )
        with failure_noted(records[variant]):
            workers[variant] = stack.enter_context(ready(variant, options))
            peaks.append(workers[variant].ask("summary")["peak_memory_bytes"])
    return workers


@contextlib.contextmanager
def ready(variant: Variant, options: argparse.Namespace) -> Iterator[Worker]:
    """A variant's worker that has taken its first steps."""
    say(f"{variant}: building the model and running its first steps")
    same = {name: getattr(options, name) for name in ("batch_size", "precision", "xla")}
    strategy = "mirrored" if variant.replicas > 1 else "one_device"
    settings = {"preset": options.preset, "training": variant._asdict() | same | {"strategy": strategy}}
    with Worker(str(variant), [*WORKER, json.dumps(settings)]) as worker:
        worker.ask("step")
        yield worker


def take_turns(records: dict[Variant, Record], worker_of: Callable, options: argparse.Namespace) -> None:
    """Times steps of each variant in turn, round after round; a variant that has failed is left out."""
    for number in range(1, options.rounds + 1):
        say(f"round {number} of {options.rounds}")
        for variant, record in records.items():
            if record.failure is None:
                with failure_noted(record), worker_of(variant) as worker:
                    record.turns.append(steps_for(options.seconds, worker))
                    record.summaries.append(worker.ask("summary"))


def steps_for(seconds: float, worker: Worker) -> list[float]:
    """Returns the seconds of every step that a worker takes in so many seconds, at least one."""
    until, steps = time.monotonic() + seconds, []
    while not steps or time.monotonic() < until:
        steps.append(worker.ask("step")["seconds"])
    return steps


@contextlib.contextmanager
def failure_noted(record: Record) -> Iterator[None]:
    """Lets the other rows go on where a worker has ended: with a GPU's memory, most likely, or its settings."""
    try:
        yield
    except WorkerEnded as error:
        say(str(error))
        record.failure = " ".join(str(error).splitlines()[-2:])


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--preset", choices=PRESETS, default="digits", metavar="NAME", help="whose settings, of configs/ (digits)")
    add("--replicas", type=numbers, metavar="N,N", help="how many (GPUs: 1,2,4 and so on to all of them; CPU: 1,2)")
    add("--recompute", type=words, default=list(RECOMPUTATIONS), metavar="KIND,KIND", help="(none,groups,all)")
    add("--accumulate_steps", type=numbers, metavar="N,N", help="parts of a batch (those of 1,2,4 that divide it)")
    add("--batch_size", type=int, metavar="N", help="images a step and replica (the preset's)")
    add("--precision", choices=PRECISIONS, default="float32", help="(float32)")
    add("--xla", choices=XLA_USES, default="auto", help="(auto)")
    add("--rounds", type=int, default=5, help="turns of each row (5)")
    add("--seconds", type=float, default=2.0, help="length of a turn; one step at least (2)")
    add("--alone", action="store_true", help="one process at a time, started anew for every turn")
    add("--json", type=pathlib.Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args(arguments)
    if options.batch_size is None:
        options.batch_size = presets.preset(options.preset).train.batch_size
    if options.accumulate_steps is None:
        options.accumulate_steps = [parts for parts in PARTS if options.batch_size % parts == 0]
    try:
        check_arguments(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def check_arguments(options: argparse.Namespace) -> None:
    """Finds before anything starts what no row could follow.

    Raises:
      ValueError: see the message.
    """
    same = {name: getattr(options, name) for name in ("batch_size", "precision", "xla")}
    for parts in options.accumulate_steps:
        TrainConfig(accumulate_steps=parts, **same)
    for kind in options.recompute:
        TrainConfig(recompute=kind)
    if options.xla == "jit" and options.replicas != [1]:
        raise ValueError("--xla=jit: XLA can't compile the whole step of several replicas; add --replicas=1")
    if options.rounds < 1 or options.seconds <= 0:
        raise ValueError("--rounds must be at least 1, --seconds more than 0")
    if options.json and (options.json.is_dir() or not options.json.absolute().parent.is_dir()):
        raise ValueError(f"--json={options.json}: not a file in an existing folder")


def numbers(text: str) -> list[int]:
    found = [int(number) for number in words(text)]
    if min(found) < 1:
        raise ValueError
    return found


def words(text: str) -> list[str]:
    return text.split(",")


def main(arguments: list[str] | None = None) -> None:
    options = parse_arguments(arguments)
    try:
        result = measure(options)
    except ValueError as error:
        sys.exit(f"benchmarks.train_scaling: {error}")
    except KeyboardInterrupt:
        sys.exit("benchmarks.train_scaling: interrupted, no figures")
    print(table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    for note in doubts(result["rows"]):
        say(f"note: {note}")
    if all(row["failure"] for row in result["rows"]):
        sys.exit("benchmarks.train_scaling: no row has figures")


if __name__ == "__main__":
    main()
