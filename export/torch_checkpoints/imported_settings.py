"""The settings of a whole experiment from those of a published file."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from nvae_tf.checkpoints.published_settings import (
    OPTIMIZER_SETTINGS,
    PUBLISHED_IMAGES,
    TRAIN_SETTINGS,
    model_config_from_published,
    objective_config_from_published,
)
from nvae_tf.config import ExperimentConfig, ModelConfig, config_to_dict, experiment_config
from nvae_tf.data.specs import DATA_SPECS, LSUN_BEDROOM64, LSUN_CHURCH64
from nvae_tf.data_spec import DataSpec

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


class ImageCounts(NamedTuple):
    """With how many images a run was trained, in all and a step."""

    train: int
    test: int
    a_step: int

    def text(self) -> str:
        """For the run folder's `images.json`."""
        return json.dumps(self._asdict()) + "\n"


class ImportedSettings(NamedTuple):
    """The settings of an imported run.

    Attributes:
      config: all settings; `objective.total_steps` and `train.batch_size` are those of the published run.
      images: the numbers of images, where the file's length and those of the data set agree.
      defaults: settings that the file lacks, which are this project's defaults.
    """

    config: ExperimentConfig
    images: ImageCounts | None
    defaults: tuple[str, ...]


def imported_settings(
    args: Mapping[str, Any], epoch: int | None, global_step: int | None, data_path: str | None = None
) -> ImportedSettings:
    """All settings of the run that a published file is of.

    Args:
      args: the file's settings.
      epoch: how many passes over the data it was trained; None where the file does not tell.
      global_step: how many steps; None where the file does not tell.
      data_path: where the images lie.

    Raises:
      ValueError: a setting is missing, of a wrong type or impossible.
    """
    model = model_config_from_published(args)
    settings = config_to_dict(ExperimentConfig(model=model, objective=objective_config_from_published(args)))
    settings["data"] = dataclasses.asdict(_data_spec(args["dataset"], model, data_path))
    defaults = []
    for group, words in (("optimizer", OPTIMIZER_SETTINGS), ("train", TRAIN_SETTINGS)):
        settings[group] |= {name: args[published] for name, published in words.items() if published in args}
        defaults += [f"{group}.{name}" for name, published in words.items() if published not in args]
    # The types of all settings are looked at, before they are calculated with.
    config = experiment_config(settings)
    counts = _COUNTS.get(config.data.name)
    length = _length(epoch or 0, global_step or 0, config.train.batch_size, counts[0] if counts else None)
    total_steps = max(config.train.epochs * length.steps_per_epoch, global_step or 0)
    config = dataclasses.replace(config, objective=dataclasses.replace(config.objective, total_steps=total_steps))
    images = ImageCounts(*counts, length.replicas * config.train.batch_size) if counts and length.replicas else None
    return ImportedSettings(config, images, tuple(defaults))


class _Length(NamedTuple):
    """The steps of an epoch, and on how many GPUs; None where that does not follow."""

    steps_per_epoch: int
    replicas: int | None


def _length(epoch: int, step: int, batch_size: int, num_images: int | None) -> _Length:
    """The file tells neither; it does tell steps and epochs, of which an early stop may have cut the last."""
    if num_images is None:
        return _Length(max(step // max(epoch, 1), 1), None)
    for finished in (epoch, epoch + 1):
        if finished and step and step % finished == 0:
            for replicas in range(1, _MOST_REPLICAS + 1):
                if num_images // (batch_size * replicas) == step // finished:
                    return _Length(step // finished, replicas)
    return _Length(max(num_images // batch_size, 1), None)


def _data_spec(published: str, model: ModelConfig, path: str | None) -> DataSpec:
    images = PUBLISHED_IMAGES[published]
    spec = DATA_SPECS.get(images.data_name)
    if spec is None:
        # The same pictures in another size.
        spec = LSUN_BEDROOM64 if "bedroom" in images.data_name else LSUN_CHURCH64
        spec = dataclasses.replace(spec, name=images.data_name, height=images.size, width=images.size)
    return dataclasses.replace(spec, num_bits=model.num_bits, likelihood=model.likelihood, path=path)
