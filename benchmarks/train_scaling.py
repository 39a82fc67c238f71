"""What a training step takes on one and on several replicas, and what it takes to do with less memory.

    python -m benchmarks.train_scaling [--preset=digits] [--replicas=1,2] [--batch_size=16] [--rounds=5] [--json=FILE]

Rows: every number of replicas with every kind of gradient checkpointing (train.recompute), and the fewest replicas with
every number of microbatches (train.accumulate_steps). Replicas are GPUs, or without any, shares of the CPU. A replica's
batch is the same in all rows (weak scaling): efficiency is images/s over those of one replica times the number of
replicas.

Each row has a process of its own; they take turns, --seconds each in each of --rounds rounds. All of them are in memory
meanwhile. Where they do not fit, --alone starts a process anew for every turn; on a machine of its own --rounds=1 is
then enough. The images are random ones in memory (benchmarks.data_throughput reads files). Let nothing else run.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import psutil

from benchmarks import results
from benchmarks.interleaved import UNEVEN, Worker, WorkerEnded, say, serve
from benchmarks.workloads import graph_nodes, python, random_images
from nvae_tf import presets
from nvae_tf.config import PRECISIONS, RECOMPUTATIONS, XLA_USES, TrainConfig
from nvae_tf.errors import exit_on_user_error

# In the place of options: the names of the GPUs, or the process of one variant with its settings, as JSON.
LIST_GPUS, SERVE = "list_gpus", "serve"
MICROBATCHES = (1, 2, 4)
# Quick steps are timed several at a time: training waits for an accelerator at every tenth step, not after each.
MOST_STEPS_AT_A_TIME, SECONDS_AT_A_TIME = 10, 0.25


class Variant(NamedTuple):
    """The settings of the group `train` in which one row differs from the others."""

    replicas: int
    recompute: str
    accumulate_steps: int

    def __str__(self) -> str:
        return f"replicas={self.replicas} recompute={self.recompute} accumulate_steps={self.accumulate_steps}"


@dataclasses.dataclass
class Record:
    """The measurements of a variant: seconds a step in every turn, the worker's summaries, or why there are none."""

    turns: list[list[float]] = dataclasses.field(default_factory=list)
    summaries: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    failure: str | None = None


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Returns all results, in seconds and bytes; ValueError for fewer GPUs than replicas, or too little memory."""
    stamp = results.stamp()
    command = python("benchmarks.train_scaling", LIST_GPUS)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    gpus = stamp["machine"]["gpus"] = json.loads(done.stdout.splitlines()[-1])
    replicas = chosen_numbers(options.replicas, len(gpus))
    records = {variant: Record() for variant in variants(replicas, options.recompute, options.accumulate_steps)}
    with contextlib.ExitStack() as stack:
        if options.alone:
            take_turns(records, lambda variant: ready(variant, options), options)
        else:
            workers = side_by_side(records, options, stack)
            take_turns(records, lambda variant: contextlib.nullcontext(workers[variant]), options)
    named = {name: getattr(options, name) for name in ("preset", "batch_size", "precision", "xla", "rounds", "alone")}
    return stamp | named | {"rows": rows_of(records, options.batch_size)}


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


def side_by_side(
    records: dict[Variant, Record], options: argparse.Namespace, stack: contextlib.ExitStack
) -> dict[Variant, Worker]:
    """Starts all workers, one after the other; ValueError if they take more memory than there is."""
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
    training = variant._asdict() | same | {"strategy": "mirrored" if variant.replicas > 1 else "one_device"}
    settings = json.dumps({"preset": options.preset, "training": training})
    with Worker(str(variant), python("benchmarks.train_scaling", SERVE, settings)) as worker:
        worker.ask("step")
        yield worker


def take_turns(records: dict[Variant, Record], worker_of: Callable, options: argparse.Namespace) -> None:
    """Times steps of each variant for some seconds in turn, at least one; a variant that has failed is left out."""
    for number in range(1, options.rounds + 1):
        say(f"round {number} of {options.rounds}")
        for variant, record in records.items():
            if record.failure is None:
                with failure_noted(record), worker_of(variant) as worker:
                    until, steps = time.monotonic() + options.seconds, []
                    while not steps or time.monotonic() < until:
                        steps.append(worker.ask("step")["seconds"])
                    record.turns.append(steps)
                    record.summaries.append(worker.ask("summary"))


@contextlib.contextmanager
def failure_noted(record: Record) -> Iterator[None]:
    """Lets the other rows go on where a worker has ended: with a GPU's memory, most likely, or its settings."""
    try:
        yield
    except WorkerEnded as error:
        say(str(error))
        record.failure = error.reason()


