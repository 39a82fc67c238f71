"""What a model will see of its data: figures for people, and a picture."""

import pathlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from nvae_tf.data.image_sources import ImageSource
from nvae_tf.data.pipeline import evaluation_batches, iterate, training_batches
from nvae_tf.data.sources import place_of
from nvae_tf.data_spec import DataSpec
from nvae_tf.generation.image_grid import image_grid, write_png
from nvae_tf.progress import StatusLine
from nvae_tf.training.run import load_images, run_length

_HISTOGRAM_BARS = 8
_BAR_WIDTH = 40
_IMAGES_LOOKED_AT = 500
_COLUMNS = 10
_SEED = 0
_BATCHES_READ_AHEAD = 8


class Look(NamedTuple):
    """What a first look at one part of the data found.

    Attributes:
      images: the first images, float32 `[count, height, width, channels]` in [0, 1].
      looked_at: how many images the figures are of.
      levels: the different values that they have, in order.
      mean: of all values.
      shares: the share of values in each bar of a histogram over [0, 1].
      images_per_second: how fast images can be read.
    """

    images: np.ndarray
    looked_at: int
    levels: np.ndarray
    mean: float
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
        look = _look_at(dataset, source, count, seconds)
        looks.append(look)
        status.keep(_table(name, source, images.spec, look))
    status.keep(f"An epoch is {_counted(length.steps_per_epoch, 'step')} of {_counted(batch_size, 'image')}.")
    shown = [look.images for look in looks]
    rows = [_whole_rows(images) for images in shown]
    write_png(output, image_grid(np.concatenate(rows), _COLUMNS, enlarge=None))
    status.keep(f"{len(shown[0])} training images above {len(shown[1])} test images in {output}")


def _look_at(dataset: tf.data.Dataset, source: ImageSource, count: int, seconds: float) -> Look:
    """Looks at images until there are `count` for the picture and some more for the figures, then only reads."""
    batches = iterate(dataset, source)
    wanted, looked_at, total = min(_IMAGES_LOOKED_AT, source.count), 0, 0.0
    kept, levels, bars = [], np.empty(0, np.float32), np.zeros(_HISTOGRAM_BARS)
    while looked_at < wanted or sum(map(len, kept)) < min(count, source.count):
        images = next(batches).numpy()
        if sum(map(len, kept)) < count:
            kept.append(images)
        looked_at += len(images)
        levels = np.union1d(levels, images)
        bars += np.histogram(images, _HISTOGRAM_BARS, (0.0, 1.0))[0]
        total += float(images.sum(dtype=np.float64))
    speed = _images_per_second(batches, seconds)
    values = bars.sum()
    return Look(np.concatenate(kept)[:count][: source.count], looked_at, levels, total / values, bars / values, speed)


def _images_per_second(batches: Iterator[tf.Tensor], seconds: float) -> float:
    # What was read ahead meanwhile does not count.
    for _ in range(_BATCHES_READ_AHEAD):
        next(batches)
    started, seen = time.monotonic(), 0
    while (passed := time.monotonic() - started) < seconds:
        seen += len(next(batches))
    return seen / passed


def _form(spec: DataSpec, config: ExperimentConfig) -> str:
    model = config.model
    form = [
        f"{spec.height} x {spec.width} (height x width)",
        _counted(spec.channels, "channel"),
        _counted(spec.num_bits, "bit"),
        *(["of 16-bit files the upper bits"] if spec.file_bits == 16 else []),
        *(["binarized at every access"] if spec.binarise else []),
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
    looked_at = min(look.looked_at, source.count)
    lines = [
        f"{name:12s} {source.count:,} images; in {looked_at:,} of them: values from {look.levels[0]:.3f} to "
        f"{look.levels[-1]:.3f}, mean {look.mean:.3f}, {len(look.levels)} of {2**spec.num_bits} levels; "
        f"{look.images_per_second:,.0f} images/s"
    ]
    for number, share in enumerate(look.shares):
        low, high = number / _HISTOGRAM_BARS, (number + 1) / _HISTOGRAM_BARS
        lines.append(f"    {low:.3f} to {high:.3f}  {share:6.1%}  {'#' * round(share * _BAR_WIDTH)}".rstrip())
    return "\n".join(lines)


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _whole_rows(images: np.ndarray) -> np.ndarray:
    """The images with gray ones behind them until the last row of the picture is full."""
    missing = -len(images) % _COLUMNS
    return np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)], constant_values=0.5)
