"""The gradients of one training step: in one go, or in parts of the batch one after the other."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from nvae_tf.replicas import replica_count


def sum_over_parts(part: Callable[[tf.Tensor], list[tf.Tensor]], count: int, like: Sequence) -> list[tf.Tensor]:
    """`sum_i part(i)` for `i < count`, with the memory of one part.

    Args:
      part: the number of a part, an int32 scalar -> tensors.
      count: how many parts there are.
      like: variables or tensors of the same shapes, in float32.
    """
    sums = [tf.zeros(tensor.shape) for tensor in like]
    if replica_count() == 1:
        return tf.while_loop(
            lambda index, *_: index < count,
            lambda index, *sums: (index + 1, *map(tf.add, sums, part(index))),
            (tf.constant(0), *sums),
            parallel_iterations=1,
        )[1:]
    # Replicas can't ask each other for anything from within a loop of the graph.
    for index in range(count):
        with tf.control_dependencies(sums):
            sums = [total + value for total, value in zip(sums, part(tf.constant(index)), strict=True)]
    return sums