def rows_of(records: dict[Variant, Record], batch_size: int) -> list[dict[str, Any]]:
    """Returns every variant's results; where its worker has failed, little more than why."""
    rows = {}
    for variant, record in records.items():
        images, turns, summaries = variant.replicas * batch_size, record.turns, record.summaries
        rows[variant] = row = variant._asdict() | {"images_a_step": images, "failure": record.failure}
        if not turns or not summaries:
            continue
        for name in ("trace_seconds", "first_step_seconds", "memory_before_first_step_bytes"):
            row[name] = float(np.median([summary[name] for summary in summaries]))
        for name in ("graph_nodes", "skipped_steps"):
            row[name] = max(summary[name] for summary in summaries)
        for ending, rank in (("", 50), ("_10_percent", 10), ("_90_percent", 90)):
            row[f"step_seconds{ending}"] = float(np.percentile(np.concatenate(turns), rank))
        row["images_per_second"] = images / row["step_seconds"]
        # Of the GPU with the highest peak, or without GPUs of the process.
        peaks = [max(summary["gpu_peak_bytes"], default=summary["peak_memory_bytes"]) for summary in summaries]
        row.update(peak_memory_bytes=max(peaks), every_step_seconds=turns)
    for variant, row in rows.items():
        rate = row.get("images_per_second")
        one = rows.get(variant._replace(replicas=1), {}).get("images_per_second")
        row["efficiency"] = rate / (variant.replicas * one) if rate and one else None
    return list(rows.values())


def table(result: dict[str, Any]) -> str:
    shown = {name: result[name] for name in ("preset", "batch_size", "precision", "xla", "rounds", "rows")}
    note = "Efficiency: images/s over replicas x the images/s of 1 replica, each with the same batch (weak scaling)"
    gpus, cores = result["machine"]["gpus"], result["machine"]["cores"]
    if gpus:
        if result["xla"] == "auto":
            note += "; xla=auto compiles the whole step of 1 replica, and that of several piece by piece"
        memory = "Memory: TensorFlow's, of the GPU with most in use; what CUDA itself takes is not in it."
        memory += f"\n\n{len(gpus)} x {gpus[0]}"
    else:
        note += f"; here replicas share the CPU's {cores} cores, so that 2 can hardly have more than 50%"
        memory = "Memory: of the process, with all replicas, TensorFlow itself and the graph."
    return "\n".join([results.text(shown), "", f"{note}.", memory, *results.place(result)])


def doubts(rows: list[dict[str, Any]]) -> list[str]:
    found = []
    for row in (row for row in rows if row["failure"] is None):
        name = Variant(*(row[field] for field in Variant._fields))
        if row["step_seconds_90_percent"] > UNEVEN * row["step_seconds_10_percent"]:
            found.append(f"{name}: the steps are uneven; something else was running, so measure again")
        if row["skipped_steps"]:
            found.append(f"{name}: {row['skipped_steps']:.0f} steps were skipped, and take less time than others")
    return found


class ScaledStep:
    """The training step of a run with some settings `train.*`, on a batch of random images for all its replicas."""

    def __init__(self, preset: str, training: dict[str, Any]):
        import tensorflow as tf

        from nvae_tf.data.spec import complete_config
        from nvae_tf.training.run import Images, RunLength, new_run
        from nvae_tf.training.strategy import chosen_replicas, compiles_whole_step, configure_runtime, step_function

        start = time.perf_counter()
        settings = presets.preset(preset)
        settings.train.update(training)
        config = complete_config(settings)
        self.replicas = chosen_replicas(config.train)
        configure_runtime()
        compiled = compiles_whole_step(config.train.xla, self.replicas.count)
        # The learning rate alone knows how long a run is; so far from its end it is still small.
        length = RunLength(steps_per_epoch=1000, total_steps=1_000_000)
        run = new_run(config, length, Images(config.data, None, None), replicas=self.replicas)
        with tf.device("CPU:0"):  # where a run's batches come from
            self.images = random_images(config.model, run.images_a_step)
        self._step = step_function(self.replicas.strategy, run.model, compiled)
        self._graph = self._step.get_concrete_function(self.replicas.divided(self.images)).graph
        trace_seconds = time.perf_counter() - start
        in_use = [memory["current"] for memory in memory_of_gpus()]
        before = max(in_use, default=psutil.Process().memory_info().rss)
        self.steps_at_a_time = 1
        self.run()
        self._summary = {
            "memory_before_first_step_bytes": before,
            "trace_seconds": trace_seconds,
            "first_step_seconds": time.perf_counter() - start,
        }
        self.run()
        self.steps_at_a_time = round(min(max(SECONDS_AT_A_TIME / self.run(), 1), MOST_STEPS_AT_A_TIME))

    def run(self) -> float:
        """Takes some steps, waits for the last, and returns the seconds of one."""
        start = time.perf_counter()
        for _ in range(self.steps_at_a_time):
            metrics = self._step(self.replicas.divided(self.images))
        for name, value in metrics.items():
            for local in self.replicas.strategy.experimental_local_results(value):
                number = float(local.numpy())
            if name == "skipped_steps":
                self.skipped_steps = number
        return (time.perf_counter() - start) / self.steps_at_a_time

    def summary(self) -> dict[str, Any]:
        """What is no time of a turn."""
        return self._summary | {
            "gpu_peak_bytes": [memory["peak"] for memory in memory_of_gpus()],
            "graph_nodes": graph_nodes(self._graph.as_graph_def()),
            "skipped_steps": self.skipped_steps,
        }


