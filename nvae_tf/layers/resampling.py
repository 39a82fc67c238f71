"""Changes of resolution: nearest and aligned bilinear doubling, and the skip connections of resampling cells."""

import numpy as np
import tensorflow as tf

from nvae_tf.layers.activations import swish
from nvae_tf.layers.convolution import StackedConvolution
from nvae_tf.layers.stacked import StackedLayer


def nearest_upsampling(inputs: tf.Tensor) -> tf.Tensor:
    """Doubles height and width of `[batch, height, width, channels]` by repeating every pixel."""
    _, height, width, channels = inputs.shape
    repeated = tf.broadcast_to(
        inputs[:, :, None, :, None, :], (tf.shape(inputs)[0], height, 2, width, 2, channels)
    )
    return tf.reshape(repeated, (-1, 2 * height, 2 * width, channels))


def aligned_bilinear_upsampling(inputs: tf.Tensor) -> tf.Tensor:
    """Doubles height and width bilinearly so that the corner pixels keep their places (`align_corners`).

    As a pair of small matrices, which keeps the dtype and runs on every device; Keras' UpSampling2D places the pixels
    otherwise.
    """
    rows = tf.constant(_interpolation_matrix(inputs.shape[1]), inputs.dtype)
    columns = tf.constant(_interpolation_matrix(inputs.shape[2]), inputs.dtype)
    return tf.einsum("yh,bhxc->byxc", rows, tf.einsum("xw,bhwc->bhxc", columns, inputs))


def _interpolation_matrix(size: int) -> np.ndarray:
    """`[2 * size, size]`: how each output position mixes the input positions."""
    positions = np.linspace(0.0, size - 1.0, 2 * size)
    return np.maximum(0.0, 1.0 - np.abs(positions[:, None] - np.arange(size)[None, :]))


class FactorizedReduce(StackedLayer):
    """The skip of down cells: swish, then four 1x1 convolutions at stride 2, each on its own shift of the image."""

    SHIFTS = ((0, 0), (1, 1), (0, 1), (1, 0))

    def __init__(self, count: int, channels_in: int, channels_out: int, **kwargs):
        quarter = channels_out // 4
        widths = (quarter, quarter, quarter, channels_out - 3 * quarter)
        super().__init__(
            count,
            [StackedConvolution(count, channels_in, width, 1, dtype=kwargs.get("dtype")) for width in widths],
            **kwargs,
        )

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        """`[batch, height, width, in]` -> `[batch, height / 2, width / 2, out]`."""
        active = swish(inputs)
        return tf.concat(
            [
                part.apply_slice(slice_, active[:, down::2, right::2], records)
                for part, slice_, (down, right) in zip(self.parts, weights, self.SHIFTS, strict=True)
            ],
            axis=-1,
        )


class BilinearExpand(StackedLayer):
    """The skip of up cells: aligned bilinear doubling and a 1x1 convolution without bias.

    The convolution comes first: the two are linear and act on different axes, so the numbers are the same at a
    quarter of the cost.
    """

    def __init__(self, count: int, channels_in: int, channels_out: int, **kwargs):
        convolution = StackedConvolution(
            count, channels_in, channels_out, 1, use_bias=False, dtype=kwargs.get("dtype")
        )
        super().__init__(count, [convolution], **kwargs)

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        """`[batch, height, width, in]` -> `[batch, 2 height, 2 width, out]`."""
        return aligned_bilinear_upsampling(self.parts[0].apply_slice(weights[0], inputs, records))
