"""What the benchmarks measure, by name, and the process of one workload.

    python -m benchmarks.workloads WORKLOAD PRESET FOLDER      serves a workload, see `benchmarks.all`
    python -m benchmarks.workloads yardstick PRESET            serves the workload of benchmarks/torch_yardstick.py
    python -m benchmarks.workloads prepare WHAT PRESET FOLDER  writes what a workload starts from

A workload is a function of (preset, batch size, folder of its files) that builds everything and returns a function
that does the work once. TensorFlow is loaded then, not before. Weights are the first ones: time and memory do not
depend on them.
"""

import argparse
import contextlib
import functools
import importlib
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks import interleaved
from nvae_tf import presets

MANY_ROUNDS = 15
# Of slow workloads, a turn of which takes up to minutes.
MOST_ROUNDS_OF_SLOW = 3
IMPORTANCE_SAMPLES = 100
SAMPLES_A_BATCH = 16
# Quick work is timed several times at once.
SECONDS_AT_A_TIME, MOST_AT_A_TIME = 0.5, 20
# Of the prepared run; any, but published files are of a step, too.
_STEP = 1000
# Their import is no part of the time to the first step.
_MODULES = ("models", "optimization", "data.spec", "training.strategy", "generation.sampling", "evaluation.likelihood")
# The batch sizes of MNIST and CIFAR-10 are those of the published code's times. CelebA's 16 would need 15 GiB.
BATCH_SIZES = {"digits": 60, "mnist": 16, "cifar10": 4, "celeba64": 4}
PRESETS = tuple(BATCH_SIZES)
# It, and the yardstick, can't do without PyTorch.
NEED_TORCH = ("import",)


def python(*arguments: str | pathlib.Path) -> list[str]:
    return [sys.executable, "-m", *map(str, arguments)]


