"""The frame of zeros around small images, and the check of images that come from outside."""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.config import ModelConfig

# Rounding: half precision has 1 + 1/1024 next to 1. One of 256 levels is 1/255.
_RANGE_TOLERANCE = 1e-3
_WRONG_RANGE = "images have values from {} to {}; they must be in [0, 1]: divide 8-bit values by 255"
_ASSERTED = re.compile(r"assertion failed: \[(images have values .* by 255)\]")


def frame_with_zeros(images: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Images `[batch, height, width, channels]` in the middle of a frame of zeros of the given size."""
    missing = height - images.shape[1], width - images.shape[2]
    if missing == (0, 0):
        return images
    margins = [(size // 2, size - size // 2) for size in missing]
    return tf.pad(images, [(0, 0), *margins, (0, 0)])


def real_pixels(framed: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """The middle `[batch, height, width, ...]` of a frame; undoes `frame_with_zeros`."""
    top, left = (framed.shape[1] - height) // 2, (framed.shape[2] - width) // 2
    return framed[:, top : top + height, left : left + width]


def check_image_size(images: tf.Tensor, config: ModelConfig) -> None:
    """Refuses a batch whose images have another size than the model's, or than its padded frame's.

    Raises:
      ValueError: the message names both sizes.
    """
    expected = (config.image_height, config.image_width, config.image_channels)
    framed = (config.network_height, config.network_width, config.image_channels)
    if len(images.shape) != 4 or tuple(images.shape[1:]) not in (expected, framed):
        raise ValueError(_wrong_size(images.shape, expected))


def training_images(images: Any, config: ModelConfig) -> tf.Tensor:
    """A batch of `fit`, `evaluate` or `predict` as float32; for its values see `assert_unit_range`.

    Raises:
      ValueError: it is not one tensor of images of the model's size, or they are whole numbers.
    """
    if isinstance(images, Mapping):
        raise ValueError(
            f"a batch is a dictionary of {', '.join(map(str, images))}; this model takes the images alone: "
            "map the dataset to them, such as dataset.map(lambda batch: batch['image'] / 255)"
        )
    images = tf.convert_to_tensor(images)
    expected = (config.image_height, config.image_width, config.image_channels)
    if len(images.shape) != 4 or tuple(images.shape[1:]) != expected:
        raise ValueError(_wrong_size(images.shape, expected))
    if not (images.dtype.is_floating or images.dtype.is_bool):
        raise ValueError(_wrong_type(images.dtype.name))
    return tf.cast(images, tf.float32)


def assert_unit_range(images: tf.Tensor, nan_allowed: bool) -> tf.Operation | None:
    """Asserts that float32 images `[batch, height, width, channels]` are in [0, 1], but for rounding.

    It is computed on the host, where batches come from, so that no accelerator waits for it. XLA drops assertions:
    this one belongs outside of what is compiled, before it by `tf.control_dependencies`.

    Args:
      images: the batch.
      nan_allowed: whether a batch with NaN passes.
    """
    with tf.device("CPU:0"):
        # NaN if a value is, and then the comparison fails.
        distance = tf.reduce_max(tf.abs(images - 0.5))
        passes = distance <= 0.5 + _RANGE_TOLERANCE
        if nan_allowed:
            passes |= tf.math.is_nan(distance)

        def message() -> tf.Tensor:
            return tf.strings.format(_WRONG_RANGE, (tf.reduce_min(images), tf.reduce_max(images)))

        return tf.raw_ops.Assert(condition=passes, data=[tf.cond(passes, lambda: tf.constant(""), message)])


def with_one_line_errors(function: Callable) -> Callable:
    """The function, raising a failed `assert_unit_range` as a `ValueError` of one line."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except tf.errors.InvalidArgumentError as error:
            found = _ASSERTED.search(error.message)
            if found is None:
                raise
            raise ValueError(found[1]) from None

    return run


def check_images(images: tf.Tensor | np.ndarray, config: ModelConfig) -> tf.Tensor:
    """Images from outside as a float32 tensor.

    Raises:
      ValueError: they are not `[batch, height, width, channels]` of the model's size, or not all in [0, 1].
    """
    images = np.asarray(images)
    expected = (config.image_height, config.image_width, config.image_channels)
    if images.ndim != 4 or images.shape[1:] != expected or len(images) == 0:
        raise ValueError(
            f"images have shape {images.shape}; this model takes [batch, {', '.join(map(str, expected))}] "
            "with at least one image: resize them or add the missing axis"
        )
    if images.dtype.kind not in "fb":
        raise ValueError(_wrong_type(images.dtype))
    if not (images.min() >= 0.0 and images.max() <= 1.0):
        raise ValueError(_WRONG_RANGE.format(images.min(), images.max()))
    return tf.convert_to_tensor(images.astype(np.float32))


def _wrong_size(shape: tf.TensorShape, expected: tuple[int, int, int]) -> str:
    return (
        f"images have shape {tuple(shape)}; this model takes [batch, {', '.join(map(str, expected))}]: "
        "resize them, or set model.image_height, image_width and image_channels to what they are"
    )


def _wrong_type(found: object) -> str:
    return f"images are of type {found}; they must be floats in [0, 1]: divide 8-bit values by 255"
