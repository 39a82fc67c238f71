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

    config: ExperimentConfig  # complete, see `resolve_lengths`
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
    """The images that the settings name."""
    check_model_fits(config.model, config.data)
    report = StatusLine().report()
    train, test = (load_split(config.data, split, report) for split in ("train", "test"))
    return Images(config.data, train, test, holds_out(config.data))


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
            StatusLine().keep(initialize(model, config.train.initialize_from)[1])
        model.optimizer.build(model.trainable_variables)
    return Run(config, length, images, model, schedule, replicas)


def run_of_folder(config: ExperimentConfig, folder: RunFolder, replicas: Replicas) -> Run:
    """The run of a folder, new or to be continued, with its images; writes nothing. ValueError: settings don't fit."""
    images = images_of_run(config)
    epoch = steps_per_epoch(images.train.count, config.train.batch_size * replicas.count)
    length = RunLength(epoch, config.train.steps or config.train.epochs * epoch)
    recorded = read_run_config(folder) if folder.config_file.is_file() else None
    config = resolve_lengths(config, *length, recorded)
    if replicas.is_chief:
        # Its message says more than that of the images per step.
        check_continues(folder, config)
    if config.data.labels:
        check_class_names(folder.images_file, images.train.class_names, place_of(config.data))
    run = new_run(config, length, images, folder.path, replicas)
    check_images_a_step(folder.images_file, run)
    return run


def check_images_a_step(file: pathlib.Path, run: Run) -> None:
    """ValueError where a run would continue with another number of images per step than `images.json` has."""
    noted, now, replicas = read_image_counts(file), run.images_a_step, run.replicas.count
    if noted and noted.a_step not in (None, now):
        raise ValueError(
            f"train.batch_size on {replicas} replicas makes {now} images a step; this run was begun with "
            f"{noted.a_step}: set train.batch_size={noted.a_step // replicas} (replicas must divide {noted.a_step})"
        )


def note_images(file: pathlib.Path, run: Run, report: Callable[[str], None]) -> None:
    """Writes `images.json`, and reports it where the numbers of images of the data set have changed."""
    images = run.images
    names = images.train.class_names if run.config.data.labels else None
    now = ImageCounts(images.train.count, images.test.count, run.images_a_step, images.held_out, names)
    before = read_image_counts(file) or now
    if (before.train, before.test) != (now.train, now.test):
        report(
            f"Note: the run began with {before.train:,} training and {before.test:,} test images, and there are "
            f"{now.train:,} and {now.test:,} now: metrics before and after can't be compared."
        )
    atomic_write(file, now.text())


def note_environment(file: pathlib.Path) -> None:
    """Writes the hardware and the versions with which a run is trained into `environment.json`, for its page."""
    gpus = [tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")]
    names = collections.Counter(details.get("device_name", "GPU") for details in gpus)
    cores = f"{counted(os.cpu_count() or 1, 'CPU core')} ({platform.machine()})"
    versions = f"nvae_tf {__version__}, TensorFlow {tf.__version__}, Keras {keras.__version__}"
    about = {"hardware": ", ".join([*(f"{count} × {name}" for name, count in names.items()), cores])}
    about["versions"] = f"{versions}, Python {platform.python_version()}"
    atomic_write(file, json.dumps(about, indent=2) + "\n")
