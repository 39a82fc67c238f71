"""Changes of resolution: nearest and aligned bilinear doubling, and the skip connections of resampling cells."""

from collections.abc import Callable

import tensorflow as tf

from nvae_tf.layers.convolution import StackedConvolution, joined
from nvae_tf.layers.cpu_kernels import swish
from nvae_tf.layers.stacked import StackedLayer


@tf.custom_gradient
def nearest_upsampling(inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Doubles height and width of `[batch, height, width, channels]` by repeating every pixel."""
    _, height, width, channels = inputs.shape
    repeated = tf.broadcast_to(inputs[:, :, None, :, None, :], (tf.shape(inputs)[0], height, 2, width, 2, channels))

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        # Sums over 2x2 pixels. TensorFlow's own, a sum over two axes, takes ten times as long on CPUs.
        return 4.0 * tf.nn.avg_pool2d(upstream, 2, 2, "VALID")

    return tf.reshape(repeated, (-1, 2 * height, 2 * width, channels)), gradient


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
        # One rearrangement: the gradients of four strided slices take ten times as long on CPUs. With the gradient of
        # `tf.split` XLA would compile a training step anew each time.
        squares = tf.nn.space_to_depth(swish(inputs), 2)
        _, height, width, channels = squares.shape
        pixels = tf.unstack(tf.reshape(squares, (-1, height, width, 4, channels // 4)), axis=3)
        return joined(
            [
                part.apply_slice(slice_, pixels[pixel], records)
                for part, slice_, pixel in zip(self.parts, weights, self.PIXELS, strict=True)
            ]
        )


class BilinearExpand(StackedLayer):
    """The skip of up cells: aligned bilinear doubling and a 1x1 convolution without bias.

    The convolution comes first: the two are linear and act on different axes, so the numbers are the same at a
    quarter of the cost.
    """

    def __init__(self, count: int, channels_in: int, channels_out: int, **kwargs):
        convolution = StackedConvolution(count, channels_in, channels_out, 1, use_bias=False, dtype=kwargs.get("dtype"))
        super().__init__(count, [convolution], **kwargs)

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        """`[batch, height, width, in]` -> `[batch, 2 height, 2 width, out]`."""
        return aligned_bilinear_upsampling(self.parts[0].apply_slice(weights[0], inputs, records))
