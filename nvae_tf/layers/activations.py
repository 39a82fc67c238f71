"""Activations with gradients that keep little."""

from collections.abc import Callable

import tensorflow as tf


@tf.custom_gradient
def swish(inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """`x * sigmoid(x)` of any shape.

    The sigmoid is computed again in the backward pass rather than kept; `tf.nn.silu` does so too, but also carries a
    learnable slope whose gradient costs a reduction a call.
    """

    def gradient(upstream: tf.Tensor) -> tf.Tensor:
        sigmoid = tf.sigmoid(inputs)
        return upstream * (sigmoid * (1.0 + inputs * (1.0 - sigmoid)))

    return inputs * tf.sigmoid(inputs), gradient
