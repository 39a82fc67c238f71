"""What a model will see of its data: figures for people, and a picture."""

import pathlib
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from nvae_tf.data.image_sources import ImageSource
from nvae_tf.data.pipeline import evaluation_batches, iterate, training_batches
from nvae_tf.data.sources import place_of
from nvae_tf.data_spec import DataSpec
from nvae_tf.generation import image_grid, write_png
from train.preparation import load_images, run_length
from train.progress import StatusLine

_HISTOGRAM_BARS = 8
_BAR_WIDTH = 40
_IMAGES_LOOKED_AT = 2_000
_COLUMNS = 10
_SEED = 0


class Look(NamedTuple):
    """What a first look at one part of the data found.

    Attributes:
      images: the first images, float32 `[count, height, width, channels]` in [0, 1].
      levels: how many different values they have.
      shares: the share of values in each bar of a histogram over [0, 1].
      images_per_second: how fast images can be read.
    """

    images: np.ndarray
    levels: int
    shares: np.ndarray
    images_per_second: float


def inspect(config: ExperimentConfig, output: pathlib.Path, count: int, seconds: float) -> None:
    """Prints what is in both parts of a data set and writes a picture of `count` images of each.

    Raises:
      ValueError, FileNotFoundError, ConnectionError: see `load_images` and `run_length`.
    """
    status = StatusLine()
    images = load_images(config)
    length = run_length(config, images.train.count)
    batch_size = config.train.batch_size
    batches = {
        "train": training_batches(images.train, images.spec, batch_size, config.train.seed),
        "test": evaluation_batches(images.test, images.spec, batch_size, _SEED).repeat(),
    }
    status.keep(_form(images.spec, config))
    looks = []
    for (name, dataset), source in zip(batches.items(), (images.train, images.test), strict=True):
        look = _look_at(dataset, source, seconds)
        looks.append(look)
        status.keep(_table(name, source, images.spec, look))
    status.keep(f"An epoch is {_counted(length.steps_per_epoch, 'step')} of {_counted(batch_size, 'image')}.")
    shown = [look.images[: min(count, len(look.images))] for look in looks]
    rows = [_whole_rows(images) for images in shown]
    write_png(output, image_grid(np.concatenate(rows), _COLUMNS, enlarge=None))
    status.keep(f"{len(shown[0])} training images above {len(shown[1])} test images in {output}")


def _look_at(dataset: tf.data.Dataset, source: ImageSource, seconds: float) -> Look:
    """Reads for some seconds, after a first batch that starts the pipeline, and looks at the first images."""
    batches = iterate(dataset, source)
    kept, seen = [next(batches).numpy()], 0
    started = time.monotonic()
    while (passed := time.monotonic() - started) < seconds:
        batch = next(batches).numpy()
        seen += len(batch)
        if sum(map(len, kept)) < min(_IMAGES_LOOKED_AT, source.count):
            kept.append(batch)
    images = np.concatenate(kept)[: source.count]
    shares, _ = np.histogram(images, _HISTOGRAM_BARS, (0.0, 1.0))
    return Look(images, len(np.unique(images)), shares / images.size, seen / passed)


def _form(spec: DataSpec, config: ExperimentConfig) -> str:
    model = config.model
    form = [
        f"{spec.height} x {spec.width} (height x width)",
        _counted(spec.channels, "channel"),
        _counted(spec.num_bits, "bit"),
        *(["binarised at every access"] if spec.binarise else []),
        *(["mirrored at random in training"] if spec.horizontal_flip else []),
    ]
    lines = [f"{spec.name}, from {place_of(spec)}", f"images       {', '.join(form)}"]
    if (model.network_height, model.network_width) != (model.image_height, model.image_width):
        lines.append(
            f"padding      zeros around them to {model.network_height} x {model.network_width}; the likelihood counts "
            "the real pixels only"
        )
    return "\n".join([*lines, f"likelihood   {model.likelihood}"])


def _table(name: str, source: ImageSource, spec: DataSpec, look: Look) -> str:
    values = look.images
    lines = [
        f"{name:12s} {source.count:,} images; in the first {len(values):,}: values from {values.min():.3f} to "
        f"{values.max():.3f}, mean {values.mean():.3f}, {look.levels} of {2**spec.num_bits} levels; "
        f"{look.images_per_second:,.0f} images/s"
    ]
    for number, share in enumerate(look.shares):
        low, high = number / _HISTOGRAM_BARS, (number + 1) / _HISTOGRAM_BARS
        lines.append(f"    {low:.3f} to {high:.3f}  {share:6.1%}  {'#' * round(share * _BAR_WIDTH)}".rstrip())
    return "\n".join(lines)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _whole_rows(images: np.ndarray) -> np.ndarray:
    """The images with grey ones behind them until the last row of the picture is full."""
    missing = -len(images) % _COLUMNS
    return np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)], constant_values=0.5)
