"""A source of latents that serves some rows of a batch from outside and draws for others."""

import dataclasses

import tensorflow as tf

from nvae_tf.models.latents import GroupLayers, LatentSample, PriorSource


@dataclasses.dataclass(frozen=True)
class UpperGroupsSource:
    """Takes the latent of rows that have it, and draws the others from the prior.

    Attributes:
      latent: `[batch, height, width, latent channels]`, after the flows.
      noise: standard-normal, of the same shape.
      temperature: multiplies the prior's sigma, `[batch, 1, 1, 1]`.
      is_given: whose latent is taken, `[batch, 1, 1, 1]`.
    """

    latent: tf.Tensor
    noise: tf.Tensor
    temperature: tf.Tensor
    is_given: tf.Tensor

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        """The latent of every row, beside the prior that it could have come from."""
        drawn = PriorSource(self.noise, self.temperature).draw(layers, state)
        z = tf.where(self.is_given, self.latent, drawn.z)
        return LatentSample(z, z, drawn.prior)
