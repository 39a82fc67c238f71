"""From the settings of a run to its images, its length and its model."""

import os
import pathlib
from typing import NamedTuple

import nvae_tf
from nvae_tf.config import DataSpec, ExperimentConfig, resolve_lengths
from nvae_tf.data.pipeline import steps_per_epoch
from nvae_tf.data.sources import ImageSource, holds_out, load_split
from nvae_tf.data.spec import check_model_fits
from nvae_tf.models.nvae import model_for_training
from nvae_tf.optimization import LoweredRate
from nvae_tf.progress import StatusLine
from nvae_tf.training.initialization import initialize
from nvae_tf.training.kept_checkpoints import steps_of_files
from nvae_tf.training.run_folder import RunFolder, read_run_config
from nvae_tf.training.strategy import ONE_DEVICE, Replicas


class Images(NamedTuple):
    """A data set and its two parts.

    Attributes:
      spec: the data set.
      train: its images for training.
      test: those for testing.
      held_out: whether these were drawn at random, see `nvae_tf.data.sources.holds_out`.
    """

    spec: DataSpec
    train: ImageSource
    test: ImageSource
    held_out: bool | None = None


class RunLength(NamedTuple):
    """How long a run is, in steps; an epoch's last partial batch is dropped."""

    steps_per_epoch: int
    total_steps: int


class Run(NamedTuple):
    """What a run is made of, besides its folder.

    Attributes:
      config: the settings, see `with_length`.
      length: how long it is.
      images: the data set.
      model: the model, compiled, with all weights made.
      schedule: step -> learning rate.
      replicas: the devices that train.
    """

    config: ExperimentConfig
    length: RunLength
    images: Images
    model: nvae_tf.NVAE
    schedule: LoweredRate
    replicas: Replicas = ONE_DEVICE

    @property
    def images_a_step(self) -> int:
        """The images of all replicas."""
        return self.config.train.batch_size * self.replicas.count


def load_images(config: ExperimentConfig) -> Images:
    """Both parts of the data set that the settings name.

    Raises:
      ValueError: images can't be used, or the model does not fit them.
      FileNotFoundError: there is nothing at `data.path`.
      ConnectionError: the data must be downloaded and can't be.
    """
    check_model_fits(config.model, config.data)
    report = StatusLine().report()
    train, test = (load_split(config.data, split, report) for split in ("train", "test"))
    return Images(config.data, train, test, holds_out(config.data))


def run_length(config: ExperimentConfig, num_images: int, replica_count: int = 1) -> RunLength:
    """Steps an epoch and in all: `train.steps`, or `train.epochs` whole epochs.

    Raises:
      ValueError: a batch is larger than the training part.
    """
    epoch = steps_per_epoch(num_images, config.train.batch_size * replica_count)
    return RunLength(epoch, config.train.steps or config.train.epochs * epoch)


def with_length(
    config: ExperimentConfig, length: RunLength, workdir: str | os.PathLike | None = None
) -> ExperimentConfig:
    """The settings with all that follows from the length of the run, see `resolve_lengths`.

    Args:
      config: the settings.
      length: how long the run is.
      workdir: its folder, whose recorded settings count where it is continued.

    Raises:
      ValueError: the `config.json` of the folder is damaged.
    """
    folder = None if workdir is None else RunFolder(pathlib.Path(workdir))
    recorded = read_run_config(folder) if folder is not None and folder.config_file.is_file() else None
    return resolve_lengths(config, length.steps_per_epoch, length.total_steps, recorded)


def length_warnings(config: ExperimentConfig, length: RunLength) -> list[str]:
    """One line for each setting that does not fit the length of the run.

    Args:
      config: the settings, see `with_length`.
      length: how long the run is.
    """
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
    replicas: Replicas = ONE_DEVICE,
) -> Run:
    """A run before its first step; the same settings give the same initial weights.

    Those of `train.initialise_from` are taken over, and what does not fit is listed, unless `workdir` has a checkpoint:
    then the run goes on from there, and the source may be gone.

    Raises:
      ValueError, FileNotFoundError: see `nvae_tf.training.initialization.initialize`.
    """
    with replicas.strategy.scope():
        model, schedule = model_for_training(config, length.steps_per_epoch, length.total_steps)
        goes_on = workdir is not None and steps_of_files(RunFolder(pathlib.Path(workdir)).checkpoints, "index")
        if config.train.initialise_from is not None and not goes_on:
            StatusLine().keep(initialize(model, config.train.initialise_from).report())
        model.optimizer.build(model.trainable_variables)
    return Run(config, length, images, model, schedule, replicas)
