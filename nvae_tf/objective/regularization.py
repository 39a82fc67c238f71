"""Spectral regularization and the batch-norm regularizer (Vahdat & Kautz 2020, section 3.2)."""

import collections
import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from nvae_tf.layers import (
    ForwardPass,
    Joining,
    StackedBatchNormalization,
    StackedConvolution,
    cpu_kernels,
    kernels_of_all,
)

_SMALLEST_NORM = 1e-3


class SpectralRegularizer(keras.layers.Layer):
    """The sum of the largest singular values of all convolutions, by power iteration on persistent vectors.

    A convolution's effective kernel counts as the matrix `[in * height * width, out]`. The vectors u are part of the
    model's state and saved with it; the first pass iterates ten times as long.
    """

    ITERATIONS = 4
    FIRST_ITERATIONS = 40

    def __init__(self, convolutions: Sequence[StackedConvolution], **kwargs):
        super().__init__(**kwargs)
        # Behind a function: the stacks are the network's parts, not this layer's.
        self._kernels = lambda forward: kernels_of_all(convolutions, forward)
        state = {"trainable": False, "aggregation": "only_first_replica"}
        normal = keras.initializers.RandomNormal
        self.vectors = [
            self.add_weight((stack.count, stack.channels_out), normal(stddev=1.0), name=f"vectors_{index}", **state)
            for index, stack in enumerate(convolutions)
        ]
        self.warmed_up = self.add_weight(name="warmed_up", shape=(), initializer="zeros", **state)
        self.built = True

    def norms(self, forward: ForwardPass, iterations: int | None = None) -> list[tf.Tensor]:
        """The largest singular values, `[count]` for every stack, of the pass's effective kernels.

        The gradient goes through `u^T W v` only. The iterated vectors are left with the pass as an update.
        """
        kernels = self._kernels(forward)
        matrices = [tf.reshape(stack, (stack.shape[0], -1, stack.shape[-1])) for stack in kernels]
        if iterations is None:
            iterations = tf.where(self.warmed_up > 0.0, self.ITERATIONS, self.FIRST_ITERATIONS)
        fixed = [tf.stop_gradient(matrix) for matrix in matrices]
        axis = tf.constant(1)
        pairs = power_iteration(fixed, [tf.expand_dims(vector, axis) for vector in self.vectors], iterations)
        forward.updates += [(vector, tf.squeeze(u, 1)) for vector, (_, u) in zip(self.vectors, pairs, strict=True)]
        forward.updates.append((self.warmed_up, tf.ones([])))
        return _norms(matrices, pairs)


def power_iteration(
    matrices: Sequence[tf.Tensor], starts: Sequence[tf.Tensor], iterations: int | tf.Tensor
) -> Sequence[tuple[tf.Tensor, tf.Tensor]]:
    """Singular vectors v `[count, 1, in]` and u `[count, 1, out]`, started from u, of matrices `[count, in, out]`."""
    # On GPUs those of each width are one, a few operations in place of many. On CPUs each matrix is at once multiplied
    # from both sides, while the cache has it.
    small = math.inf if cpu_kernels.has_gpus() else 0
    specs = ([tf.TensorSpec((each.shape[0], 1, each.shape[axis])) for each in matrices] for axis in (1, 2))
    of_v, of_u = (Joining(each, small) for each in specs)

    def iterated(v: list, u: list) -> tuple[list, list]:
        # A row times the transpose is twice as fast on CPUs as `tf.linalg.matvec`.
        pairs = zip(of_u.divided(u), matrices, strict=True)
        v = normalized(of_v.joined([tf.matmul(row, matrix, transpose_b=True) for row, matrix in pairs]))
        pairs = zip(of_v.divided(v), matrices, strict=True)
        return v, normalized(of_u.joined([tf.matmul(row, matrix) for row, matrix in pairs]))

    def normalized(rows: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        # `tf.math.l2_normalize` would make its constants for each.
        axis, smallest = tf.constant([-1]), tf.constant(_SMALLEST_NORM**2)
        squares = ((row, tf.reduce_sum(tf.square(row), axis, keepdims=True)) for row in rows)
        return [row * tf.math.rsqrt(tf.maximum(square, smallest)) for row, square in squares]

    _, (v, u) = tf.while_loop(
        lambda index, _: index < iterations,
        lambda index, pair: (index + 1, iterated(*pair)),
        (tf.constant(0), ([tf.zeros(spec.shape) for spec in of_v.specs], of_u.joined(starts))),
    )
    return list(zip(of_v.divided(v), of_u.divided(u), strict=True))


def _norms(matrices: Sequence[tf.Tensor], pairs: Sequence[tuple[tf.Tensor, tf.Tensor]]) -> list[tf.Tensor]:
    """`u^T W v` of every matrix, `[count]`, for rows as `power_iteration` gives them; with gradient through W alone."""

    @tf.custom_gradient
    def operation(*matrices: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        axes, products = tf.constant((1, 2)), zip(matrices, pairs, strict=True)
        sums = [tf.reduce_sum(tf.matmul(v, matrix) * u, axes) for matrix, (v, u) in products]

        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
            scaled = zip(pairs, upstream, strict=True)
            return [tf.matmul(v, tf.reshape(each, (-1, 1, 1)) * u, transpose_a=True) for (v, u), each in scaled]

        return sums, gradient

    return operation(*matrices)


def batch_norm_loss(norms: Sequence[StackedBatchNormalization]) -> tf.Tensor:
    """The sum over all batch normalizations of max |gamma|; tied channels share the gradient evenly."""
    by_width = collections.defaultdict(list)
    for norm in norms:
        by_width[norm.gamma.shape[1]].append(norm.gamma)
    largest = [tf.reduce_max(tf.abs(tf.concat(gammas, axis=0)), axis=1) for gammas in by_width.values()]
    return tf.reduce_sum(tf.concat(largest, axis=0))


@tf.custom_gradient
def gradients_after_network(images: tf.Tensor, regularizers: tf.Tensor) -> tuple[tuple, Callable]:
    """Both unchanged, but the gradient of the regularizers waits for that of the images, the network's input.

    By then the activations are freed. Otherwise gradients of the size of all weights would be kept beside them.
    """

    def gradient(images_gradient: tf.Tensor, regularizers_gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.control_dependencies([images_gradient]):
            return images_gradient, tf.identity(regularizers_gradient)

    return (tf.identity(images), tf.identity(regularizers)), gradient
