"""The skip connections of resampling cells, and aligned bilinear doubling.

Nearest doubling, in the branches of up cells, is `nvae_tf.layers.cpu_kernels.nearest_upsampling`.
"""

import tensorflow as tf

from nvae_tf.layers.convolution import StackedConvolution
from nvae_tf.layers.cpu_kernels import concatenated, swish
from nvae_tf.layers.stacked import StackedLayer


def aligned_bilinear_upsampling(inputs: tf.Tensor) -> tf.Tensor:
    """Doubles height and width bilinearly so that the corner pixels keep their places.

    Keras' UpSampling2D places the pixels otherwise. Computed in float32, whatever the type.
    """
    _, height, width, _ = inputs.shape
    doubled = tf.raw_ops.ResizeBilinear(images=inputs, size=(2 * height, 2 * width), align_corners=True)
    return tf.cast(doubled, inputs.dtype)


class FactorizedReduce(StackedLayer):
    """The skip of down cells: swish, then four 1x1 convolutions at stride 2, each on its own shift of the image."""

    # Of the four pixels of a square, row by row, the one that each convolution sees: (0, 0), (1, 1), (0, 1), (1, 0).
    PIXELS = (0, 3, 1, 2)

    def __init__(self, count: int, channels_in: int, channels_out: int, dtype=None):
        quarter = channels_out // 4
        widths = (quarter, quarter, quarter, channels_out - 3 * quarter)
        parts = [StackedConvolution(count, channels_in, width, 1, dtype=dtype) for width in widths]
        super().__init__(count, parts, dtype=dtype)

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        """`[batch, height, width, in]` -> `[batch, height / 2, width / 2, out]`."""
        # One rearrangement: the gradients of four strided slices take ten times as long on CPUs. With the gradient of
        # `tf.split` XLA would compile a training step anew each time.
        squares = tf.nn.space_to_depth(swish(inputs), 2)
        _, height, width, channels = squares.shape
        pixels = tf.unstack(tf.reshape(squares, (-1, height, width, 4, channels // 4)), axis=3)
        parts = zip(self.parts, weights, self.PIXELS, strict=True)
        return concatenated([part.apply_slice(slice_, pixels[pixel], records) for part, slice_, pixel in parts])


class BilinearExpand(StackedLayer):
    """The skip of up cells: aligned bilinear doubling and a 1x1 convolution without bias.

    The convolution comes first: the two are linear and act on different axes, so the numbers are the same at a
    quarter of the cost.
    """

    def __init__(self, count: int, channels_in: int, channels_out: int, dtype=None):
        convolution = StackedConvolution(count, channels_in, channels_out, 1, use_bias=False, dtype=dtype)
        super().__init__(count, [convolution], dtype=dtype)

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        """`[batch, height, width, in]` -> `[batch, 2 height, 2 width, out]`."""
        return aligned_bilinear_upsampling(self.parts[0].apply_slice(weights[0], inputs, records))
