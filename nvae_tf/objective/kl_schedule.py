"""KL warm-up and balancing between groups, and what is annealed with them (Vahdat & Kautz 2020, appendix A)."""

import math

import tensorflow as tf

from nvae_tf.config import ObjectiveConfig
from nvae_tf.latent_plan import LatentPlan
from nvae_tf.replicas import replica_means

_SMALLEST_KL = 0.01


def kl_weight(step: tf.Tensor, config: ObjectiveConfig) -> tf.Tensor:
    """The KL warm-up weight beta at a step: from `kl_constant_weight` to 1."""
    constant_steps = config.kl_constant_portion * config.total_steps
    # A portion of 0 means no warm-up at all: one step would be past its end.
    anneal_steps = max(config.kl_anneal_portion * config.total_steps, 1e-6)
    risen = (tf.cast(step, tf.float32) - constant_steps) / anneal_steps
    return tf.clip_by_value(risen, config.kl_constant_weight, 1.0)


def regularization_weight(beta: tf.Tensor, config: ObjectiveConfig) -> tf.Tensor:
    """lambda, the weight of the spectral and batch-norm regularizers, constant or annealed with beta."""
    if not config.anneal_regularisation:
        return tf.constant(config.regularisation)
    initial, final = math.log(config.regularisation_initial), math.log(config.regularisation)
    return tf.exp((1.0 - beta) * initial + beta * final)


def balancing_scales(plan: LatentPlan) -> tuple[float, ...]:
    """Alpha of every group, top group first: how much information a group of its resolution is meant to carry."""
    scales = [4.0**index / len(scale.groups) for index, scale in enumerate(plan.scales)]
    return tuple(alpha / min(scales) for alpha, scale in zip(scales, plan.scales, strict=True) for _ in scale.groups)


def group_weights(kl: tf.Tensor, beta: tf.Tensor, scales: tuple[float, ...]) -> tf.Tensor:
    """The weight of each group's KL `[groups]`, without gradient.

    While beta < 1 the weights are beta times coefficients of mean 1, proportional to the mean of the group's KL
    `[batch, groups]` over the images of all replicas, and inversely to its alpha, so that no group is switched off
    early; at beta = 1 all are 1.
    """
    (sizes,) = replica_means([tf.reduce_mean(tf.abs(tf.stop_gradient(kl)), axis=0)])
    coefficients = (sizes + _SMALLEST_KL) / tf.constant(scales)
    balanced = beta * coefficients / tf.reduce_mean(coefficients)
    return tf.where(beta < 1.0, balanced, tf.ones_like(balanced))
