"""From stored whole-number pixels to the float images in [0, 1] that the model takes."""

import numpy as np
import tensorflow as tf

from nvae_tf.data.random_streams import uniform


def intensity_table(num_bits: int) -> np.ndarray:
    """Returns the intensity in [0, 1] of every stored value from 0 to 255, float32 `[256]`.

    With b bits there are 2^b levels, `floor(value / 2^(8 - b)) / (2^b - 1)` (Vahdat & Kautz 2020). The floor is
    taken in whole numbers, so that no rounding error moves a value to the level below; each entry is the float32
    nearest to the exact fraction.

    Args:
        num_bits: from 1 to 8.
    """
    levels = np.arange(256) >> (8 - num_bits)
    return levels.astype(np.float32) / np.float32(2**num_bits - 1)


def binarise(intensities: tf.Tensor, key: np.ndarray, first_position: tf.Tensor) -> tf.Tensor:
    """Draws each pixel from Bernoulli(intensity).

    Args:
        intensities: float32 `[batch, height, width, channels]` in [0, 1]; the last three sizes are static.
        key: from `stream_key`.
        first_position: int64 scalar, the position in the stream of the batch's first image.

    Returns:
        float32, 0 or 1, of the same shape.
    """
    shape = tuple(intensities.shape[1:])
    return tf.cast(uniform(key, first_position, tf.shape(intensities)[0], shape) < intensities, tf.float32)


def flip_horizontally(images: tf.Tensor, key: np.ndarray, first_position: tf.Tensor) -> tf.Tensor:
    """Mirrors each image left to right with probability one half.

    Args:
        images: `[batch, height, width, channels]` of any type.
        key: from `stream_key`.
        first_position: int64 scalar, the position in the stream of the batch's first image.

    Returns:
        Images of the same shape and type.
    """
    mirrored = uniform(key, first_position, tf.shape(images)[0], (1, 1, 1)) < 0.5
    return tf.where(mirrored, tf.reverse(images, axis=[2]), images)
