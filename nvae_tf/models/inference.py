"""What people do with a model: encode, decode, generate and score images."""

from collections.abc import Sequence

import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf import objective as objectives
from nvae_tf.layers import ForwardPass
from nvae_tf.models.images import check_images
from nvae_tf.models.latents import GivenSource, PriorSource
from nvae_tf.models.noise import folded, image_seeds, noise_per_image


class InferenceMixin:
    """The methods of `NVAE` that use its networks without training them."""

    def encode(self, images: tf.Tensor, seed: int = 0) -> list[tf.Tensor]:
        """Latents of images, a list `[batch, height, width, latent channels]` a group, top group first."""
        images = check_images(images, self.config)
        noise = noise_per_image(self.plan.latent_shapes(), image_seeds(seed, images.shape[0]))
        return [latent.z for latent in self.infer(images, noise).latents]

    def decode(self, latents: Sequence[tf.Tensor]) -> tf.Tensor:
        """Mean images `[batch, height, width, channels]` in [0, 1] from the latents of all groups."""
        shapes = self.plan.latent_shapes()
        given = [tuple(latent.shape[1:]) for latent in latents]
        if given != list(shapes):
            raise ValueError(f"latents have shapes {given} without the batch; this model's are {list(shapes)}")
        if len({latent.shape[0] for latent in latents}) != 1:
            raise ValueError(f"latents are of {[latent.shape[0] for latent in latents]} images; all must be of as many")
        return self.top_down_pass([GivenSource(z) for z in latents], latents[0].shape[0]).likelihood.mean()

    def generate(self, count: int, temperature: float = 1.0, seed: int = 0) -> tf.Tensor:
        """Mean images `[count, height, width, channels]` in [0, 1] of latents from the prior.

        `temperature` multiplies every prior's sigma. Image i depends on the seed and i, not on `count`.
        """
        if count < 1 or not temperature > 0.0:
            raise ValueError(f"count = {count}, temperature = {temperature}: both must be greater than 0")
        return self.generate_from_seeds(image_seeds(seed, count), temperature).mean()

    def generate_from_seeds(
        self, seeds: tf.Tensor, temperature: float | tf.Tensor = 1.0
    ) -> tfp.distributions.Distribution:
        """The distribution of images for one seed an image `[batch, 2]`; the temperature is the priors' alone."""
        noise = noise_per_image(self.plan.latent_shapes(), seeds)
        sources = [PriorSource(eps, temperature) for eps in noise]
        return self.top_down_pass(sources, tf.shape(seeds)[0]).likelihood

    def score(self, images: tf.Tensor, importance_samples: int = 1, seed: int = 0) -> tf.Tensor:
        """Importance-weighted bound on the negative log-likelihood of each image `[batch]`, in nats."""
        images = check_images(images, self.config)
        return self.importance_weighted(images, importance_samples, image_seeds(seed, images.shape[0]))

    @tf.autograph.experimental.do_not_convert
    def importance_weighted(self, images: tf.Tensor, importance_samples: int, seeds: tf.Tensor) -> tf.Tensor:
        """The bound `[batch]` in nats for one seed an image `[batch, 2]`; the bottom-up pass runs once."""
        features = self.features(images)
        # Once for all samples, not in every turn of the loop.
        forward = ForwardPass()
        for convolution in self.convolutions:
            convolution.kernels_of(forward)

        def log_weight(index: tf.Tensor) -> tf.Tensor:
            noise = noise_per_image(self.plan.latent_shapes(), folded(seeds, index))
            decoded = self.top_down_pass(self.posterior_sources(features, noise), tf.shape(images)[0], forward)
            log_q, log_p = objectives.log_posterior_and_prior(decoded.latents)
            return decoded.likelihood.log_prob(images) + log_p - log_q

        return objectives.importance_weighted_bound(log_weight, importance_samples, tf.shape(images)[0])
