"""What a model will see of its data: statistics for people, and images for a picture."""

import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from nvae_tf.config import DataSpec, ExperimentConfig
from nvae_tf.data import pipeline
from nvae_tf.data.sources import load_split, place_of
from nvae_tf.data_sets import check_model_fits
from nvae_tf.progress import StatusLine, counted

_HISTOGRAM_BARS = 8
_CLASSES_SHOWN = _ROW = 10  # the classes that are named, and the images that are shown of each


def inspect(config: ExperimentConfig, count: int, seconds: float, status: StatusLine) -> dict[str, np.ndarray]:
    """Prints what is in both parts of a run's data set, and measures for this many seconds the reading of each.

    Returns images of each part, and with labels of each class, by what they are, float32 `[up to count, height, width,
    channels]` in [0, 1].
    """
    spec, batch_size = config.data, config.train.batch_size
    check_model_fits(config.model, spec)
    train, test = (load_split(spec, split, status.report()) for split in ("train", "test"))
    epoch = pipeline.steps_per_epoch(train.count, batch_size)
    status.print(_form(spec, config))
    if spec.labels:
        names = train.class_names
        in_parts = (np.bincount(part.labels, minlength=len(names)) for part in (train, test))
        each = [f"{name} ({trained:,} / {tested:,})" for name, trained, tested in zip(names, *in_parts, strict=True)]
        more = [f"and {len(each) - _CLASSES_SHOWN:,} more"] if len(each) > _CLASSES_SHOWN else []
        shown = ", ".join(each[:_CLASSES_SHOWN] + more)
        status.print(f"classes      {len(each):,} (training / test images): {shown}")
    spec = pipeline.images_alone(spec)
    training = pipeline.training_batches(train, spec, batch_size, config.train.seed)
    testing = pipeline.evaluation_batches(test, spec, batch_size, seed=0).repeat()
    for name, source, dataset in (("train", train, training), ("test", test, testing)):
        statistics = _statistics(pipeline.iterate(dataset, source), source.count, spec, seconds)
        status.print(f"{name:12s} {source.count:,} images; {statistics}")
    status.print(f"An epoch is {counted(epoch, 'step')} of {counted(batch_size, 'image')}.")
    if config.data.labels:
        shown = {}
        for name, source in (("training", train), ("test", test)):
            images, labels, _ = pipeline.chosen_images(source, config.data, name, at_most=count)
            for label in np.unique(labels):
                shown[f"{name} images: {source.class_names[label]}"] = images[labels == label][:_ROW]
        return shown
    first = pipeline.iterate(pipeline.training_batches(train, spec, min(count, train.count), config.train.seed), train)
    test_images = pipeline.chosen_images(test, spec, "test", at_most=count)[0]
    return {"training images": next(first).numpy(), "test images": test_images}


def _statistics(batches: Iterator[tf.Tensor], available: int, spec: DataSpec, seconds: float) -> str:
    """Statistics of the first images, and how fast they are read, in words."""
    levels, bars, total, seen = [], np.zeros(_HISTOGRAM_BARS, np.int64), 0.0, 0
    while seen < min(500, available):
        batch = next(batches).numpy()
        levels = np.union1d(levels, batch)
        bars += np.histogram(np.clip(batch, 0.0, 1.0), _HISTOGRAM_BARS, (0.0, 1.0))[0]
        total, seen = total + batch.sum(dtype=np.float64), seen + len(batch)
    for _ in range(8):  # what was read ahead meanwhile does not count
        next(batches)
    started, read = time.monotonic(), 0
    while (passed := time.monotonic() - started) < seconds:
        read += len(next(batches))
    values = f"values from {levels[0]:.3f} to {levels[-1]:.3f}, mean {total / bars.sum():.3f}"
    possible = "" if spec.range else f" of {2**spec.num_bits}"
    speed = f"{read / passed:,.0f} images/s"
    lines = [f"in {min(seen, available):,} of them: {values}, {len(levels)}{possible} levels; {speed}"]
    edges = np.linspace(0.0, 1.0, _HISTOGRAM_BARS + 1)
    for low, high, fraction in zip(edges, edges[1:], bars / bars.sum(), strict=False):
        lines.append(f"    {low:.3f} to {high:.3f}  {fraction:6.1%}  {'#' * round(fraction * 40)}".rstrip())
    return "\n".join(lines)


def _form(spec: DataSpec, config: ExperimentConfig) -> str:
    model = config.model
    words = {
        f"{spec.height} x {spec.width} (height x width)": True,
        counted(spec.channels, "channel"): True,
        counted(spec.num_bits, "bit"): not spec.range,
        "from {:g} to {:g}".format(*spec.range or (0, 1)): bool(spec.range),
        f"alpha: {spec.alpha}": spec.alpha != "keep",
        "of 16-bit files the upper bits": spec.file_bits == 16 and spec.dtype == "uint8",
        "binarized at every access": spec.binarize,
        "mirrored at random in training": spec.horizontal_flip,
    }
    form = ", ".join(word for word, applies in words.items() if applies)
    if spec.noise != "none":
        form += ", noise of variance {:.4g} signal + {:.4g} in [0, 1]".format(*spec.unit_noise)
    lines = [f"{spec.name}, from {place_of(spec)}", f"images       {form}"]
    if (model.network_height, model.network_width) != (model.image_height, model.image_width):
        size = f"{model.network_height} x {model.network_width}"
        lines.append(f"padding      zeros around them to {size}; the likelihood counts the real pixels only")
    return "\n".join([*lines, f"likelihood   {model.likelihood}"])
