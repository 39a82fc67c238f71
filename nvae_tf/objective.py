"""The bounds, the training loss, and the regularizers of the weights (Vahdat & Kautz 2020, section 3.2)."""

import collections
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf import layers
from nvae_tf.config import ObjectiveConfig
from nvae_tf.distributions import SoftClampedNormal
from nvae_tf.latent_plan import LatentPlan
from nvae_tf.layers import cpu_kernels
from nvae_tf.replicas import replica_means

_SMALLEST_KL = 0.01
_SMALLEST_NORM = 1e-3
Latent = Any  # a `nvae_tf.models.latents.LatentSample`


class Elbo(NamedTuple):
    """The two parts of the negative bound, in nats: -log p(x | z) `[batch]`, and KL `[batch, groups]`, top first."""

    reconstruction: tf.Tensor
    kl: tf.Tensor

    @property
    def nelbo(self) -> tf.Tensor:
        """The negative evidence lower bound, `[batch]`, in nats."""
        return self.reconstruction + tf.reduce_sum(self.kl, axis=1)


def kl_per_element(latent: Latent) -> tf.Tensor:
    """One group's KL in nats, an element for each of the latent's, `[batch, height, width, latent channels]`."""
    # With flows, whose log-determinant is 0, a one-sample estimate; else analytic.
    if latent.has_flows:
        return latent.posterior.log_prob(latent.z_before_flows) - latent.prior.log_prob(latent.z)
    return tfp.distributions.kl_divergence(latent.posterior, latent.prior)


def kl_per_channel(latents: Sequence[Latent]) -> tf.Tensor:
    """KL of every group, summed over height and width: `[batch, groups, latent channels]`, in nats."""
    kl = []
    for latent in _joined(latents):
        kl_of_images = tf.reduce_sum(kl_per_element(latent), axis=(1, 2))
        kl += tf.unstack(tf.reshape(kl_of_images, (latent.groups, -1, kl_of_images.shape[1])))
    return tf.stack(kl, axis=1)


def kl_per_group(latents: Sequence[Latent]) -> tf.Tensor:
    """KL of every group, `[batch, groups]`, in nats."""
    return tf.reduce_sum(kl_per_channel(latents), axis=2)


def _joined(latents: Sequence[Latent]) -> list[Latent]:
    """The same with neighbors of one shape as one, a group's images after another's: fewer operations.

    The joined ones lack z, which the analytic KL does not need; with flows nothing is joined.
    """
    joined_latents = []
    for _, several in itertools.groupby(latents, lambda latent: (latent.z.shape[1:], latent.groups, latent.has_flows)):
        first, *others = several = list(several)
        if others and first.groups == 1 and not first.has_flows:
            normals = {
                each: _joined_normals([getattr(one, each) for one in several]) for each in ("posterior", "prior")
            }
            several = [first._replace(z=None, z_before_flows=None, groups=len(several), **normals)]
        joined_latents += several
    return joined_latents


def _joined_normals(normals: Sequence[SoftClampedNormal]) -> SoftClampedNormal:
    columns = zip(*((normal.loc, normal.scale) for normal in normals), strict=True)
    # The gradient of a stack is one operation, that of a concatenation several a piece.
    joined = [tf.reshape(tf.stack(tensors), (-1, *tensors[0].shape[1:])) for tensors in columns]
    return SoftClampedNormal(*joined, validate_args=False)


def log_posterior_and_prior(latents: Sequence[Latent]) -> tuple[tf.Tensor, tf.Tensor]:
    """`log q(z | x)` and `log p(z)` of the drawn latents, each `[batch]`, in nats."""
    log_q = [tf.reduce_sum(latent.posterior.log_prob(latent.z_before_flows), (1, 2, 3)) for latent in latents]
    log_p = [tf.reduce_sum(latent.prior.log_prob(latent.z), (1, 2, 3)) for latent in latents]
    return tf.add_n(log_q), tf.add_n(log_p)


def bits_per_dimension(nats: float | tf.Tensor, num_dimensions: int) -> float | tf.Tensor:
    """Nats per image as bits for each of its `height * width * channels` values."""
    return nats / (math.log(2.0) * num_dimensions)


def kl_weight(step: tf.Tensor, config: ObjectiveConfig) -> tf.Tensor:
    """The KL warm-up weight beta at a step: from `kl_constant_weight` to 1, whatever `final_kl_weights` are."""
    constant_steps = config.kl_constant_portion * config.total_steps
    # A portion of 0 means no warm-up at all: one step would be past its end.
    anneal_steps = max(config.kl_anneal_portion * config.total_steps, 1e-6)
    risen = (tf.cast(step, tf.float32) - constant_steps) / anneal_steps
    return tf.clip_by_value(risen, config.kl_constant_weight, 1.0)


def regularization_weight(beta: tf.Tensor, config: ObjectiveConfig) -> tf.Tensor:
    """lambda, the weight of the spectral and batch-norm regularizers, constant or annealed with beta."""
    if not config.anneal_regularization:
        return tf.constant(config.regularization)
    initial, final = math.log(config.regularization_initial), math.log(config.regularization)
    return tf.exp((1.0 - beta) * initial + beta * final)


