"""The largest singular values of stacks of matrices, by power iteration."""

from collections.abc import Sequence

import tensorflow as tf

from nvae_tf.processors import has_gpus

_SMALLEST_NORM = 1e-3
# Numbers of a stack of matrices that no processor's cache holds, and those that one does: 32 and 8 MiB.
_MANY, _FEW = 2**23, 2**21

# Rows v `[count, 1, in]` and u `[count, 1, out]` of a stack of matrices `[count, in, out]`.
Vectors = tuple[tf.Tensor, tf.Tensor]


def power_iteration(
    matrices: Sequence[tf.Tensor], starts: Sequence[tf.Tensor], iterations: int | tf.Tensor
) -> list[Vectors]:
    """The singular vectors v and u of every stack after so many iterations.

    Args:
      matrices: stacks `[count, in, out]`.
      starts: their rows u `[count, 1, out]` before.
      iterations: how many, at least 1.
    """
    # Each iteration reads all matrices twice and computes little with them.
    large = [not has_gpus() and matrix.shape.num_elements() > _MANY for matrix in matrices]
    columns = list(zip(matrices, starts, large, strict=True))
    small = [(matrix, u) for matrix, u, is_large in columns if not is_large]
    together = iter(_iterate(*zip(*small, strict=True), iterations) if small else ())
    return [_iterate_in_parts(matrix, u, iterations) if is_large else next(together) for matrix, u, is_large in columns]


def _iterate(
    matrices: Sequence[tf.Tensor], starts: Sequence[tf.Tensor], iterations: int | tf.Tensor
) -> Sequence[Vectors]:
    pairs = tuple(
        (tf.zeros((*matrix.shape[:1], 1, matrix.shape[1])), u) for matrix, u in zip(matrices, starts, strict=True)
    )
    _, pairs = tf.while_loop(
        lambda index, _: index < iterations,
        lambda index, pairs: (index + 1, tuple(map(_iterated, matrices, pairs))),
        (tf.constant(0), pairs),
    )
    return pairs


def _iterate_in_parts(matrices: tf.Tensor, starts: tf.Tensor, iterations: int | tf.Tensor) -> Vectors:
    """One stack, some of its matrices at a time: these stay in the cache for all iterations, which halves the time."""
    count = matrices.shape[0]
    size = max(1, _FEW * count // matrices.shape.num_elements())
    parts = -(-count // size)
    # The last part may have the last matrix several times.
    places = tf.reshape(tf.minimum(tf.range(parts * size), count - 1), (parts, size))

    def part(places: tf.Tensor) -> Vectors:
        some, rows = (tf.ensure_shape(tf.gather(of, places), (size, *of.shape[1:])) for of in (matrices, starts))
        (pair,) = _iterate([some], [rows], iterations)
        return pair

    pairs = tf.map_fn(part, places, fn_output_signature=(tf.float32, tf.float32), parallel_iterations=1)
    return tuple(tf.reshape(rows, (parts * size, 1, -1))[:count] for rows in pairs)


def _iterated(matrices: tf.Tensor, pair: Vectors) -> Vectors:
    """One power iteration. A row times the transpose is twice as fast on CPUs as `tf.linalg.matvec`."""
    _, u = pair
    v = _normalised(tf.matmul(u, matrices, transpose_b=True))
    return v, _normalised(tf.matmul(v, matrices))


def _normalised(rows: tf.Tensor) -> tf.Tensor:
    """Every row `[count, 1, size]` divided by its norm, but not by less than the smallest."""
    return tf.math.l2_normalize(rows, axis=-1, epsilon=_SMALLEST_NORM**2)