def memory_of_gpus() -> list[dict[str, int]]:
    """Bytes in use, `current` and `peak`, of each GPU that trains."""
    import tensorflow as tf

    count = len(tf.config.list_logical_devices("GPU"))
    return [tf.config.experimental.get_memory_info(f"GPU:{index}") for index in range(count)]


def print_gpus() -> None:
    """Prints the names of the GPUs that TensorFlow finds; in a process of its own, so that others can use them."""
    import tensorflow as tf

    details = tf.config.experimental.get_device_details
    gpus = tf.config.list_physical_devices("GPU")
    print(json.dumps([details(gpu).get("device_name", gpu.name) for gpu in gpus]))


def serve_variant(settings: str) -> None:
    # Several processes share a GPU: none may take all of its memory at once.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with exit_on_user_error():
        step = ScaledStep(**json.loads(settings))
    serve(step.run, step.summary)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    # `own_images` leaves the size of images to the data.
    known = sorted(set(presets.preset_files()) - {"own_images"})
    parser = results.benchmark_parser("train_scaling", __doc__)
    add = parser.add_argument
    add("--preset", choices=known, default="digits", metavar="NAME", help="whose settings, of configs/ (digits)")
    add("--replicas", type=numbers, metavar="N,N", help="how many (GPUs: 1,2,4 and so on to all of them; CPU: 1,2)")
    kinds = {"type": lambda text: text.split(","), "default": list(RECOMPUTATIONS)}
    add("--recompute", metavar="KIND,KIND", help="(none,groups,all)", **kinds)
    add("--accumulate_steps", type=numbers, metavar="N,N", help="microbatches (those of 1,2,4 that divide the batch)")
    add("--batch_size", type=int, metavar="N", help="images a step and replica (the preset's)")
    add("--precision", choices=PRECISIONS, default="float32", help="(float32)")
    add("--xla", choices=XLA_USES, default="auto", help="(auto)")
    add("--rounds", type=results.at_least(1), default=5, help="turns of each row (5)")
    add("--seconds", type=results.positive_seconds, default=2.0, help="length of a turn; one step at least (2)")
    add("--alone", action="store_true", help="one process at a time, started anew for every turn")
    options = parser.parse_args(arguments)
    if options.batch_size is None:
        options.batch_size = presets.preset(options.preset).train.batch_size
    if options.accumulate_steps is None:
        options.accumulate_steps = [count for count in MICROBATCHES if options.batch_size % count == 0]
    try:
        # Before anything starts: what no row could follow.
        same = {name: getattr(options, name) for name in ("batch_size", "precision", "xla")}
        for count in options.accumulate_steps:
            TrainConfig(accumulate_steps=count, **same)
        for kind in options.recompute:
            TrainConfig(recompute=kind)
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
        result = measure(options)
    print(table(result))
    results.write_json(result, options.json)
    for note in doubts(result["rows"]):
        say(f"note: {note}")
    if all(row["failure"] for row in result["rows"]):
        sys.exit("benchmarks.train_scaling: no row has results")


if __name__ == "__main__":
    if sys.argv[1:2] == [LIST_GPUS]:
        print_gpus()
    elif sys.argv[1:2] == [SERVE]:
        serve_variant(sys.argv[2])
    else:
        main()
