"""The largest singular values of stacks of matrices, by power iteration."""

from collections.abc import Sequence

import tensorflow as tf

_SMALLEST_NORM = 1e-3

# Rows v `[count, 1, in]` and u `[count, 1, out]` of a stack of matrices `[count, in, out]`.
Vectors = tuple[tf.Tensor, tf.Tensor]


def power_iteration(
    matrices: Sequence[tf.Tensor], starts: Sequence[tf.Tensor], iterations: int | tf.Tensor
) -> Sequence[Vectors]:
    """The singular vectors v and u of every stack after so many iterations.

    Args:
      matrices: stacks `[count, in, out]`.
      starts: their rows u `[count, 1, out]` before.
      iterations: how many, at least 1.
    """
    pairs = tuple(
        (tf.zeros((*matrix.shape[:1], 1, matrix.shape[1])), u) for matrix, u in zip(matrices, starts, strict=True)
    )
    _, pairs = tf.while_loop(
        lambda index, _: index < iterations,
        lambda index, pairs: (index + 1, tuple(map(_iterated, matrices, pairs))),
        (tf.constant(0), pairs),
    )
    return pairs


def _iterated(matrices: tf.Tensor, pair: Vectors) -> Vectors:
    """One power iteration. A row times the transpose is twice as fast on CPUs as `tf.linalg.matvec`."""
    _, u = pair
    v = _normalized(tf.matmul(u, matrices, transpose_b=True))
    return v, _normalized(tf.matmul(v, matrices))


def _normalized(rows: tf.Tensor) -> tf.Tensor:
    """Every row `[count, 1, size]` divided by its norm, but not by less than the smallest."""
    return tf.math.l2_normalize(rows, axis=-1, epsilon=_SMALLEST_NORM**2)
