"""The frame of zeros around small images, and the checks of images that a user gives to a model."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.config import ModelConfig, check
from nvae_tf.errors import wrap_read_errors

_RANGE_TOLERANCE = 1e-3  # half precision has 1 + 1/1024 next to 1; one of 256 levels is 1/255
_WRONG_RANGE = "images must be in [0, 1]: divide 8-bit values by 255"
_INFINITE = "images have infinite values: look for where each comes from"
_NAN = "images have NaN (not a number) among their values: look for where it comes from"
_NOT_BINARY = "images have values other than 0 and 1; this model scores images of 1 bit: use images >= 0.5 as floats"
_ASSERTED = re.compile(r"assertion failed: \[((?:images|labels) .*(?:by 255|comes from|as floats|is none))\]")


def frame(images: tf.Tensor, config: ModelConfig) -> tf.Tensor:
    """Images `[batch, height, width, channels]` in the middle of the network's frame of zeros, or as they have it."""
    missing = config.network_height - images.shape[1], config.network_width - images.shape[2]
    margins = [(size // 2, size - size // 2) for size in missing]
    return tf.pad(images, [(0, 0), *margins, (0, 0)]) if any(missing) else images


def real_pixels(framed: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """The middle `[batch, height, width, ...]` of a frame; undoes `frame`."""
    top, left = (framed.shape[1] - height) // 2, (framed.shape[2] - width) // 2
    return framed[:, top : top + height, left : left + width]


def check_batch(images: Any, config: ModelConfig) -> tf.Tensor:
    """A batch of `fit`, `evaluate` or `predict` as float32; ValueError unless it is floats of the model's size."""
    if isinstance(images, Mapping):
        names, fix = ", ".join(map(str, images)), "map the dataset to them, such as lambda batch: batch['image'] / 255"
        raise ValueError(f"a batch is a dictionary of {names}; this model takes the images alone: {fix}")
    images, expected = as_tensor(images, "images"), config.image_shape
    if images.shape.rank != 4 or images.shape[1:] != expected:
        fix = "resize them, or train a model with their model.image_height, image_width and image_channels"
        if images.shape == expected:
            fix = "a single image needs a batch axis: images[None]"
        form = f"[batch, {', '.join(map(str, expected))}]"
        raise ValueError(f"images have shape {tuple(images.shape)}; this model takes {form}: {fix}")
    form = "floats in [0, 1]: divide 8-bit values by 255"
    if config.is_denoising:
        form = "floats in the model's range: (images - LOW) / (HIGH - LOW) with data.range = LOW,HIGH of its training"
    is_real = images.dtype.is_floating or images.dtype.is_bool
    check(is_real, f"images are of type {images.dtype.name}; they must be {form}")
    return tf.cast(images, tf.float32)


def check_images(images: Any, config: ModelConfig, scored: bool = False, nan_allowed: bool = False) -> tf.Tensor:
    """As `check_batch`; ValueError also where there are no images or a value that `check_pixels` refuses."""
    images = check_batch(images, config)
    check(images.shape[0] != 0, "there are no images: give at least one")
    check_pixels(images, config, scored, nan_allowed)
    return images


def check_pixels(images: tf.Tensor, config: ModelConfig, scored: bool, nan_allowed: bool) -> list[tf.Operation]:
    """ValueError, see `check_values`, where float32 images are not in [0, 1], or 0 and 1 if scored by a 1-bit model.

    Noisy images may have any finite values.
    """
    # With `nan_allowed` a batch passes that is not finite, whose step the step guard skips.
    distance = tf.abs(images - 0.5)
    # NaN if a value is, and then no comparison is true.
    farthest, nearest = tf.reduce_max(distance), tf.reduce_min(distance)
    passes = nan_allowed & ~tf.math.is_finite(farthest)
    limit, text = (tf.float32.max, _INFINITE) if config.is_denoising else (0.5 + _RANGE_TOLERANCE, _WRONG_RANGE)
    in_range = ~(farthest > limit) | passes
    if tf.executing_eagerly() and not in_range and text == _WRONG_RANGE:
        text = f"images have values from {np.min(images):g} to {np.max(images):g}; they {text.removeprefix('images ')}"
    checks = [check_values(~tf.math.is_nan(farthest) | passes, _NAN), check_values(in_range, text)]
    if scored and config.num_bits == 1:
        checks.append(check_values(~(nearest < 0.5 - _RANGE_TOLERANCE) | passes, _NOT_BINARY))
    return checks


def check_classes(labels: Any, num_classes: int) -> tf.Operation:
    """ValueError, see `check_values`, where labels, whole numbers of any type, are not numbers of classes or -1."""
    labels = tf.cast(labels, tf.float64)  # as int32, larger numbers would become classes
    text = f"labels must be numbers of classes, 0 to {num_classes - 1}, and -1 is none"
    return check_values(tf.reduce_all((labels >= -1) & (labels < num_classes)), text)


def as_tensor(values: Any, what: str) -> tf.Tensor:
    """The values as a tensor; ValueError, which calls them `what`, where TensorFlow makes none of them."""
    with wrap_read_errors(f"{what} must be numbers in an array or a tensor, not {type(values).__name__} (", ")"):
        return tf.convert_to_tensor(values)


def boolean_mask(mask: Any, what: str) -> np.ndarray | tf.Tensor:
    """The mask as booleans; ValueError, which calls it `what`, for values other than 0 and 1, unless it is symbolic."""
    is_mask = tf.is_symbolic_tensor(mask) or np.isin(mask, (0, 1)).all()
    check(bool(is_mask), f"{what} has values other than False and True, or 0 and 1")
    return tf.cast(mask, tf.bool) if tf.is_tensor(mask) else np.asarray(mask, bool)


def check_values(passes: tf.Tensor, message: str) -> tf.Operation | None:
    """ValueError with the message unless the scalar `passes`; in graphs it is asserted on the host, which XLA omits."""
    if tf.executing_eagerly():
        return check(bool(passes), message)
    # A constant text: XLA can't compile one that is made from values.
    return tf.raw_ops.Assert(condition=passes, data=[message])


def with_one_line_errors(function: Callable) -> Callable:
    """The function, raising a failed check of images or labels as a `ValueError` of one line."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except tf.errors.InvalidArgumentError as error:
            matched = _ASSERTED.search(error.message)
            if matched is None:
                raise
            raise ValueError(matched[1]) from None

    return run
