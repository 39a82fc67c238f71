"""Batch normalization over all replicas: as an operation, as a stack of layers, and folded into convolutions."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.layers.cpu_kernels import EPSILON, gradients_of, normalize, on_one_cpu
from nvae_tf.layers.stacked import ForwardPass, StackedLayer, Weights
from nvae_tf.replicas import replica_count, replica_means

MOMENTUM = 0.95
_AXES = (0, 1, 2)

# The weights of every stack that owns some, with a leading axis; an empty tuple for a batch norm that is folded.
FoldedWeights = Mapping[StackedLayer, Weights]


class NormalizedBatch(NamedTuple):
    """Images `[batch, height, width, channels]` normalized by the statistics of all replicas, `[channels]`, float32."""

    outputs: tf.Tensor
    mean: tf.Tensor
    variance: tf.Tensor  # unbiased
    divisors: Callable[[], tuple[tf.Tensor, tf.Tensor]]  # makes the mean and the biased variance, with gradients
    gradient: Callable[[tf.Tensor], tuple[tf.Tensor, ...]]  # the outputs' -> inputs', gamma's, beta's


def normalize_batch(inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> NormalizedBatch:
    """Batch norm with the statistics of the batch of all replicas; without a gradient of its own."""
    # By TensorFlow's kernel, but not for several replicas, nor on a GPU in half precision: XLA, which compiles the step
    # there, takes E[x^2] - E[x]^2 as its variance.
    is_fused = on_one_cpu() or (replica_count() == 1 and inputs.dtype == tf.float32)
    return (_fused if is_fused else _written_out)(inputs, gamma, beta)


def _fused(inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> NormalizedBatch:
    none = tf.constant([], tf.float32)
    settings = {"epsilon": EPSILON, "is_training": True}
    norm = tf.raw_ops.FusedBatchNormV3(x=inputs, scale=gamma, offset=beta, mean=none, variance=none, **settings)

    def divisors() -> tuple[tf.Tensor, tf.Tensor]:
        size = numbers_a_channel(inputs)
        return _as_moments(inputs, norm.batch_mean, norm.batch_variance * ((size - 1.0) / size))

    @tf.custom_gradient
    def gradient(*arguments: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], Callable]:
        upstream, inputs, gamma = arguments
        reserved = {f"reserve_space_{index}": getattr(norm, f"reserve_space_{index}") for index in (1, 2, 3)}
        gradients = tf.raw_ops.FusedBatchNormGradV3(y_backprop=upstream, x=inputs, scale=gamma, **reserved, **settings)

        def written_out(upstream: tf.Tensor, inputs: tf.Tensor, gamma: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return _written_out(inputs, gamma, beta=gamma).gradient(upstream)

        # TensorFlow's own gradient of this is by a tape, which records nothing in forward mode within a function.
        return tuple(gradients[:3]), lambda *upstream: gradients_of(written_out, arguments, upstream)

    def gradient_of_copies(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:  # the others may be of another graph
        return gradient(upstream, tf.identity(inputs), tf.identity(gamma))

    return NormalizedBatch(norm.y, norm.batch_mean, norm.batch_variance, divisors, gradient_of_copies)


# A function, because forward mode looks into custom gradients but not into functions.
@tf.function(autograph=False)
@tf.custom_gradient
def _as_moments(inputs: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor) -> tuple[tuple, Callable]:
    """Mean and biased variance of the inputs, known from TensorFlow's kernel, which has no gradients of them."""

    def gradient(mean_gradient: tf.Tensor, variance_gradient: tf.Tensor) -> tuple[tf.Tensor, None, None]:
        values = tf.cast(inputs, tf.float32)
        centered = values - tf.reduce_mean(values, _AXES)
        total = (mean_gradient + 2.0 * variance_gradient * centered) / numbers_a_channel(inputs)
        return tf.cast(total, inputs.dtype), None, None

    return (tf.identity(mean), tf.identity(variance)), gradient


