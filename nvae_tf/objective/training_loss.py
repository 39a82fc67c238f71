"""The whole training loss from its parts (Vahdat & Kautz 2020, section 3.2 and appendix A)."""

from typing import NamedTuple

import tensorflow as tf

from nvae_tf.objective.elbo import Elbo
from nvae_tf.objective.kl_schedule import group_weights


class TrainingLoss(NamedTuple):
    """The loss and what it is made of, in nats per image (the regularizers have no unit).

    Attributes:
      loss: scalar; what is differentiated.
      balanced_kl: the weighted KL, `[batch]`.
      group_weights: the weight of every group's KL, `[groups]`.
    """

    loss: tf.Tensor
    balanced_kl: tf.Tensor
    group_weights: tf.Tensor


def training_loss(
    elbo: Elbo,
    beta: tf.Tensor,
    scales: tuple[float, ...],
    regularizers: tf.Tensor,
    regularization_weight: tf.Tensor,
) -> TrainingLoss:
    """`mean(recon + sum_g w_g KL_g) + lambda * regularizers`.

    Args:
      elbo: the parts of the bound.
      beta: the KL warm-up weight.
      scales: alpha of every group, see `balancing_scales`.
      regularizers: the sum of the spectral and batch-norm regularizers, scalar.
      regularization_weight: lambda.
    """
    weights = group_weights(elbo.kl, beta, scales)
    balanced_kl = tf.reduce_sum(weights * elbo.kl, axis=1)
    loss = tf.reduce_mean(elbo.reconstruction + balanced_kl) + regularization_weight * regularizers
    return TrainingLoss(loss, balanced_kl, weights)
