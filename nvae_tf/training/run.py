"""A run, made from its settings: its images, its length and its model, which may start from another's weights."""

import collections
import json
import os
import pathlib
import platform
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from nvae_tf.config import ExperimentConfig, __version__, resolve_lengths
from nvae_tf.data.pipeline import steps_per_epoch
from nvae_tf.data.sources import ImageSource, holds_out, load_split, place_of
from nvae_tf.data_sets import check_model_fits
from nvae_tf.files import atomic_write
from nvae_tf.layers import DataDependentConvolution
from nvae_tf.models import NVAE
from nvae_tf.optimization import LoweredRate
from nvae_tf.progress import StatusLine, counted
from nvae_tf.published.torch_file import from_torch_checkpoint
from nvae_tf.runs.checkpoints import named_weights, steps_of_files
from nvae_tf.runs.loading import load_run, model_for_training
from nvae_tf.runs.run_folder import ImageCounts, RunFolder, check_class_names, check_continues, read_run_config
from nvae_tf.training.strategy import Replicas


class Run(NamedTuple):
    """The parts of a run, besides its folder."""

    config: ExperimentConfig  # complete, see `resolve_lengths`; `objective.total_steps` is the run's length
    steps_per_epoch: int  # an epoch's last partial batch is dropped
    train_images: ImageSource
    test_images: ImageSource
    held_out: bool  # whether the test images were drawn at random
    model: NVAE  # compiled, with all its weights
    schedule: LoweredRate  # the learning rate of a step
    replicas: Replicas  # the devices that train

    @property
    def images_a_step(self) -> int:
        """The number of images that all replicas take in one step."""
        return self.config.train.batch_size * self.replicas.count


def run_of_folder(config: ExperimentConfig, folder: RunFolder, replicas: Replicas) -> Run:
    """The run of a folder, new or to be continued, with its images; writes nothing. ValueError: settings don't fit.

    The weights are the first ones, or from `train.initialize_from`; a checkpoint is restored later.
    """
    check_model_fits(config.model, config.data)
    report = StatusLine().report()
    train, test = (load_split(config.data, split, report) for split in ("train", "test"))
    epoch = steps_per_epoch(train.count, config.train.batch_size * replicas.count)
    total_steps = config.train.steps or config.train.epochs * epoch
    recorded = read_run_config(folder) if folder.config_file.is_file() else None
    config = resolve_lengths(config, epoch, total_steps, recorded)
    warmup = config.optimizer.warmup_epochs
    if recorded is None and round(warmup * epoch) == 1:
        fault = "a warm-up of one step ends at a learning rate of 0"
        raise ValueError(f"optimizer.warmup_epochs = {warmup:g}: {fault}; choose none (0) or a longer one")
    if replicas.is_chief:
        check_continues(folder, config)  # its message says more than the message about images per step
    if config.data.labels:
        check_class_names(folder.images_file, train.class_names, place_of(config.data))
    with replicas.strategy.scope():
        model, schedule = model_for_training(config, epoch, total_steps)
        if config.train.initialize_from is not None and not steps_of_files(folder.checkpoints):
            StatusLine().print(initialize(model, config.train.initialize_from)[1])
        model.optimizer.build(model.trainable_variables)
    run = Run(config, epoch, train, test, holds_out(config.data), model, schedule, replicas)
    check_images_a_step(folder.images_file, run)
    return run


def check_images_a_step(file: pathlib.Path, run: Run) -> None:
    """ValueError where a run would continue with another number of images per step than `images.json` has."""
    noted, now, replicas = ImageCounts.read(file), run.images_a_step, run.replicas.count
    if noted and noted.a_step not in (None, now):
        raise ValueError(
            f"train.batch_size on {replicas} replicas makes {now} images a step; this run was begun with "
            f"{noted.a_step}: set train.batch_size={noted.a_step // replicas} (replicas must divide {noted.a_step})"
        )


def write_images(file: pathlib.Path, run: Run, report: Callable[[str], None]) -> None:
    """Writes `images.json`, and reports it where the numbers of images of the data set have changed."""
    before = ImageCounts.read(file)
    names = run.train_images.class_names if run.config.data.labels else None
    names = names and ((before and before.class_names) or names)  # data without names leave the run its own
    now = ImageCounts(run.train_images.count, run.test_images.count, run.images_a_step, run.held_out, names)
    if before and (before.train, before.test) != (now.train, now.test):
        report(
            f"Note: the run began with {before.train:,} training and {before.test:,} test images, and there are "
            f"{now.train:,} and {now.test:,} now: metrics before and after can't be compared."
        )
    if before != now:
        atomic_write(file, now.text())


