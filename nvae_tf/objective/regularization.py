"""Spectral regularisation and the batch-norm regularizer (Vahdat & Kautz 2020, section 3.2)."""

import collections
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from nvae_tf.layers import ForwardPass, StackedBatchNormalization, StackedConvolution
from nvae_tf.objective.power_iteration import power_iteration


class SpectralRegularizer(keras.layers.Layer):
    """The sum of the largest singular values of all convolutions, by power iteration on persistent vectors.

    A convolution's effective kernel counts as the matrix `[in * height * width, out]`. The vectors u are part of the
    model's state and saved with it; until they have warmed up they are iterated ten times as long.
    """

    ITERATIONS = 4
    FIRST_ITERATIONS = 40

    def __init__(self, convolutions: Sequence[StackedConvolution], **kwargs):
        super().__init__(**kwargs)
        # Behind a function: the stacks are the network's parts, not this layer's.
        self._kernels = lambda forward: [convolution.kernels_of(forward) for convolution in convolutions]
        self.vectors = [
            self.add_weight(
                name=f"vectors_{index}",
                shape=(convolution.count, convolution.channels_out),
                initializer=keras.initializers.RandomNormal(stddev=1.0),
                trainable=False,
                aggregation="only_first_replica",
            )
            for index, convolution in enumerate(convolutions)
        ]
        self.warmed_up = self.add_weight(
            name="warmed_up", shape=(), initializer="zeros", trainable=False, aggregation="only_first_replica"
        )
        self.built = True

    def norms(self, forward: ForwardPass, iterations: int | None = None) -> list[tf.Tensor]:
        """The largest singular values, `[count]` for every stack, of the pass's effective kernels.

        The gradient goes through `u^T W v` only. The iterated vectors are left with the pass as an update.
        """
        matrices = [_matrices(kernels) for kernels in self._kernels(forward)]
        if iterations is None:
            iterations = tf.where(self.warmed_up > 0.0, self.ITERATIONS, self.FIRST_ITERATIONS)
        fixed = [tf.stop_gradient(matrix) for matrix in matrices]
        pairs = power_iteration(fixed, [tf.expand_dims(vector, 1) for vector in self.vectors], iterations)
        forward.updates += [(vector, tf.squeeze(u, 1)) for vector, (_, u) in zip(self.vectors, pairs, strict=True)]
        forward.updates.append((self.warmed_up, tf.ones([])))
        return [_norm(matrix, v, u) for matrix, (v, u) in zip(matrices, pairs, strict=True)]


def batch_norm_loss(norms: Sequence[StackedBatchNormalization]) -> tf.Tensor:
    """The sum over all batch normalizations of max |gamma|; tied channels share the gradient evenly."""
    by_width = collections.defaultdict(list)
    for norm in norms:
        by_width[norm.gamma.shape[1]].append(norm.gamma)
    largest = [tf.reduce_max(tf.abs(tf.concat(gammas, axis=0)), axis=1) for gammas in by_width.values()]
    return tf.reduce_sum(tf.concat(largest, axis=0))


@tf.custom_gradient
def gradients_after_network(images: tf.Tensor, regularizers: tf.Tensor) -> tuple[tuple, Callable]:
    """Both as they are, but the gradient of the regularizers waits for that of the images.

    Images are the network's input: by then the backward pass is through and its activations are gone. Otherwise an
    array of the size of all weights would be made before it starts, and kept beside the activations.
    """

    def gradient(images_gradient: tf.Tensor, regularizers_gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.control_dependencies([images_gradient]):
            return images_gradient, tf.identity(regularizers_gradient)

    return (tf.identity(images), tf.identity(regularizers)), gradient


def _matrices(kernels: tf.Tensor) -> tf.Tensor:
    count, *taps, channels_out = kernels.shape
    return tf.reshape(kernels, (count, -1, channels_out))


@tf.custom_gradient
def _norm(matrices: tf.Tensor, v: tf.Tensor, u: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """`u^T W v` of every matrix, `[count]`, for rows as `power_iteration` gives them; with gradient through W alone."""

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None, None]:
        return tf.matmul(v, tf.reshape(upstream, (-1, 1, 1)) * u, transpose_a=True), None, None

    return tf.reduce_sum(tf.matmul(v, matrices) * u, axis=(1, 2)), gradient
