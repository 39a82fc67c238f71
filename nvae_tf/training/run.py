"""A run, made from its settings: its images, its length and its model."""

import collections
import json
import os
import pathlib
import platform
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from nvae_tf.config import DataSpec, ExperimentConfig, __version__, resolve_lengths
from nvae_tf.data.pipeline import steps_per_epoch
from nvae_tf.data.sources import ImageSource, holds_out, load_split, place_of
from nvae_tf.data_sets import check_model_fits
from nvae_tf.files import atomic_write
from nvae_tf.models import NVAE
from nvae_tf.optimization import LoweredRate
from nvae_tf.progress import StatusLine, counted
from nvae_tf.runs.checkpoint_files import steps_of_files
from nvae_tf.runs.new_model import model_for_training
from nvae_tf.runs.run_folder import (
    ImageCounts,
    RunFolder,
    check_class_names,
    check_continues,
    read_image_counts,
    read_run_config,
)
from nvae_tf.training.initialization import initialize
from nvae_tf.training.strategy import Replicas


class Images(NamedTuple):
    """The images of a data set."""

    spec: DataSpec
    train: ImageSource
    test: ImageSource
    held_out: bool | None = None  # whether the test images were drawn at random


class RunLength(NamedTuple):
    """The length of a run in steps; an epoch's last partial batch is dropped."""

    steps_per_epoch: int
    total_steps: int


class Run(NamedTuple):
    """The parts of a run, besides its folder."""

    config: ExperimentConfig  # complete, see `with_length`
    length: RunLength
    images: Images
    model: NVAE  # compiled, with all its weights
    schedule: LoweredRate  # the learning rate of a step
    replicas: Replicas  # the devices that train

    @property
    def images_a_step(self) -> int:
        """The number of images that all replicas take in one step."""
        return self.config.train.batch_size * self.replicas.count


def images_of_run(config: ExperimentConfig) -> Images:
    """The images that the settings name; ValueError, FileNotFoundError or ConnectionError where they can't be used."""
    check_model_fits(config.model, config.data)
    report = StatusLine().report()
    train, test = (load_split(config.data, split, report) for split in ("train", "test"))
    return Images(config.data, train, test, holds_out(config.data))


def run_length(config: ExperimentConfig, num_images: int, replica_count: int = 1) -> RunLength:
    """Steps per epoch and in total: `train.steps`, or `train.epochs` epochs. ValueError: a batch exceeds an epoch."""
    epoch = steps_per_epoch(num_images, config.train.batch_size * replica_count)
    return RunLength(epoch, config.train.steps or config.train.epochs * epoch)


def with_length(
    config: ExperimentConfig, length: RunLength, workdir: str | os.PathLike | None = None
) -> ExperimentConfig:
    """The settings with the numbers that follow from the length of the run, or that the run in `workdir` has recorded.

    ValueError: its `config.json` is damaged.
    """
    has_run = workdir is not None and RunFolder(workdir).config_file.is_file()
    recorded = read_run_config(RunFolder(workdir)) if has_run else None
    return resolve_lengths(config, length.steps_per_epoch, length.total_steps, recorded)


def length_warnings(config: ExperimentConfig, length: RunLength) -> list[str]:
    """One line for each setting (see `with_length`) that does not fit the length of the run."""
    total, optimizer, train, lines = length.total_steps, config.optimizer, config.train, []
    warmup_steps = round(optimizer.warmup_epochs * length.steps_per_epoch)
    if warmup_steps > total:
        lines.append(
            f"Warning: optimizer.warmup_epochs = {optimizer.warmup_epochs:g} is {warmup_steps:,} steps, more than the "
            f"run's {total:,}: the learning rate never reaches {optimizer.learning_rate:g}. Set at most "
            f"{total / 10 / length.steps_per_epoch:.3g}, a tenth of the run."
        )
    if train.evaluate_every_steps > total:
        lines.append(
            f"Warning: train.evaluate_every_steps = {train.evaluate_every_steps:,} is more than the run's {total:,} "
            "steps: the test images are scored only at its end."
        )
    return lines


def new_run(
    config: ExperimentConfig,
    length: RunLength,
    images: Images,
    workdir: str | os.PathLike | None = None,
    replicas: Replicas | None = None,
) -> Run:
    """A run before its first step, with the weights of `train.initialize_from` unless `workdir` has a checkpoint."""
    replicas = replicas or Replicas()
    with replicas.strategy.scope():
        model, schedule = model_for_training(config, length.steps_per_epoch, length.total_steps)
        is_continued = workdir is not None and steps_of_files(RunFolder(workdir).checkpoints, "index")
        if config.train.initialize_from is not None and not is_continued:
            StatusLine().keep(initialize(model, config.train.initialize_from).report())
        model.optimizer.build(model.trainable_variables)
    return Run(config, length, images, model, schedule, replicas)


def run_of_folder(config: ExperimentConfig, folder: RunFolder, replicas: Replicas) -> Run:
    """The run of a folder, new or to be continued, with its images; writes nothing. ValueError: settings don't fit."""
    images = images_of_run(config)
    length = run_length(config, images.train.count, replicas.count)
    config = with_length(config, length, folder.path)
    if replicas.is_chief:
        # Its message says more than that of the images per step.
        check_continues(folder, config)
    if config.data.labels:
        check_class_names(folder.images_file, images.train.class_names, place_of(config.data))
    run = new_run(config, length, images, folder.path, replicas)
    check_images_a_step(folder.images_file, run)
    return run


def check_images_a_step(file: pathlib.Path, run: Run) -> None:
    """Raises a ValueError if a run would continue with another number of images per step than `images.json` has."""
    batch, count = run.config.train.batch_size, run.replicas.count
    noted = read_image_counts(file)
    before = noted.a_step if noted is not None else None
    if before is not None and before != batch * count:
        fix = f"take a divisor of {before} replicas" if before % count else f"set train.batch_size={before // count}"
        raise ValueError(
            f"train.batch_size = {batch} on {count} replicas makes {batch * count} images a step; this run was begun "
            f"with {before}: {fix}"
        )


def note_images(file: pathlib.Path, run: Run, report: Callable[[str], None]) -> None:
    """Writes `images.json`, and reports it where the numbers of images of the data set have changed."""
    images = run.images
    names = images.train.class_names if run.config.data.labels else None
    now = ImageCounts(images.train.count, images.test.count, run.images_a_step, images.held_out, names)
    before = read_image_counts(file)
    if before is not None and (before.train, before.test) != (now.train, now.test):
        report(
            f"Note: the run began with {before.train:,} training and {before.test:,} test images, and there are "
            f"{now.train:,} and {now.test:,} now. It continues, in another order of images; metrics before and "
            "after can't be compared."
        )
    if before != now:
        atomic_write(file, now.text())


def note_environment(file: pathlib.Path) -> None:
    """Writes the hardware and the versions with which a run is trained into `environment.json`, for its page."""
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    names = collections.Counter(details.get("device_name", "GPU") for details in gpus)
    cores = counted(os.cpu_count() or 1, "CPU core")
    hardware = ", ".join([*(f"{count} × {name}" for name, count in names.items()), f"{cores} ({platform.machine()})"])
    versions = f"nvae_tf {__version__}, TensorFlow {tf.__version__}, Keras {keras.__version__}"
    python = f"Python {platform.python_version()}"
    atomic_write(file, json.dumps({"hardware": hardware, "versions": f"{versions}, {python}"}, indent=2) + "\n")
