"""Sums over the parts of a batch, one after the other."""

from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf

from nvae_tf.replicas import replica_count

Structure = TypeVar("Structure")


def sum_over_parts(part: Callable[[tf.Tensor], Structure], count: int, like: Structure) -> Structure:
    """`sum_i part(i)` for `i < count`, with the memory of one part.

    Args:
      part: the number of a part, an int32 scalar -> tensors in any structure.
      count: how many parts there are.
      like: variables or tensors of the same shapes and structure, in float32.
    """

    def add(sums: Structure, index: tf.Tensor) -> Structure:
        return tf.nest.map_structure(tf.add, sums, part(index))

    sums = tf.nest.map_structure(lambda tensor: tf.zeros(tensor.shape), like)
    if replica_count() == 1:
        loop = (lambda index, _: index < count), (lambda index, sums: (index + 1, add(sums, index)))
        return tf.while_loop(*loop, (tf.constant(0), sums), parallel_iterations=1)[1]
    # Replicas can't ask each other for anything from within a loop of the graph.
    for index in range(count):
        with tf.control_dependencies(tf.nest.flatten(sums)):
            sums = add(sums, tf.constant(index))
    return sums