def _written_out(inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> NormalizedBatch:
    mean, biased = moments(inputs)
    size = numbers_a_channel(inputs)
    outputs = normalize(inputs, gamma, beta, mean, biased)

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
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

    unbiased = biased * (size / tf.maximum(size - 1.0, 1.0))
    return NormalizedBatch(outputs, mean, unbiased, lambda: (mean, biased), gradient)


def moments(inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and biased variance `[channels]` in float32 of all replicas' images; each replica has as many."""
    values = tf.cast(inputs, tf.float32)
    mean = tf.reduce_mean(values, _AXES)
    centered = values - mean
    variance = tf.reduce_mean(tf.square(centered), _AXES)
    if replica_count() == 1:
        return mean, variance
    # In float64, because E[x^2] - E[x]^2 is off by a tenth in float32 where means are 1,000 deviations. There the mean
    # itself is off by the rounding of a long sum; the mean of the centered values corrects it.
    rest = tf.cast(tf.reduce_mean(centered, _AXES), tf.float64)
    mean = tf.cast(mean, tf.float64) + rest
    square = tf.cast(variance, tf.float64) - tf.square(rest) + tf.square(mean)
    mean, square = replica_means([mean, square])
    variance = tf.maximum(square - tf.square(mean), 0.0)
    return tf.cast(mean, tf.float32), tf.cast(variance, tf.float32)


def numbers_a_channel(inputs: tf.Tensor) -> float | tf.Tensor:
    """The count of numbers that the moments of a channel are of; a tensor where it is not known before the step."""
    if inputs.shape.is_fully_defined():
        return replica_count() * float(inputs.shape[:-1].num_elements())
    return replica_count() * tf.cast(tf.size(inputs) / inputs.shape[-1], tf.float32)


class StackedBatchNormalization(StackedLayer):
    """`count` batch normalizations of `[batch, height, width, channels]` over all but channels, on all replicas."""

    # As in cuDNN and PyTorch the running variance follows the unbiased one: `running = 0.95 running + 0.05 batch`.

    def __init__(self, count: int, channels: int, **kwargs):
        super().__init__(count, **kwargs)
        shape = (count, channels)
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones")
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros")
        # The statistics are of the batch of all replicas, so the same on each.
        running = {"trainable": False, "aggregation": "only_first_replica"}
        self.moving_mean = self.add_weight(name="moving_mean", shape=shape, initializer="zeros", **running)
        self.moving_variance = self.add_weight(name="moving_variance", shape=shape, initializer="ones", **running)

    @property
    def statistics(self) -> tuple[keras.Variable, keras.Variable]:
        """The running mean and variance of all layers, each `[count, channels]`."""
        return self.moving_mean, self.moving_variance

    def next_statistic(self, current: keras.Variable, recorded: tf.Tensor) -> tf.Tensor:
        return MOMENTUM * current + (1.0 - MOMENTUM) * recorded

    def make_weights(self, forward: ForwardPass) -> tuple[tf.Tensor, tf.Tensor]:
        """Gamma and beta in training; in inference scale and shift, for `scale * inputs + shift`; all in float32."""
        gamma, beta, mean, variance = (tf.cast(each, tf.float32) for each in (self.gamma, self.beta, *self.statistics))
        if forward.training:
            return gamma, beta
        # Once for all layers: a graph has two operations for each.
        scale = gamma * tf.math.rsqrt(variance + EPSILON)
        return scale, beta - mean * scale

    def apply_layer(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        if not weights:  # folded into a convolution
            return inputs
        if records is None:
            scale, shift = weights
            return tf.cast(tf.cast(inputs, tf.float32) * scale + shift, inputs.dtype)
        normalized, *statistics = _normalized_by_batch(inputs, *weights)
        records.append(statistics)
        return normalized


@tf.custom_gradient
def _normalized_by_batch(inputs, gamma, beta):
    batch = normalize_batch(inputs, gamma, beta)
    return (batch.outputs, batch.mean, batch.variance), lambda upstream, *_: batch.gradient(upstream)


class Folding(NamedTuple):
    """What a `FoldedPass` folds: a batch norm into the convolution right before it, or right after it."""

    convolution: StackedLayer
    norm: StackedLayer
    on_outputs: bool = True


@dataclasses.dataclass
class FoldedPass(ForwardPass):
    """An inference pass whose convolutions take over the factor and shift of the batch norm beside them."""

    # They are computed for each stack when it is first used, unless `folded` has its weights; not in half precision.

    folded: FoldedWeights = dataclasses.field(default_factory=dict)

    def weights_of(self, layer: keras.layers.Layer) -> Weights:
        if layer in self.folded:
            return tf.nest.map_structure(lambda weight: tf.cast(weight, tf.float32), self.folded[layer])
        may_fold = isinstance(layer, StackedLayer) and layer.compute_dtype == "float32"
        foldings = layer.foldings() if may_fold else []
        if foldings and foldings[0].norm not in self.folded:
            parts = {part for folding in foldings for part in (folding.convolution, folding.norm)}
            self.folded = self.folded | _with_folded({part: part.make_weights(self) for part in parts}, foldings)
        return super().weights_of(layer)


def folded_weights(stacks: Iterable[StackedLayer], kernel_dtype: str = "float32") -> FoldedWeights:
    """The weights of all `stacks` for a `FoldedPass`, made once; kernels in `kernel_dtype`, vectors in float32."""
    stacks = list(stacks)
    if any(stack.compute_dtype != "float32" for stack in stacks):
        raise ValueError("weights of a model in half precision can't be folded: make it with dtype='float32'")
    plain = ForwardPass()

    def exact(stack: StackedLayer) -> Weights:  # in double precision, so that products are rounded once
        return tf.nest.map_structure(lambda weight: np.asarray(weight, np.float64), stack.make_weights(plain))

    def variable(array: np.ndarray) -> tf.Variable:
        return tf.Variable(tf.cast(array, kernel_dtype if array.ndim > 2 else tf.float32), trainable=False)

    weights = {stack: exact(stack) for stack in stacks if not stack.parts}
    folded = _with_folded(weights, [folding for stack in stacks for folding in stack.foldings()])
    return {stack: tf.nest.map_structure(variable, weights) for stack, weights in folded.items()}


def _with_folded(weights: FoldedWeights, foldings: Iterable[Folding]) -> FoldedWeights:
    """The weights of stacks, arrays or tensors, after some foldings."""
    folded = dict(weights)
    for convolution, norm, on_outputs in foldings:
        kernel, bias = folded[convolution]
        (scale, shift), (bias,) = folded[norm], bias or (0.0,)
        if on_outputs:
            # `scale * convolution(x) + shift`; output channels are the kernel's last axis, of a depthwise one too.
            kernel, bias = kernel * scale[:, None, None, None], bias * scale + shift
        else:
            # `convolution(scale * x + shift)` of a 1x1 kernel: a larger one would see its zero padding shifted too.
            bias = bias + (shift[:, None] @ kernel[:, 0, 0])[:, 0]
            kernel = kernel * scale[:, None, None, :, None]
        folded[convolution], folded[norm] = folded[convolution]._replace(kernel=kernel, bias=(bias,)), ()
    return folded
