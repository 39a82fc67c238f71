"""The frame of zeros around small images, and the check of images that come from outside."""

import numpy as np
import tensorflow as tf

from nvae_tf.config import ModelConfig


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


def training_images(images: tf.Tensor, config: ModelConfig) -> tf.Tensor:
    """A batch of `fit` or `evaluate` as float32; values are not looked at, that would cost time at every step.

    Raises:
      ValueError: they have another size than the model's, or are whole numbers.
    """
    expected = (config.image_height, config.image_width, config.image_channels)
    if len(images.shape) != 4 or tuple(images.shape[1:]) != expected:
        raise ValueError(_wrong_size(images.shape, expected))
    if not images.dtype.is_floating:
        raise ValueError(_wrong_type(images.dtype.name))
    return tf.cast(images, tf.float32)


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
        raise ValueError(
            f"images have values from {images.min()} to {images.max()}; they must be in [0, 1]: "
            "divide 8-bit values by 255"
        )
    return tf.convert_to_tensor(images.astype(np.float32))


def _wrong_size(shape: tf.TensorShape, expected: tuple[int, int, int]) -> str:
    return (
        f"images have shape {tuple(shape)}; this model takes [batch, {', '.join(map(str, expected))}]: "
        "resize them, or set model.image_height, image_width and image_channels to what they are"
    )


def _wrong_type(found: object) -> str:
    return f"images are of type {found}; they must be floats in [0, 1]: divide 8-bit values by 255"
