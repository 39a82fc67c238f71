"""The evidence lower bound, KL warm-up and balancing, and the training loss (Vahdat & Kautz 2020, section 3.2)."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf.config import ObjectiveConfig
from nvae_tf.distributions.soft_clamped_normal import SoftClampedNormal
from nvae_tf.latent_plan import LatentPlan
from nvae_tf.replicas import replica_means

_SMALLEST_KL = 0.01
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
    # With flows, whose log-determinant is 0, a one-sample estimate; else analytic, see soft_clamped_normal.py.
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
            posteriors, priors = zip(*((latent.posterior, latent.prior) for latent in several), strict=True)
            normals = {"posterior": _joined_normals(posteriors), "prior": _joined_normals(priors)}
            several = [first._replace(z=None, z_before_flows=None, groups=len(several), **normals)]
        joined_latents += several
    return joined_latents


def _joined_normals(normals: Sequence[SoftClampedNormal]) -> SoftClampedNormal:
    columns = zip(*((normal.loc, normal.scale) for normal in normals), strict=True)
    # The gradient of a stack is one operation, of a concatenation several a piece.
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
    """The weight of each group's KL after the warm-up, top group first: `kl_final_weight` times its scale's weight."""
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
