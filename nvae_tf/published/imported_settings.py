"""The settings of a whole experiment from those of a published file."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from nvae_tf.config import ExperimentConfig, ModelConfig, config_to_dict, experiment_config, resolve_lengths
from nvae_tf.data.spec import DATA_SPECS, LSUN_BEDROOM64, LSUN_CHURCH64
from nvae_tf.data_spec import DataSpec
from nvae_tf.published.settings import (
    OPTIMIZER_SETTINGS,
    PUBLISHED_IMAGES,
    TRAIN_SETTINGS,
    model_config_from_published,
    objective_config_from_published,
)
from nvae_tf.reports.run_facts import Origin
from nvae_tf.train_config import TrainConfig
from nvae_tf.training.image_counts import ImageCounts

# Training and test images of the published data sets, by this project's names for them.
_COUNTS = {
    "mnist": (60_000, 10_000),
    "stacked_mnist": (60_000, 10_000),
    "omniglot": (24_345, 8_070),
    "cifar10": (50_000, 10_000),
    "celeba64": (162_770, 19_962),
    "celebahq256": (27_000, 3_000),
    "imagenet32": (1_281_149, 49_999),
    "imagenet64": (1_281_149, 49_999),
    "ffhq256": (63_000, 7_000),
}
# More GPUs than any published run had.
_MOST_REPLICAS = 256


class RunSettings(NamedTuple):
    """What is known of the run that a file becomes, before its weights are looked at.

    Attributes:
      config: all settings; `objective.total_steps` and `train.batch_size` are those of the published run. `train.steps`
        says its length where that of `train.epochs` would depend on the number of GPUs, which does not follow.
      step: the step that the file is of.
      images: the numbers of images, where they are known.
      origin: where the weights came from first, as far as the file says so.
      defaults: settings that the file lacks, which are this project's defaults.
      assumed: a sentence about what was assumed of the run's length; None where it follows from the file.
    """

    config: ExperimentConfig
    step: int
    images: ImageCounts | None
    origin: Origin = Origin()
    defaults: tuple[str, ...] = ()
    assumed: str | None = None


def imported_settings(args: Mapping[str, Any], epoch: int | None, global_step: int | None) -> RunSettings:
    """All settings of the run that a published file is of.

    Args:
      args: the file's settings.
      epoch: how many passes over the data it was trained; None where the file does not tell.
      global_step: how many steps; None where the file does not tell.

    Raises:
      ValueError: a setting is missing, of a wrong type or impossible.
    """
    model, objective = model_config_from_published(args), objective_config_from_published(args)
    settings = config_to_dict(ExperimentConfig(model=model, objective=objective))
    settings["data"] = dataclasses.asdict(_data_spec(args["dataset"], model))
    defaults = []
    for group, words in (("optimizer", OPTIMIZER_SETTINGS), ("train", TRAIN_SETTINGS)):
        settings[group] |= {name: args[published] for name, published in words.items() if published in args}
        defaults += [f"{group}.{name}" for name, published in words.items() if published not in args]
    # The types of all settings are looked at, before they are calculated with.
    config = experiment_config(settings)
    counts = _COUNTS.get(config.data.name)
    length = _length(epoch, global_step, config.train, counts[0] if counts else None)
    follows = length.replicas is not None or length.step == 0
    train = config.train if follows else dataclasses.replace(config.train, steps=length.total_steps)
    config = dataclasses.replace(config, train=train)
    config = resolve_lengths(config, max(length.total_steps // train.epochs, 1), length.total_steps)
    images = ImageCounts(*counts, length.replicas * config.train.batch_size) if counts and length.replicas else None
    return RunSettings(config, length.step, images, defaults=tuple(defaults), assumed=length.assumed)


class _Length(NamedTuple):
    """How far a published run is and how long, in steps, and on how many GPUs.

    Where the GPUs do not follow they are None, and a sentence tells what was assumed of the length.
    """

    step: int
    total_steps: int
    replicas: int | None = None
    assumed: str | None = None


def _length(epoch: int | None, step: int | None, train: TrainConfig, num_images: int | None) -> _Length:
    """Whatever is missing, learning rate and KL weight must be those of the part of the run that is over."""
    replicas = _replicas(epoch, step, train.batch_size, num_images)
    if replicas is not None:
        total = train.epochs * (num_images // (train.batch_size * replicas))
        return _Length(step, max(total, step), replicas)
    if step and epoch is None:
        told = f"The file tells no epoch, so it is taken to be of the end of its run: train.steps = {step:,}."
        return _Length(step, step, assumed=told)
    if step:
        total = max(round(train.epochs * step / max(epoch, 1)), step)
        told = (
            f"On how many GPUs it was trained does not follow from {step:,} steps in {epoch} epochs. At that rate its "
            f"{train.epochs} epochs are train.steps = {total:,}."
        )
        return _Length(step, total, assumed=told)
    # As on one GPU.
    an_epoch = max((num_images or 0) // train.batch_size, 1)
    total = train.epochs * an_epoch
    if step is None and epoch:
        step, total = epoch * an_epoch, max(epoch * an_epoch, total)
        told = (
            f"The file tells no steps, so its {epoch} epochs are counted as {an_epoch:,} steps each, as on one GPU: it "
            f"is of step {step:,} of train.steps = {total:,}."
        )
        return _Length(step, total, assumed=told)
    told = (
        "The file tells neither steps nor epochs, so the run is at step 0, where its warm-ups begin. To train the "
        "weights on, start a new run from them (train.initialise_from)."
    )
    return _Length(0, total, assumed=told if step is None and epoch is None else None)


def _replicas(epoch: int | None, step: int | None, batch_size: int, num_images: int | None) -> int | None:
    """The file tells steps and epochs, of which an early stop may have cut the last; one number may explain both."""
    if epoch is None or not step or num_images is None:
        return None
    for finished in (epoch, epoch + 1):
        if finished and step % finished == 0:
            for replicas in range(1, _MOST_REPLICAS + 1):
                if num_images // (batch_size * replicas) == step // finished:
                    return replicas
    return None


def _data_spec(published: str, model: ModelConfig) -> DataSpec:
    images = PUBLISHED_IMAGES[published]
    spec = DATA_SPECS.get(images.data_name)
    if spec is None:
        # The same pictures in another size.
        spec = LSUN_BEDROOM64 if "bedroom" in images.data_name else LSUN_CHURCH64
        spec = dataclasses.replace(spec, name=images.data_name, height=images.size, width=images.size)
    return dataclasses.replace(spec, num_bits=model.num_bits, likelihood=model.likelihood)