def configure_process() -> None:
    """TensorFlow's settings as the commands have them, and threads as the yardstick has; before its first use."""
    import tensorflow as tf

    from nvae_tf.training.strategy import configure_runtime

    configure_runtime()
    tf.config.threading.set_intra_op_parallelism_threads(interleaved.THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(interleaved.THREADS)


def config_of(preset: str) -> Any:
    from nvae_tf.data.spec import complete_config

    return complete_config(presets.preset(preset))


def untrained_model(preset: str) -> Any:
    from nvae_tf.models import NVAE

    configure_process()
    return NVAE(config_of(preset).model)


def random_images(model_config: Any, batch_size: int) -> Any:
    """Random images `[batch, height, width, channels]` in [0, 1], on the levels that the data has."""
    import tensorflow as tf

    shape = [batch_size, model_config.image_height, model_config.image_width, model_config.image_channels]
    levels = 2 if model_config.likelihood == "bernoulli" else 2**model_config.num_bits
    drawn = tf.random.stateless_uniform(shape, seed=[0, 0], maxval=levels, dtype=tf.int32)
    return tf.cast(drawn, tf.float32) / (levels - 1)


def graph_nodes(graph: Any) -> int:
    """The nodes of a graph's definition, those of its functions included."""
    return len(graph.node) + sum(len(function.node_def) for function in graph.library.function)


class Training:
    """The training step that `fit` runs, on a batch of random images; with gradient checkpointing or without."""

    def __init__(self, preset: str, batch_size: int, folder: pathlib.Path, recompute: str = "none"):
        import tensorflow as tf

        from nvae_tf.models.nvae import NVAE
        from nvae_tf.optimization.adamax import NVAEAdamax

        configure_process()
        config = config_of(preset)
        self.model = NVAE(config.model, config.objective, recompute=recompute)
        self.model.compile(optimizer=NVAEAdamax(learning_rate=config.optimizer.learning_rate))
        self.model.optimizer.build(self.model.trainable_variables)
        self.images = random_images(config.model, batch_size)
        self._step = tf.function(self.model.train_step, autograph=False)

    def __call__(self) -> None:
        for value in self._step(self.images).values():
            value.numpy()

    def sizes(self) -> dict[str, int]:
        """Sizes of the graph and the model; takes memory of its own."""
        graph = self._step.get_concrete_function(self.images).graph.as_graph_def()
        return {
            "graph_nodes": graph_nodes(graph),
            "graph_nodes_at_top": len(graph.node),
            "variables": len(self.model.variables),
            "optimizer_variables": len(self.model.optimizer.variables),
            "parameters": sum(weight.shape.num_elements() for weight in self.model.trainable_variables),
        }


def sampling(preset: str, batch_size: int, folder: pathlib.Path) -> Callable:
    from nvae_tf.generation.sampling import ImageGenerator

    model = untrained_model(preset)
    generator = ImageGenerator(model)
    # The generator does not keep the model alive.
    return lambda model=model: generator.generate(batch_size)


def nelbo(preset: str, batch_size: int, folder: pathlib.Path, importance_samples: int = 0) -> Callable:
    from nvae_tf.evaluation.likelihood import LikelihoodEvaluator

    model = untrained_model(preset)
    images = random_images(model.config, batch_size)
    evaluator = LikelihoodEvaluator(model, batch_size, importance_samples)
    return lambda: evaluator.evaluate_batch(images, seed=0, first=0)


def saved_model_sampling(preset: str, batch_size: int, folder: pathlib.Path) -> Callable:
    from benchmarks.exported_sampling import sampling_session

    configure_process()
    # Open as long as this process lives.
    return sampling_session(contextlib.ExitStack(), folder / "saved_model", batch_size)


def command(module: str, flag: str, source: str) -> Callable:
    """The workload of a command that is run again and again; its output is removed before. Returns its peak memory."""

    def made(preset: str, batch_size: None, folder: pathlib.Path) -> Callable[[], int]:
        def run() -> int:
            shutil.rmtree(folder / "output", ignore_errors=True)
            return run_python(module, f"{flag}={folder / source}", f"--output={folder / 'output'}")

        return run

    return made


def run_python(module: str, *arguments: str) -> int:
    """The peak memory in bytes of a module's command: of its largest process. Ends this one if it fails."""
    process = subprocess.Popen(python(module, *arguments), stdin=subprocess.DEVNULL)
    # Of this child alone, while getrusage has the largest of all that there ever were.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"The command {module} {interleaved.how_it_ended(process.returncode)}.")
    # macOS counts bytes.
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def prepare_run(preset: str, folder: pathlib.Path) -> None:
    """A run folder `run` with a checkpoint of the first weights and of moments that are zero."""
    from nvae_tf.config import config_to_json
    from nvae_tf.files import atomic_write
    from nvae_tf.training.checkpoints import TrainingState
    from nvae_tf.training.run import model_for_training
    from nvae_tf.training.run_folder import RunFolder

    configure_process()
    config, run = config_of(preset), RunFolder(folder / "run")
    made = model_for_training(config, steps_per_epoch=_STEP, total_steps=100 * _STEP)
    made.model.optimizer.build(made.model.trainable_variables)
    made.model.data_initialised.assign(1.0)
    made.model.optimizer.iterations.assign(_STEP)
    TrainingState(run.checkpoints, made.model, made.model.optimizer, keep=1, others=made.variables).save(_STEP)
    atomic_write(run.config_file, config_to_json(config))


def prepare_published(preset: str, folder: pathlib.Path) -> None:
    """A file `published.pt` with the weights and moments of that run, without what only this project's files have."""
    import torch

    from nvae_tf.published.torch_file import OWN_KEY

    prepare_run(preset, folder)
    file = folder / "published.pt"
    run_python("export.export_torch_checkpoint", f"--workdir={folder / 'run'}", f"--output={file}")
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(file, weights_only=True)
    del content[OWN_KEY]
    torch.save(content, file)


def prepare_saved_model(preset: str, folder: pathlib.Path) -> None:
    """A folder `saved_model` that can do nothing but draw, its weights folded."""
    from benchmarks.exported_sampling import write_sampling
    from nvae_tf.layers import FoldedPass, folded_weights

    model = untrained_model(preset)
    folded = folded_weights(model.stacks, "float32")
    write_sampling(model, lambda: FoldedPass(traced_inline=True, folded=folded), folder / "saved_model")


PREPARED = {"run": prepare_run, "published": prepare_published, "saved_model": prepare_saved_model}


class Workload(NamedTuple):
    """How a workload is measured."""

    what: str  # what one turn does, for the table
    made_by: Callable[..., Callable]
    batch_sizes: dict[str, int | None]  # images at a time for every possible preset; None where there is no batch
    presets: tuple[str, ...] = ("mnist", "cifar10")  # if none are named
    prepared: str | None = None  # what is written before
    is_slow: bool = False  # few turns, and none to warm up
    is_command: bool = False  # a turn is a complete command in a process anew, so that there is no first step
    yardstick_of_preset: bool = False  # whether the yardstick of the same name is its clock, where there is one

    def yardstick(self, preset: str) -> str:
        """The preset of `benchmarks.torch_yardstick` that is the clock; there is none for every architecture."""
        return "mnist" if self.yardstick_of_preset and preset == "mnist" else "cifar10"


_samples, _command_of = dict.fromkeys(BATCH_SIZES, SAMPLES_A_BATCH), {"is_slow": True, "is_command": True}
_export = command("export.export_saved_model", "--workdir", "run")
_import_module = "export.import_torch_checkpoint"
_import = command(_import_module, "--checkpoint", "published.pt")
_bound = functools.partial(nelbo, importance_samples=IMPORTANCE_SAMPLES)
_recomputed = functools.partial(Training, recompute="all")
WORKLOADS = {
    "training": Workload("training step", Training, BATCH_SIZES, PRESETS[1:], yardstick_of_preset=True),
    "recomputed_training": Workload(
        "training step, train.recompute=all", _recomputed, BATCH_SIZES, yardstick_of_preset=True
    ),
    "sampling": Workload("sampling, the model in Python", sampling, _samples),
    "nelbo": Workload("NELBO of a batch", nelbo, BATCH_SIZES),
    "importance_weighted": Workload(
        f"importance-weighted bound of a batch, K = {IMPORTANCE_SAMPLES}", _bound, BATCH_SIZES, is_slow=True
    ),
    "saved_model_sampling": Workload(
        "sampling, the exported SavedModel", saved_model_sampling, _samples, prepared="saved_model"
    ),
    "export": Workload(
        "export.export_saved_model, checked", _export, dict.fromkeys(PRESETS), prepared="run", **_command_of
    ),
    # A published file of the digits can't be made: they are no data set that the form knows.
    "import": Workload(
        _import_module, _import, dict.fromkeys(PRESETS[1:3]), ("cifar10",), prepared="published", **_command_of
    ),
}


def prepared(name: str, preset: str, folder: str) -> Callable[[], Callable]:
    """Writes what a workload starts from into an empty folder, and returns the function that makes it."""
    workload = WORKLOADS[name]
    if workload.prepared:
        run_python("benchmarks.workloads", "prepare", workload.prepared, preset, folder)
    return functools.partial(workload.made_by, preset, workload.batch_sizes[preset], pathlib.Path(folder))


def serve_workload(name: str, preset: str, folder: str) -> None:
    """Serves one of `WORKLOADS` step by step: its work once, or several times if it is quick."""
    make, is_command, start = prepared(name, preset, folder), WORKLOADS[name].is_command, time.perf_counter()
    summary, times = {"import_seconds": None, "first_step_seconds": None}, 1 if is_command else None
    if is_command:
        run, summary["peak_memory_bytes"] = make(), 0
    else:
        for module in _MODULES:
            importlib.import_module(f"nvae_tf.{module}")
        imported = time.perf_counter()
        run = make()
        run()
        summary = {"import_seconds": imported - start, "first_step_seconds": time.perf_counter() - imported}

    def seconds(count: int) -> float:
        begun = time.perf_counter()
        for _ in range(count):
            result = run()
        if is_command:
            summary["peak_memory_bytes"] = max(summary["peak_memory_bytes"], result)
        return (time.perf_counter() - begun) / count

    def step() -> float:
        nonlocal times
        if times is None:
            once = seconds(1)
            times = min(max(round(SECONDS_AT_A_TIME / once), 1), MOST_AT_A_TIME)
            if times == 1:
                return once
        return seconds(times)

    interleaved.serve(step, lambda: summary | (run.sizes() if isinstance(run, Training) else {}))


def main(name: str, *arguments: str) -> None:
    if name == "yardstick":
        import torch

        from benchmarks import torch_yardstick

        torch.set_num_threads(interleaved.THREADS)
        interleaved.serve(torch_yardstick.make_step(*arguments), summary=dict)
    elif name == "prepare":
        what, preset, folder = arguments
        PREPARED[what](preset, pathlib.Path(folder))
    else:
        serve_workload(name, *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
