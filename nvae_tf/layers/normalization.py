"""Batch norm as an operation: by TensorFlow's fused kernel where that is enough, else written out.

The fused kernel knows the images of one replica only, and on CPUs not every half-precision type.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from nvae_tf.layers.cpu_kernels import on_one_cpu, swish, swish_gradient
from nvae_tf.replicas import replica_count, replica_means

EPSILON = 1e-5
_AXES = (0, 1, 2)


class NormalizedBatch(NamedTuple):
    """Images `[batch, height, width, channels]` normalized by their own statistics, each `[channels]` in float32.

    Attributes:
      outputs: as the inputs, in their type.
      mean: of all replicas' images.
      variance: theirs, unbiased.
      biased_variance: makes the one that was divided by.
      gradient: gradient of the outputs -> those of inputs, gamma and beta.
    """

    outputs: tf.Tensor
    mean: tf.Tensor
    variance: tf.Tensor
    biased_variance: Callable[[], tf.Tensor]
    gradient: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, tf.Tensor]]


def normalize(inputs, gamma, beta, mean, variance) -> tf.Tensor:
    """Batch norm with given statistics `[channels]`; computed in float32, in the inputs' type outside."""
    if inputs.dtype != tf.float32:
        return tf.cast(_written_out_norm(inputs, gamma, beta, mean, variance), inputs.dtype)
    return tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=gamma,
        offset=beta,
        mean=mean,
        variance=variance,
        epsilon=EPSILON,
        is_training=False,
    ).y


def normalized_swish(inputs, gamma, beta, mean, variance) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """Batch norm with given statistics, then swish; without a gradient of its own.

    Args:
      inputs: `[batch, height, width, channels]`.
      gamma: scale `[channels]`, float32 as the three that follow.
      beta: shift.
      mean: what is subtracted.
      variance: makes the deviation that is divided by.

    Returns:
      The outputs, in the inputs' shape and type, and a function: gradient of the outputs -> that of what swish is
      taken of. In training on one CPU both are compiled to a single pass over the memory, anew for every shape.
    """
    if on_one_cpu():
        arguments = inputs, gamma, beta, mean, variance
        return _swish_in_one_pass(*arguments), lambda upstream: _swish_gradient_in_one_pass(upstream, *arguments)
    normalized = normalize(inputs, gamma, beta, mean, variance)
    outputs = swish(normalized)
    return outputs, lambda upstream: swish_gradient(upstream, normalized, outputs)


def normalize_batch(inputs, gamma, beta) -> NormalizedBatch:
    """Batch norm with the statistics of the batch, that of all replicas; without a gradient of its own."""
    if replica_count() == 1 and inputs.dtype == tf.float32:
        return _fused(inputs, gamma, beta)
    return _written_out(inputs, gamma, beta)


@tf.function(autograph=False, jit_compile=True)
def _swish_in_one_pass(inputs, gamma, beta, mean, variance) -> tf.Tensor:
    normalized = _written_out_norm(inputs, gamma, beta, mean, variance)
    return tf.cast(normalized * tf.sigmoid(normalized), inputs.dtype)


@tf.function(autograph=False, jit_compile=True)
def _swish_gradient_in_one_pass(upstream, inputs, gamma, beta, mean, variance) -> tf.Tensor:
    normalized = _written_out_norm(inputs, gamma, beta, mean, variance)
    slope = tf.sigmoid(normalized)
    return tf.cast(tf.cast(upstream, tf.float32) * slope * (1.0 + normalized * (1.0 - slope)), inputs.dtype)


def _written_out_norm(inputs, gamma, beta, mean, variance) -> tf.Tensor:
    return (tf.cast(inputs, tf.float32) - mean) * (gamma * tf.math.rsqrt(variance + EPSILON)) + beta


def _fused(inputs, gamma, beta) -> NormalizedBatch:
    norm = tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=gamma, offset=beta, mean=[], variance=[], epsilon=EPSILON, is_training=True
    )

    def biased_variance() -> tf.Tensor:
        size = numbers_a_channel(inputs)
        return norm.batch_variance * ((size - 1.0) / size)

    def gradient(upstream):
        gradients = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=upstream,
            x=inputs,
            scale=gamma,
            reserve_space_1=norm.reserve_space_1,
            reserve_space_2=norm.reserve_space_2,
            reserve_space_3=norm.reserve_space_3,
            epsilon=EPSILON,
            is_training=True,
        )
        return tuple(gradients[:3])

    return NormalizedBatch(norm.y, norm.batch_mean, norm.batch_variance, biased_variance, gradient)


def _written_out(inputs, gamma, beta) -> NormalizedBatch:
    mean, biased = moments(inputs)
    size = numbers_a_channel(inputs)
    outputs = normalize(inputs, gamma, beta, mean, biased)

    def gradient(upstream):
        # Without this the executor would do it as soon as it can, in the forward pass, and keep the results.
        with tf.control_dependencies([upstream]):
            inverse = tf.math.rsqrt(biased + EPSILON)
            standardized = (tf.cast(inputs, tf.float32) - mean) * inverse
        upstream = tf.cast(upstream, tf.float32)
        beta_gradient = tf.reduce_sum(upstream, _AXES)
        gamma_gradient = tf.reduce_sum(upstream * standardized, _AXES)
        # All images of all replicas have moved the statistics.
        shared = replica_means([beta_gradient, gamma_gradient])
        beta_share, gamma_share = (replica_count() * value / size for value in shared)
        inputs_gradient = gamma * inverse * (upstream - beta_share - standardized * gamma_share)
        return tf.cast(inputs_gradient, inputs.dtype), gamma_gradient, beta_gradient

    return NormalizedBatch(outputs, mean, biased * (size / tf.maximum(size - 1.0, 1.0)), lambda: biased, gradient)


def moments(inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and biased variance `[channels]` in float32 of all replicas' images; each replica has as many."""
    values = tf.cast(inputs, tf.float32)
    mean = tf.reduce_mean(values, _AXES)
    centered = values - mean
    variance = tf.reduce_mean(tf.square(centered), _AXES)
    if replica_count() == 1:
        return mean, variance
    # In float32 E[x^2] - E[x]^2 is off by a tenth where means are 1,000 deviations. There the mean itself is off by
    # 1e-3 deviations, the rounding of a long sum; the mean of the centered values corrects it.
    rest = tf.cast(tf.reduce_mean(centered, _AXES), tf.float64)
    mean = tf.cast(mean, tf.float64) + rest
    square = tf.cast(variance, tf.float64) - tf.square(rest) + tf.square(mean)
    mean, square = replica_means([mean, square])
    variance = tf.maximum(square - tf.square(mean), 0.0)
    return tf.cast(mean, tf.float32), tf.cast(variance, tf.float32)


def numbers_a_channel(inputs: tf.Tensor) -> tf.Tensor:
    """How many numbers the moments of a channel are of."""
    return replica_count() * tf.cast(tf.size(inputs) / inputs.shape[-1], tf.float32)
