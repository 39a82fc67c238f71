"""The frame of zeros around small images, and the checks of images that a user gives to a model."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.config import ModelConfig, check
from nvae_tf.errors import wrap_read_errors

# Half precision has 1 + 1/1024 next to 1; one of 256 levels is 1/255.
_RANGE_TOLERANCE = 1e-3
_WRONG_RANGE = "images have values from {} to {}; they must be in [0, 1]: divide 8-bit values by 255"
_NAN = "images have values that are NaN (not a number); they must be in [0, 1]: look where they come from"
_NOT_BINARY = "images have values other than 0 and 1; this model scores images of 1 bit: use images >= 0.5 as floats"
_WRONG_CLASSES = "labels go from {} to {}; the classes are 0 to {}, and -1 is none"
_ASSERTED = re.compile(
    r"assertion failed: \[(images have values .* (?:by 255|as floats|come from)|labels go from .* is none)\]"
)


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
        raise ValueError(
            f"a batch is a dictionary of {', '.join(map(str, images))}; this model takes the images alone: "
            "map the dataset to them, such as dataset.map(lambda batch: batch['image'] / 255)"
        )
    images, expected = as_tensor(images, "images"), (config.image_height, config.image_width, config.image_channels)
    if images.shape.rank != 4 or images.shape[1:] != expected:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; this model takes [batch, {', '.join(map(str, expected))}]: "
            "resize them, or set model.image_height, image_width and image_channels to what they are"
        )
    is_real = images.dtype.is_floating or images.dtype.is_bool
    check(is_real, f"images are of type {images.dtype.name}; they must be floats in [0, 1]: divide 8-bit values by 255")
    return tf.cast(images, tf.float32)


def check_images(images: Any, config: ModelConfig, scored: bool = False, nan_allowed: bool = False) -> tf.Tensor:
    """As `check_batch`; ValueError also where there are no images or a value that `pixel_checks` refuses.

    In graphs the values are asserted; XLA leaves that out.
    """
    images = check_batch(images, config)
    check(images.shape[0] != 0, "there are no images: give at least one")
    if tf.executing_eagerly():
        with_one_line_errors(assert_pixels)(images, config, scored, nan_allowed)
    else:
        texts = "images must be in [0, 1], without NaN: divide 8-bit values by 255", _NOT_BINARY
        for passes, text in zip(pixel_checks(images, config, scored, nan_allowed), texts, strict=True):
            check_values(passes, text)
    return images


def as_tensor(values: Any, what: str) -> tf.Tensor:
    """The values as a tensor; ValueError, which calls them `what`, where TensorFlow makes none of them."""
    with wrap_read_errors(f"{what} must be numbers in an array or a tensor, not {type(values).__name__} (", ")"):
        return tf.convert_to_tensor(values)


def boolean_mask(mask: Any, what: str) -> np.ndarray | tf.Tensor:
    """The mask as booleans; ValueError, which calls it `what`, for values other than 0 and 1, unless it is symbolic."""
    is_mask = tf.is_symbolic_tensor(mask) or np.isin(mask, (0, 1)).all()
    check(bool(is_mask), f"{what} has values other than False and True, or 0 and 1")
    return tf.cast(mask, tf.bool) if tf.is_tensor(mask) else np.asarray(mask, bool)


def check_values(passes: tf.Tensor, message: str) -> None:
    """ValueError with the message unless the scalar `passes`; in graphs it is asserted, which XLA leaves out."""
    if tf.executing_eagerly():
        check(bool(passes), message)
    else:
        # A constant text: XLA can't compile one that is made from values.
        tf.raw_ops.Assert(condition=passes, data=[message])


def pixel_checks(
    images: tf.Tensor, config: ModelConfig, scored: bool, nan_allowed: bool
) -> tuple[tf.Tensor, tf.Tensor | bool]:
    """Whether float32 images `[batch, height, width, channels]` are in [0, 1], and whether they are 0 or 1 if need be.

    Both but for rounding. A model of 1 bit needs 0 and 1 in images that are `scored`, in training too. With
    `nan_allowed` a batch passes that is not finite, whose step the step guard skips.
    """
    # NaN if a value is, and then a comparison fails.
    distance = tf.abs(images - 0.5)
    farthest, nearest = tf.reduce_max(distance), tf.reduce_min(distance)
    passes = nan_allowed & ~tf.math.is_finite(farthest)
    is_binary = (nearest >= 0.5 - _RANGE_TOLERANCE) | passes if scored and config.num_bits == 1 else True
    return (farthest <= 0.5 + _RANGE_TOLERANCE) | passes, is_binary


def assert_pixels(images: tf.Tensor, config: ModelConfig, scored: bool, nan_allowed: bool) -> tf.Operation | None:
    """Asserts `pixel_checks` on the host, where batches come from, so that no accelerator waits for it.

    XLA drops assertions: this one belongs outside of what is compiled, before it by `tf.control_dependencies`.
    """
    with tf.device("CPU:0"):
        in_range, is_binary = pixel_checks(images, config, scored, nan_allowed)

        def message() -> tf.Tensor:
            wrong_range = tf.strings.format(_WRONG_RANGE, (tf.reduce_min(images), tf.reduce_max(images)))
            out_of_range = tf.where(tf.reduce_any(tf.math.is_nan(images)), _NAN, wrong_range)
            return tf.where(in_range, _NOT_BINARY, out_of_range)

        return _assert(in_range & is_binary, message)


def assert_classes(labels: Any, num_classes: int) -> tf.Operation | None:
    """Asserts that labels are numbers of classes or -1; where and how as `assert_pixels`."""
    with tf.device("CPU:0"):
        labels = tf.convert_to_tensor(labels)
        ends = tf.reduce_min(labels), tf.reduce_max(labels)
        passes = are_classes(tf.stack(ends), num_classes)
        return _assert(passes, lambda: tf.strings.format(_WRONG_CLASSES, (*ends, num_classes - 1)))


def _assert(passes: tf.Tensor, message: Callable[[], tf.Tensor]) -> tf.Operation | None:
    return tf.raw_ops.Assert(condition=passes, data=[tf.cond(passes, lambda: tf.constant(""), message)])


def are_classes(labels: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Whether all labels, whole numbers of any type, are numbers of classes or -1."""
    # As int32, larger numbers would become classes.
    labels = tf.cast(labels, tf.float64)
    return tf.reduce_all((labels >= -1) & (labels < num_classes))


def with_one_line_errors(function: Callable) -> Callable:
    """The function, raising a failed `assert_pixels` as a `ValueError` of one line."""

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
