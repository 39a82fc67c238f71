"""Swish in few passes over memory.

TensorFlow's gradient of softplus, `SoftplusGrad(g, x) = g * sigmoid(x)`, gives both halves of swish in one pass: the
value is `SoftplusGrad(x, x)` and the gradient `SoftplusGrad(g, x) * (1 + x - swish(x))`. `tf.nn.silu` takes more passes
and carries a learnable slope.
"""

from collections.abc import Callable

import tensorflow as tf


@tf.custom_gradient
def swish(inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """`x * sigmoid(x)` of any shape."""
    outputs = tf.raw_ops.SoftplusGrad(gradients=inputs, features=inputs)
    return outputs, lambda upstream: swish_gradient(upstream, inputs, outputs)


def swish_gradient(upstream: tf.Tensor, inputs: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """The gradient of the inputs, from that of the outputs and both of them; all of one shape."""
    sloped = tf.raw_ops.SoftplusGrad(gradients=upstream, features=inputs)
    # Without this the executor would compute the other factor in the forward pass and keep it until now.
    with tf.control_dependencies([sloped]):
        return sloped * (1.0 + (inputs - outputs))
