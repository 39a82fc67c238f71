"""Spectral regularization and the batch-norm regularizer (Vahdat & Kautz 2020, section 3.2)."""

import collections
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from nvae_tf.layers import ForwardPass, StackedBatchNormalization, StackedConvolution, cpu_kernels, kernels_of_all

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
        pairs = power_iteration(fixed, [tf.expand_dims(vector, 1) for vector in self.vectors], iterations)
        forward.updates += [(vector, tf.squeeze(u, 1)) for vector, (_, u) in zip(self.vectors, pairs, strict=True)]
        forward.updates.append((self.warmed_up, tf.ones([])))
        return _norms(matrices, pairs)


def power_iteration(
    matrices: Sequence[tf.Tensor], starts: Sequence[tf.Tensor], iterations: int | tf.Tensor
) -> Sequence[tuple[tf.Tensor, tf.Tensor]]:
    """Singular vectors v `[count, 1, in]` and u `[count, 1, out]`, started from u, of matrices `[count, in, out]`."""
    zeros = [tf.zeros((matrix.shape[0], 1, matrix.shape[1])) for matrix in matrices]

    def iterated(v: list, u: list) -> tuple[list, list]:
        # A row times the transpose is twice as fast on CPUs as `tf.linalg.matvec`.
        pairs = zip(_divided(u, starts), matrices, strict=True)
        v = normalized([tf.matmul(row, matrix, transpose_b=True) for row, matrix in pairs])
        pairs = zip(_divided(v, zeros), matrices, strict=True)
        return v, normalized([tf.matmul(row, matrix) for row, matrix in pairs])

    def normalized(rows: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        # `tf.math.l2_normalize` would make its constants for each.
        axis, smallest = tf.constant([-1]), tf.constant(_SMALLEST_NORM**2)
        squares = ((row, tf.reduce_sum(tf.square(row), axis, keepdims=True)) for row in _joined(rows))
        return [row * tf.math.rsqrt(tf.maximum(square, smallest)) for row, square in squares]

    _, (v, u) = tf.while_loop(
        lambda index, _: index < iterations,
        lambda index, pair: (index + 1, iterated(*pair)),
        (tf.constant(0), (_joined(zeros), _joined(starts))),
    )
    return list(zip(_divided(v, zeros), _divided(u, starts), strict=True))


def _joined(rows: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Tensors `[count, 1, width]`; on GPUs those of each width as one: a few operations in place of many."""
    return [
        tf.concat([rows[place] for place in places], 0) if places[1:] else rows[places[0]] for places in _alike(rows)
    ]


def _divided(joined: Sequence[tf.Tensor], like: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """The rows of each tensor that `_joined` has joined, in its order."""
    found = {}
    for together, places in zip(joined, _alike(like), strict=True):
        pieces = tf.split(together, [like[place].shape[0] for place in places]) if places[1:] else [together]
        found |= zip(places, pieces, strict=True)
    return [found[place] for place in range(len(like))]


def _alike(rows: Sequence[tf.Tensor]) -> list[list[int]]:
    places = collections.defaultdict(list)
    for place, each in enumerate(rows):
        places[each.shape[-1] if cpu_kernels.has_gpus() else place].append(place)
    return list(places.values())


def _norms(matrices: Sequence[tf.Tensor], pairs: Sequence[tuple[tf.Tensor, tf.Tensor]]) -> list[tf.Tensor]:
    """`u^T W v` of every matrix, `[count]`, for rows as `power_iteration` gives them; with gradient through W alone."""

    @tf.custom_gradient
    def operation(*matrices: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        products = [tf.matmul(v, matrix) * u for matrix, (v, u) in zip(matrices, pairs, strict=True)]
        sums = [tf.reduce_sum(rows, axis=(1, 2)) for rows in _joined(products)]

        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
            scaled = zip(pairs, upstream, strict=True)
            return [tf.matmul(v, tf.reshape(each, (-1, 1, 1)) * u, transpose_a=True) for (v, u), each in scaled]

        return _divided(sums, products), gradient

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
