"""Stacked squeeze-excite gates (Hu et al. 2018; Vahdat & Kautz 2020, figure 3)."""

from typing import NamedTuple

import keras
import tensorflow as tf

from nvae_tf.layers.stacked import ForwardPass, StackedLayer


class SqueezeExciteWeights(NamedTuple):
    """The two dense layers of one gate, in the compute type."""

    reduce_kernel: tf.Tensor
    reduce_bias: tf.Tensor
    expand_kernel: tf.Tensor
    expand_bias: tf.Tensor


class StackedSqueezeExcite(StackedLayer):
    """`count` gates: channel mean -> dense to `max(channels // 16, 4)` -> ReLU -> dense -> sigmoid."""

    def __init__(self, count: int, channels: int, **kwargs):
        super().__init__(count, **kwargs)
        hidden = max(channels // 16, 4)
        for name, units_in, units_out in (("reduce", channels, hidden), ("expand", hidden, channels)):
            uniform = keras.initializers.RandomUniform(-(units_in**-0.5), units_in**-0.5)
            kernel = self.add_weight(name=f"{name}_kernel", shape=(count, units_in, units_out), initializer=uniform)
            bias = self.add_weight(name=f"{name}_bias", shape=(count, units_out), initializer=uniform)
            setattr(self, f"{name}_kernel", kernel)
            setattr(self, f"{name}_bias", bias)

    def slices(self, forward: ForwardPass) -> list[SqueezeExciteWeights]:
        """The dense layers of every gate."""
        variables = (self.reduce_kernel, self.reduce_bias, self.expand_kernel, self.expand_bias)
        columns = [tf.unstack(tf.cast(variable, self.compute_dtype)) for variable in variables]
        return [SqueezeExciteWeights(*row) for row in zip(*columns, strict=True)]

    def apply_slice(self, weights: SqueezeExciteWeights, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        """The gate `[batch, 1, 1, channels]` in (0, 1) for `[batch, height, width, channels]`."""
        squeezed = tf.reduce_mean(inputs, axis=(1, 2))
        hidden = tf.nn.relu(tf.matmul(squeezed, weights.reduce_kernel) + weights.reduce_bias)
        gate = tf.sigmoid(tf.matmul(hidden, weights.expand_kernel) + weights.expand_bias)
        return tf.reshape(gate, (-1, 1, 1, gate.shape[-1]))
