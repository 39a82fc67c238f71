"""The training objective and the bounds that are reported."""

from nvae_tf.objective.elbo import (
    Elbo,
    bits_per_dimension,
    kl_per_channel,
    kl_per_group,
    log_posterior_and_prior,
)
from nvae_tf.objective.importance_weighting import ImportanceWeighting, add_samples, check_importance_samples
from nvae_tf.objective.kl_schedule import balancing_scales, group_weights, kl_weight, regularization_weight
from nvae_tf.objective.regularization import SpectralRegularizer, batch_norm_loss, gradients_after_network
from nvae_tf.objective.training_loss import TrainingLoss, training_loss

__all__ = [
    "Elbo",
    "ImportanceWeighting",
    "SpectralRegularizer",
    "TrainingLoss",
    "add_samples",
    "balancing_scales",
    "batch_norm_loss",
    "bits_per_dimension",
    "check_importance_samples",
    "gradients_after_network",
    "group_weights",
    "kl_per_channel",
    "kl_per_group",
    "kl_weight",
    "log_posterior_and_prior",
    "regularization_weight",
    "training_loss",
]
