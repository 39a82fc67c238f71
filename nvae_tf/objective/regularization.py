"""Spectral regularisation and the batch-norm regulariser (Vahdat & Kautz 2020, section 3.2)."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from nvae_tf.layers import ForwardPass, StackedBatchNormalization, StackedConvolution

_SMALLEST_NORM = 1e-3


class SpectralRegularizer(keras.layers.Layer):
    """The sum of the largest singular values of all convolutions, by power iteration on persistent vectors.

    A convolution's effective kernel counts as the matrix `[in * height * width, out]`. The left vectors are part of the
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
        starts = tuple(tf.convert_to_tensor(vector) for vector in self.vectors)
        _, vectors = tf.while_loop(
            lambda index, _: index < iterations,
            lambda index, vectors: (index + 1, tuple(map(_iterated, fixed, vectors))),
            (tf.constant(0), starts),
        )
        forward.updates += [*zip(self.vectors, vectors, strict=True), (self.warmed_up, tf.ones([]))]
        return [_norm(matrix, right) for matrix, right in zip(matrices, vectors, strict=True)]


def batch_norm_loss(norms: Sequence[StackedBatchNormalization]) -> tf.Tensor:
    """The sum over all batch normalisations of max |gamma|; tied channels share the gradient evenly."""
    return tf.add_n([tf.reduce_sum(tf.reduce_max(tf.abs(norm.gamma), axis=1)) for norm in norms])


@tf.custom_gradient
def gradients_after_network(images: tf.Tensor, regularisers: tf.Tensor) -> tuple[tuple, Callable]:
    """Both as they are, but the gradient of the regularisers waits for that of the images.

    Images are the network's input: by then the backward pass is through and its activations are gone. Otherwise an
    array of the size of all weights would be made before it starts, and kept beside the activations.
    """

    def gradient(images_gradient: tf.Tensor, regularisers_gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.control_dependencies([images_gradient]):
            return images_gradient, tf.identity(regularisers_gradient)

    return (tf.identity(images), tf.identity(regularisers)), gradient


def _matrices(kernels: tf.Tensor) -> tf.Tensor:
    count, *taps, channels_out = kernels.shape
    return tf.reshape(kernels, (count, -1, channels_out))


def _iterated(matrices: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """One power iteration for each of `matrices` `[count, in, out]` from the vectors `right` `[count, out]`."""
    left = _normalised(_times(matrices, right))
    return _normalised(tf.squeeze(tf.matmul(tf.expand_dims(left, 1), matrices), 1))


def _norm(matrices: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """`u^T W v` of every matrix, `[count]`, with gradient through W alone."""
    image = _times(matrices, tf.stop_gradient(right))
    return tf.reduce_sum(tf.stop_gradient(_normalised(image)) * image, axis=1)


def _times(matrices: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """`W v` of every matrix as a row times the transpose: twice as fast on CPUs as `tf.linalg.matvec`."""
    return tf.squeeze(tf.matmul(tf.expand_dims(right, 1), matrices, transpose_b=True), 1)


def _normalised(vectors: tf.Tensor) -> tf.Tensor:
    norm = tf.sqrt(tf.reduce_sum(tf.square(vectors), axis=-1, keepdims=True))
    return vectors / tf.maximum(norm, _SMALLEST_NORM)
