"""The evidence lower bound and its parts, in nats (Vahdat & Kautz 2020, equation 1)."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import tensorflow as tf
import tensorflow_probability as tfp


class Latent(Protocol):
    """What the bound needs to know of one group's latent; see `nvae_tf.models.latents.LatentSample`."""

    z: tf.Tensor
    z_before_flows: tf.Tensor
    prior: tfp.distributions.Normal
    posterior: tfp.distributions.Normal
    has_flows: bool


class Elbo(NamedTuple):
    """The negative bound of every image in two parts, in nats.

    Attributes:
      reconstruction: -log p(x | z), `[batch]`.
      kl: KL of posterior and prior, `[batch, groups]`, top group first.
    """

    reconstruction: tf.Tensor
    kl: tf.Tensor

    @property
    def nelbo(self) -> tf.Tensor:
        """The negative evidence lower bound, `[batch]`, in nats."""
        return self.reconstruction + tf.reduce_sum(self.kl, axis=1)


def kl_per_channel(latent: Latent) -> tf.Tensor:
    """One group's KL, summed over height and width: `[batch, latent channels]`, in nats.

    Analytic without flows; with flows a one-sample estimate, `log q(z before flows) - log p(z)`: the flows'
    log-determinant is 0.
    """
    if latent.has_flows:
        kl = latent.posterior.log_prob(latent.z_before_flows) - latent.prior.log_prob(latent.z)
    else:
        kl = tfp.distributions.kl_divergence(latent.posterior, latent.prior)
    return tf.reduce_sum(kl, axis=(1, 2))


def kl_per_group(latents: Sequence[Latent]) -> tf.Tensor:
    """KL of every group, `[batch, groups]`, in nats."""
    return tf.stack([tf.reduce_sum(kl_per_channel(latent), axis=1) for latent in latents], axis=1)


def log_posterior_and_prior(latents: Sequence[Latent]) -> tuple[tf.Tensor, tf.Tensor]:
    """`log q(z | x)` and `log p(z)` of the drawn latents, each `[batch]`, in nats."""
    image_axes = (1, 2, 3)
    log_q = [tf.reduce_sum(latent.posterior.log_prob(latent.z_before_flows), image_axes) for latent in latents]
    log_p = [tf.reduce_sum(latent.prior.log_prob(latent.z), image_axes) for latent in latents]
    return tf.add_n(log_q), tf.add_n(log_p)


def bits_per_dimension(nats: float | tf.Tensor, num_dimensions: int) -> float | tf.Tensor:
    """Nats of an image as bits for each of its `height * width * channels` real values."""
    return nats / (math.log(2.0) * num_dimensions)