def write_environment(file: pathlib.Path) -> None:
    """Writes the hardware and the versions with which a run is trained into `environment.json`, for its page."""
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    names = collections.Counter(details.get("device_name", "GPU") for details in gpus)
    cores = f"{counted(os.cpu_count() or 1, 'CPU core')} ({platform.machine()})"
    versions = f"nvae_tf {__version__}, TensorFlow {tf.__version__}, Keras {keras.__version__}"
    about = {"hardware": ", ".join([*(f"{count} × {name}" for name, count in names.items()), cores])}
    about["versions"] = f"{versions}, Python {platform.python_version()}"
    atomic_write(file, json.dumps(about, indent=2) + "\n")


def initialize(model: NVAE, path: str) -> tuple[list[str], str]:
    """Gives a model all weights of a source that fit: weights, running batch statistics, vectors of power iterations.

    A weight is taken if it has the same name and shape in the source: a run folder, or a published file (.pt). Returns
    the names of the weights that were taken, and a report about all. ValueError: `path` is neither of both, or damaged,
    or none of its weights fits; nothing is assigned then.
    """
    name_of_source, source = _read_source(path)
    network = "bottom_up/", "top_down/"  # a model's other weights are state of its training, or follow the kernels
    weights, source_weights = (
        {name: weight for name, weight in named_weights(one).items() if name.startswith(network)}
        for one in (model, source)
    )
    taken = [name for name in weights if name in source_weights and weights[name].shape == source_weights[name].shape]
    if not taken:
        pairs = zip(vars(source.config).items(), vars(model.config).values(), strict=True)
        changed = [f"model.{name} is {old!r} there and {new!r} here" for (name, old), new in pairs if old != new]
        raise ValueError(
            f"train.initialize_from = {path!r}: none of its {len(source_weights)} weights fits one of the "
            f"{len(weights)} of this model: {'; '.join(changed[:5])}. Set the model as it is there"
        )
    if source.config.residual_scale != model.config.residual_scale:
        fix = f"its weights are for --config.model.residual_scale={source.config.residual_scale}"
        raise ValueError(f"train.initialize_from = {path!r}: {fix}, not {model.config.residual_scale}")
    for name in taken:
        weights[name].assign(source_weights[name].numpy())
    # The vectors of kernels are numbered, and another architecture numbers them otherwise.
    vectors, source_vectors = _power_vectors(model), _power_vectors(source)
    for kernel in set(taken) & vectors.keys():
        vectors[kernel].assign(source_vectors[kernel].numpy())
    # With new kernels among them the first step iterates longer, as in a new model.
    if set(taken) >= vectors.keys():
        model.spectral_regularizer.warmed_up.assign(source.spectral_regularizer.warmed_up.numpy())
    # Otherwise the first batch would set scales anew in all data-dependent layers, taken or not.
    taken_ids = {id(weights[name]) for name in taken}
    dependent = (layer for layer in model.convolutions if isinstance(layer, DataDependentConvolution))
    if any(id(layer.log_norm) in taken_ids for layer in dependent):
        model.data_initialised.assign(source.data_initialised.numpy())
    return taken, _report(name_of_source, weights, source_weights, taken)


def _report(source: str, weights: dict, source_weights: dict, taken: list[str]) -> str:
    misshapen = weights.keys() & source_weights.keys() - {*taken}
    others = {
        "Not taken, because of another shape in the source": [
            f"{name}: {list(source_weights[name].shape)} in the source, {list(weights[name].shape)} here"
            for name in misshapen
        ],
        "Not taken, because they are not in the source": weights.keys() - source_weights.keys(),
        "Not used of the source, because this model has no such weights": source_weights.keys() - weights.keys(),
    }
    which = f"all {len(taken)}" if len(taken) == len(weights) else f"{len(taken)} of {len(weights)}"
    lines = [f"Starts from {source}: {which} weights taken."]
    for heading, names in others.items():
        lines += [f"{heading}: {len(names)}", *(f"  {name}" for name in sorted(names))] if names else []
    return "\n".join(lines)


def _read_source(path: str) -> tuple[str, NVAE]:
    """The source of weights: its name for messages, and a model that holds them."""
    try:
        if path.endswith(".pt") and not os.path.isdir(path):
            return path, from_torch_checkpoint(path)
        run = load_run(path)
    except (ValueError, FileNotFoundError, ImportError) as error:
        raise ValueError(f"train.initialize_from, a run folder or a published file (.pt): {error}") from error
    averaged = ", moving averages (EMA) of the weights" if run.config.optimizer.ema_momentum else ""
    return f"{path}, step {run.step:,}{averaged}", run.model


def _power_vectors(model: NVAE) -> dict[str, keras.Variable]:
    """The vectors of the spectral regularizer by the names of their kernels."""
    names = {id(weight): name for name, weight in named_weights(model).items()}
    kernels = (names[id(convolution.kernel)] for convolution in model.convolutions)
    return dict(zip(kernels, model.spectral_regularizer.vectors, strict=True))