def balancing_scales(plan: LatentPlan) -> tuple[float, ...]:
    """Alpha of every group, top group first: the information that a group of its resolution is meant to carry."""
    scales = [4.0**index / len(scale.groups) for index, scale in enumerate(plan.scales)]
    return tuple(alpha / min(scales) for alpha, scale in zip(scales, plan.scales, strict=True) for _ in scale.groups)


def group_weights(kl: tf.Tensor, beta: tf.Tensor, scales: tuple[float, ...]) -> tf.Tensor:
    """The weight of each group's KL `[groups]`, without gradient; `kl` is `[batch, groups]`."""
    # While beta < 1 it is beta times a coefficient (mean 1) proportional to the mean KL of all images over alpha,
    # so that no group is switched off early; at beta = 1 all are 1.
    (sizes,) = replica_means([tf.reduce_mean(tf.abs(tf.stop_gradient(kl)), axis=0)])
    coefficients = (sizes + _SMALLEST_KL) / tf.constant(scales)
    balanced = beta * coefficients / tf.reduce_mean(coefficients)
    return tf.where(beta < 1.0, balanced, tf.ones_like(balanced))


def final_kl_weights(config: ObjectiveConfig, plan: LatentPlan) -> tuple[float, ...]:
    """The weight of each group's KL after the warm-up, top group first: `kl_final_weight` times that of its scale."""
    count = len(plan.scales)
    factors = config.kl_scale_weights or (1.0,) * count
    if len(factors) != count:
        wrong = f"{len(factors)} weights, and the model has {count} scales; give one for each, the smallest first"
        raise ValueError(f"objective.kl_scale_weights = {factors}: {wrong}")
    pairs = zip(factors, plan.scales, strict=True)
    return tuple(config.kl_final_weight * factor for factor, scale in pairs for _ in scale.groups)


def training_loss(
    elbo: Elbo, beta: tf.Tensor, weighted_regularizers: tf.Tensor, config: ObjectiveConfig, plan: LatentPlan
) -> tf.Tensor:
    """`mean(reconstruction + sum_g w_g KL_g) + weighted_regularizers`, all scalars but for the `Elbo`.

    `w_g` are the `group_weights` times the `final_kl_weights`. A group whose mean KL is below `config.free_nats` counts
    as these, without gradient.
    """
    weights, kl = group_weights(elbo.kl, beta, balancing_scales(plan)), elbo.kl
    final_weights, free_nats = final_kl_weights(config, plan), config.free_nats
    if any(final != 1.0 for final in final_weights):  # at their defaults they add no operation
        weights *= tf.constant(final_weights, tf.float32)
    if free_nats > 0.0:  # the mean of a group's KL becomes `max(mean, free_nats)` (Kingma et al. 2016, appendix C.8)
        (means,) = replica_means([tf.reduce_mean(tf.stop_gradient(kl), axis=0)])
        kl = tf.where(means > free_nats, kl, free_nats)
    balanced_kl = tf.reduce_sum(weights * kl, axis=1)
    return tf.reduce_mean(elbo.reconstruction + balanced_kl) + weighted_regularizers


class ImportanceWeighting(NamedTuple):
    """The state after some samples with weights `w = p(x, z) / q(z | x)` (Burda et al. 2016): sums and bounds."""

    # Memory does not grow with the number of samples.

    largest: tf.Tensor  # `log w`, in nats; `[batch]`, as the next two
    total: tf.Tensor  # sum of `w / largest w`
    squares: tf.Tensor  # sum of `(w / largest w)^2`
    bounds: tf.Tensor  # for the requested numbers of samples, `[batch, numbers]`, in nats; NaN for those not reached

    @classmethod
    def begun(cls, batch_size: int | tf.Tensor, num_numbers: int) -> "ImportanceWeighting":
        """Before the first sample."""
        bounds = tf.fill([batch_size, num_numbers], float("nan"))
        return cls(tf.fill([batch_size], tf.float32.min), tf.zeros([batch_size]), tf.zeros([batch_size]), bounds)

    def with_weights(self, log_weights: tf.Tensor) -> "ImportanceWeighting":
        """With more samples `[batch, samples]`, in nats, in the sums; minus infinity counts as no sample."""
        largest = tf.maximum(self.largest, tf.reduce_max(log_weights, axis=1))
        before = tf.exp(self.largest - largest)
        weights = tf.exp(log_weights - largest[:, tf.newaxis])
        return self._replace(
            largest=largest,
            total=self.total * before + tf.reduce_sum(weights, axis=1),
            squares=self.squares * tf.square(before) + tf.reduce_sum(tf.square(weights), axis=1),
        )

    def bound(self, num_samples: int) -> tf.Tensor:
        """`-(logsumexp_k log w_k - log K)` `[batch]`, in nats, if the sums are of K samples."""
        return -(self.largest + tf.math.log(self.total) - tf.math.log(tf.cast(num_samples, tf.float32)))

    @property
    def effective_samples(self) -> tf.Tensor:
        """`(sum w)^2 / sum w^2`, `[batch]`: from 1, where one sample outweighs all others, to their number, or 0."""
        return tf.math.divide_no_nan(tf.square(self.total), self.squares)


