"""The training objective and the bounds that are reported."""

from nvae_tf.objective.elbo import (
    Elbo,
    balancing_scales,
    bits_per_dimension,
    final_kl_weights,
    kl_per_channel,
    kl_per_element,
    kl_per_group,
    kl_weight,
    log_posterior_and_prior,
    regularization_weight,
    training_loss,
)
from nvae_tf.objective.importance_weighting import ImportanceWeighting, add_samples
from nvae_tf.objective.regularization import SpectralRegularizer, batch_norm_loss, identity_with_ordered_gradients
