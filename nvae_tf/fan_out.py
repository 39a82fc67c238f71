"""Gradients of a tensor with many uses, added in a fixed order: so that a run can be repeated bit for bit."""

import functools
from collections.abc import Callable

import tensorflow as tf


def fan_out(tensor: tf.Tensor, count: int) -> list[tf.Tensor]:
    """`count` copies of a tensor, one for each of its uses; their gradients are added one after the other.

    Where a tensor has three uses or more, TensorFlow adds the gradients by one AddN, which begins with whichever
    buffer it can write to: the sum's last bits then depend on the order in which the CPU's threads have run. A sum of
    two is the same either way.
    """

    @tf.custom_gradient
    def copies(value: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        return [tf.identity(value) for _ in range(count)], lambda *upstream: functools.reduce(tf.add, upstream)

    return copies(tensor)