def add_samples(
    log_weights: Callable, before: ImportanceWeighting, numbers: Sequence[int], first, last, samples_at_once: int = 1
) -> ImportanceWeighting:
    """Adds the samples with indices `first ... last - 1` to the state `before`, that of the samples up to `first`.

    `log_weights` takes int32 indices `[samples_at_once]` and gives `log p(x | z) + log p(z) - log q(z | x)` in nats,
    `[batch, samples_at_once]`; those from `last` on do not count. `bounds` are for these `numbers` of samples.
    """
    at = tf.constant(list(numbers), tf.int32)

    def add(index: tf.Tensor, before: ImportanceWeighting) -> tuple[tf.Tensor, ImportanceWeighting]:
        indices = index + tf.range(samples_at_once)
        weights = tf.where(indices < last, log_weights(indices), -float("inf"))
        partial = [before.with_weights(tf.where(indices < number, weights, -float("inf"))) for number in tf.unstack(at)]
        bounds = [sums.bound(number) for sums, number in zip(partial, numbers, strict=True)]
        reached = (at > index) & (at <= tf.minimum(index + samples_at_once, last))
        bounds = tf.where(reached, tf.stack(bounds, axis=1), before.bounds) if bounds else before.bounds
        return index + samples_at_once, before.with_weights(weights)._replace(bounds=bounds)

    start = tf.convert_to_tensor(first, tf.int32)
    return tf.while_loop(lambda index, _: index < last, add, (start, before), parallel_iterations=1)[1]


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
        # The gradient goes through `u^T W v` only.
        matrices = [tf.reshape(stack, (stack.shape[0], -1, stack.shape[-1])) for stack in self._kernels(forward)]
        iterations = tf.where(self.warmed_up > 0.0, self.ITERATIONS, self.FIRST_ITERATIONS)
        axis = tf.constant(1)
        starts = [tf.expand_dims(vector, axis) for vector in self.vectors]
        iterate = _power_iteration_of_all if cpu_kernels.has_gpus() else _power_iteration_of_each
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


_ANY_ROWS = tf.TensorSpec((None, 1, None))


# One matrix after the other, so that the cache has it for all its products.
@cpu_kernels.shared_function(tf.TensorSpec((None, None, None)), _ANY_ROWS, tf.TensorSpec((), tf.int32))
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


def _normalized(rows: tf.Tensor) -> tf.Tensor:
    square = tf.reduce_sum(tf.square(rows), axis=-1, keepdims=True)
    return rows * tf.math.rsqrt(tf.maximum(square, _SMALLEST_NORM**2))


# A function, because forward mode looks into custom gradients but not into functions.
@tf.function(autograph=False)
@tf.custom_gradient
def _norms(matrices, v, u, norms) -> tuple[list[tf.Tensor], Callable]:
    """`u^T W v` of every matrix, `[count]`, with a gradient through W alone, whose own gradient is of u and v too."""
    outer = _outer_products.python_function if cpu_kernels.has_gpus() else _outer_products

    def gradient(*upstream: tf.Tensor) -> list:
        products = list(map(outer, v, u, upstream))
        for product, matrix in zip(products, matrices, strict=True):
            product.set_shape(matrix.shape)
        return [products, *[[None] * len(norms)] * 3]

    return [tf.identity(norm) for norm in norms], gradient


@cpu_kernels.shared_function(_ANY_ROWS, _ANY_ROWS, tf.TensorSpec([None]))
def _outer_products(v: tf.Tensor, u: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    return tf.matmul(v, tf.reshape(scale, (-1, 1, 1)) * u, transpose_a=True)


def batch_norm_loss(norms: Sequence[layers.StackedBatchNormalization]) -> tf.Tensor:
    """The sum over all batch normalizations of max |gamma|; tied channels share the gradient evenly."""
    by_width = collections.defaultdict(list)
    for norm in norms:
        by_width[norm.gamma.shape[1]].append(norm.gamma)
    largest = [tf.reduce_max(tf.abs(tf.concat(gammas, axis=0)), axis=1) for gammas in by_width.values()]
    return tf.reduce_sum(tf.concat(largest, axis=0))


@tf.custom_gradient
def gradients_after_network(images: tf.Tensor, regularizers: tf.Tensor) -> tuple[tuple, Callable]:
    """Both unchanged, but the gradient of the regularizers waits for that of the images, the network's input."""
    # By then the activations are freed; gradients of the size of all weights would be kept beside them.

    def gradient(images_gradient: tf.Tensor, regularizers_gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.control_dependencies([images_gradient]):
            return images_gradient, tf.identity(regularizers_gradient)

    return (tf.identity(images), tf.identity(regularizers)), gradient
