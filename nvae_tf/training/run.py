"""From the settings of a run to its images, its length and its model."""

import dataclasses
import os
import pathlib
from typing import NamedTuple

import nvae_tf
from nvae_tf.config import ExperimentConfig
from nvae_tf.data.image_sources import ImageSource
from nvae_tf.data.model_settings import check_model_fits
from nvae_tf.data.pipeline import steps_per_epoch
from nvae_tf.data.sources import load_split
from nvae_tf.data_spec import DataSpec
from nvae_tf.models.for_training import model_for_training
from nvae_tf.optimization import LoweredRate
from nvae_tf.progress import StatusLine
from nvae_tf.training.initialization import initialize
from nvae_tf.training.kept_checkpoints import steps_of_files
from nvae_tf.training.run_folder import RunFolder
from nvae_tf.training.strategy import ONE_DEVICE, Replicas


class Images(NamedTuple):
    """A data set and its two parts."""

    spec: DataSpec
    train: ImageSource
    test: ImageSource


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
    return Images(config.data, train, test)


def run_length(config: ExperimentConfig, num_images: int, replica_count: int = 1) -> RunLength:
    """Steps an epoch and in all: `train.steps`, or `train.epochs` whole epochs.

    Raises:
      ValueError: a batch is larger than the training part.
    """
    epoch = steps_per_epoch(num_images, config.train.batch_size * replica_count)
    return RunLength(epoch, config.train.steps or config.train.epochs * epoch)


def with_length(config: ExperimentConfig, length: RunLength) -> ExperimentConfig:
    """The settings with the number of steps that the KL warm-up is measured by."""
    objective = dataclasses.replace(config.objective, total_steps=length.total_steps)
    return dataclasses.replace(config, objective=objective)


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
