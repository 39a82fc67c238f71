"""The inverse autoregressive flow pair that makes the posterior more expressive (Vahdat & Kautz 2020, section 3.4).

A cell maps `z` to `z - m(z)`, where output pixel and channel depend only on earlier ones in raster order, so its
log-determinant is 0. The second cell of a pair sees the image mirrored: together, each pixel has seen all others.
"""

import math

import numpy as np
import tensorflow as tf

from nvae_tf.latent_plan import HIDDEN_MULTIPLE
from nvae_tf.layers import StackedConvolution, StackedLayer


def causal_mask(size: int, channels_in: int, channels_out: int, strict: bool, mirrored: bool) -> np.ndarray:
    """Mask `[size, size, in, out]` of a convolution that looks only at what comes earlier in raster order.

    At the center, channels are in blocks (equal runs of the wider side, one for each channel of the narrower): output
    block `i` sees input blocks `< i` where `strict`, else `<= i`. `mirrored` flips height and width, not the channels.
    """
    center, narrower = size // 2, min(channels_in, channels_out)
    mask = np.zeros((size, size, channels_in, channels_out), np.float32)
    mask[:center] = 1.0
    mask[center, :center] = 1.0
    block_in, block_out = (np.arange(channels) * narrower // channels for channels in (channels_in, channels_out))
    mask[center, center] = (np.less if strict else np.less_equal)(block_in[:, None], block_out)
    return mask[::-1, ::-1].copy() if mirrored else mask


class FlowCells(StackedLayer):
    """`count` masked cells `z - m(z)` on float32 latents `[batch, height, width, channels]`."""

    def __init__(self, count: int, channels: int, mirrored: bool, dtype=None):
        def masked(channels_in: int, channels_out: int, size: int, strict: bool = False, groups: int = 1, **settings):
            settings |= {"mask": causal_mask(size, channels_in // groups, channels_out, strict, mirrored)}
            return StackedConvolution(count, channels_in, channels_out, size, groups=groups, dtype=dtype, **settings)

        hidden = HIDDEN_MULTIPLE * channels
        parts = [
            masked(channels, hidden, 3, strict=True, use_bias=False),
            masked(hidden, hidden, 5, groups=hidden, use_bias=False),
            masked(hidden, channels, 1, log_norm_offset=-math.log(10.0)),
        ]
        super().__init__(count, parts, dtype=dtype)

    def apply_layer(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        first, depthwise, last = self.parts
        hidden = tf.nn.elu(first.apply_layer(weights[0], tf.cast(inputs, self.compute_dtype), records))
        hidden = tf.nn.elu(tf.nn.elu(depthwise.apply_layer(weights[1], hidden, records)))
        return inputs - tf.cast(last.apply_layer(weights[2], hidden, records), inputs.dtype)


class FlowPairs(StackedLayer):
    """`count` pairs of cells on `[batch, height, width, channels]`, the second of each with the mirrored mask."""

    def __init__(self, count: int, channels: int, dtype=None):
        cells = [FlowCells(count, channels, mirrored, dtype=dtype) for mirrored in (False, True)]
        super().__init__(count, cells, dtype=dtype)
