"""Spectral regularization and the batch-norm regularizer (Vahdat & Kautz 2020, section 3.2)."""

import collections
import functools
import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from nvae_tf import layers
from nvae_tf.layers import cpu_kernels

_normalized = functools.partial(tf.math.l2_normalize, axis=-1, epsilon=1e-3**2)  # rows, by their norm or 1e-3


class SpectralRegularizer(keras.layers.Layer):
    """The sum of the largest singular values of all convolutions, by power iteration on persistent vectors."""

    # A kernel counts as the matrix `[in * height * width, out]`. The first pass iterates ten times as long.

    ITERATIONS = 4
    FIRST_ITERATIONS = 40

    def __init__(self, convolutions: Sequence[layers.StackedConvolution], **kwargs):
        super().__init__(**kwargs)
        # Behind a function: the stacks are the network's parts, not this layer's.
        self._kernels = lambda forward: layers.kernels_of_all(convolutions, forward)
        state = {"trainable": False, "aggregation": "only_first_replica"}
        normal = keras.initializers.RandomNormal
        self.vectors = [
            self.add_weight((stack.count, stack.channels_out), normal(stddev=1.0), name=f"vectors_{index}", **state)
            for index, stack in enumerate(convolutions)
        ]
        self.warmed_up = self.add_weight(name="warmed_up", shape=(), initializer="zeros", **state)
        self.built = True

    def norms(self, forward: layers.ForwardPass) -> list[tf.Tensor]:
        """The largest singular values `[count]` of each stack's kernels; the new vectors go to `forward`."""
        matrices = [tf.reshape(stack, (stack.shape[0], -1, stack.shape[-1])) for stack in self._kernels(forward)]
        iterations = tf.where(self.warmed_up > 0.0, self.ITERATIONS, self.FIRST_ITERATIONS)
        axis = tf.constant(1)
        starts = [tf.expand_dims(vector, axis) for vector in self.vectors]
        iterate = _power_iteration_of_each if forward.cpu_forms else _power_iteration_of_all
        v, u, norms = iterate(matrices, starts, iterations)
        forward.known_updates += [(vector, tf.squeeze(new, 1)) for vector, new in zip(self.vectors, u, strict=True)]
        forward.known_updates.append((self.warmed_up, tf.ones([])))
        return _norms(matrices, v, u, norms)


# Both functions take matrices W `[count, in, out]`, vectors u to start from, and the number of iterations. They return
# three lists: the singular vectors v `[count, 1, in]` and u `[count, 1, out]`, and the norms `u^T W v` `[count]`.


def _power_iteration_of_each(matrices, starts, iterations) -> list[tuple[tf.Tensor, ...]]:
    # Eagerly operation by operation: once a tape has seen a function with a loop, forward mode can't differentiate it.
    iterate = _power_iteration_of_one.python_function if tf.executing_eagerly() else _power_iteration_of_one
    singular = []
    for matrix, start in zip(matrices, starts, strict=True):
        v, u, norm = iterate(matrix, start, tf.convert_to_tensor(iterations, tf.int32))
        v.set_shape((matrix.shape[0], 1, matrix.shape[1]))
        u.set_shape(start.shape)
        norm.set_shape(matrix.shape[:1])
        singular.append((v, u, norm))
    return list(zip(*singular, strict=True))


# One matrix after the other, so that the cache has it for all its products.
@cpu_kernels.shared_function(tf.TensorSpec([None] * 3), tf.TensorSpec([None, 1, None]), tf.TensorSpec([], tf.int32))
def _power_iteration_of_one(matrix: tf.Tensor, start: tf.Tensor, iterations: tf.Tensor) -> tuple[tf.Tensor, ...]:
    def iterated(index: tf.Tensor, v: tf.Tensor, u: tf.Tensor, norm: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # A row times the transpose is twice as fast on CPUs as `tf.linalg.matvec`.
        v = _normalized(tf.matmul(u, matrix, transpose_b=True))
        product = tf.matmul(v, matrix)
        u = _normalized(product)
        return index + 1, v, u, tf.reduce_sum(product * u, (1, 2))

    count, rows, _ = tf.unstack(tf.shape(matrix))
    begin = tf.constant(0), tf.zeros((count, 1, rows)), start, tf.zeros([count])
    return tf.while_loop(lambda index, *_: index < iterations, iterated, begin)[1:]


def _power_iteration_of_all(matrices, starts, iterations) -> tuple[list[tf.Tensor], ...]:
    # On GPUs the rows of each width are one, a few operations in place of many.
    specs = ([tf.TensorSpec((each.shape[0], 1, each.shape[axis])) for each in matrices] for axis in (1, 2))
    v_packing, u_packing = (layers.FirstAxisPacking(each, math.inf) for each in specs)

    def iterated(v: list, u: list) -> tuple[list, list]:
        pairs = zip(u_packing.unpack(u), matrices, strict=True)
        v = list(map(_normalized, v_packing.pack([tf.matmul(row, matrix, transpose_b=True) for row, matrix in pairs])))
        pairs = zip(v_packing.unpack(v), matrices, strict=True)
        return v, list(map(_normalized, u_packing.pack([tf.matmul(row, matrix) for row, matrix in pairs])))

    _, (v, u) = tf.while_loop(
        lambda index, _: index < iterations,
        lambda index, pair: (index + 1, iterated(*pair)),
        (tf.constant(0), ([tf.zeros(spec.shape) for spec in v_packing.specs], u_packing.pack(starts))),
    )
    axes, v, u = tf.constant((1, 2)), v_packing.unpack(v), u_packing.unpack(u)
    triples = zip(v, matrices, u, strict=True)
    return v, u, [tf.reduce_sum(tf.matmul(left, matrix) * right, axes) for left, matrix, right in triples]


# A function, because forward mode looks into custom gradients but not into functions.
@tf.function(autograph=False)
@tf.custom_gradient
def _norms(matrices, v, u, norms) -> tuple[list[tf.Tensor], Callable]:
    """`u^T W v` of every matrix, `[count]`, with a gradient through W alone, whose own gradient is of u and v too."""

    def gradient(*upstream: tf.Tensor) -> list:
        scaled = [tf.reshape(scale, (-1, 1, 1)) * row for scale, row in zip(upstream, u, strict=True)]
        products = [tf.matmul(left, right, transpose_a=True) for left, right in zip(v, scaled, strict=True)]
        return [products, *[[None] * len(norms)] * 3]

    return [tf.identity(norm) for norm in norms], gradient


def batch_norm_loss(norms: Sequence[layers.StackedBatchNormalization]) -> tf.Tensor:
    """The sum over all batch normalizations of max |gamma|; tied channels share the gradient evenly."""
    by_width = collections.defaultdict(list)
    for norm in norms:
        by_width[norm.gamma.shape[1]].append(norm.gamma)
    largest = [tf.reduce_max(tf.abs(tf.concat(gammas, axis=0)), axis=1) for gammas in by_width.values()]
    return tf.reduce_sum(tf.concat(largest, axis=0))


@tf.custom_gradient
def identity_with_ordered_gradients(images: tf.Tensor, regularizers: tf.Tensor) -> tuple[tuple, Callable]:
    """Both unchanged; in the backward pass the gradient of the regularizers waits for the images' gradient."""
    # By then the activations are freed; gradients of the size of all weights would be kept beside them.

    def gradient(images_gradient: tf.Tensor, regularizers_gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.control_dependencies([images_gradient]):
            return images_gradient, tf.identity(regularizers_gradient)

    return (tf.identity(images), tf.identity(regularizers)), gradient
