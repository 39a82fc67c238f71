"""What people do with a model: encode, decode, generate and score images."""

from collections.abc import Sequence

import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf import objective as objectives
from nvae_tf.layers import ForwardPass
from nvae_tf.models.images import check_images
from nvae_tf.models.latents import GivenSource, LatentSample, LatentSource, PriorSource, check_latents
from nvae_tf.models.noise import image_seeds, noise_of_samples, noise_per_image
from nvae_tf.models.temperatures import Temperature, temperatures_of_groups


class InferenceMixin:
    """The methods of `NVAE` that use its networks without training them."""

    def encode(self, images: tf.Tensor, seed: int = 0, mean: bool = False) -> list[tf.Tensor]:
        """Latents of images, a list `[batch, height, width, latent channels]` a group, top group first.

        They are drawn from the posterior; with `mean` they are its means, each given those of the groups above (with
        flows: what these make of the means).
        """
        images = check_images(images, self.config)
        latents = self.encode_from_seeds(images, image_seeds(seed, images.shape[0]), 0.0 if mean else 1.0)
        return [latent.z for latent in latents]

    def encode_from_seeds(
        self, images: tf.Tensor, seeds: tf.Tensor, noise_scale: float | tf.Tensor = 1.0
    ) -> list[LatentSample]:
        """Every group's latent of images, for one seed an image `[batch, 2]`.

        `noise_scale` multiplies the posterior's sigma: 1 draws, 0 gives its means.
        """
        noise = [noise_scale * eps for eps in noise_per_image(self.plan.latent_shapes(), seeds)]
        return self.infer(images, noise).latents

    def decode(self, latents: Sequence[tf.Tensor], temperature: Temperature | None = None, seed: int = 0) -> tf.Tensor:
        """Mean images `[batch, height, width, channels]` in [0, 1] from latents, a list as `encode` gives it.

        Args:
          latents: of all groups; with a temperature those of the top groups are enough, at least of one.
          temperature: for groups that have no latent, drawn from the prior, see `generate`.
          seed: of these draws.

        Raises:
          ValueError: the latents are of another architecture, or some are missing.
        """
        latents = check_latents(latents, self.plan, may_lack_groups=temperature is not None)
        seeds = image_seeds(seed, latents[0].shape[0])
        return self.generate_from_seeds(seeds, 1.0 if temperature is None else temperature, latents).mean()

    def generate(self, count: int, temperature: Temperature = 1.0, seed: int = 0) -> tf.Tensor:
        """Mean images `[count, height, width, channels]` in [0, 1] of latents from the prior.

        `temperature` multiplies the priors' sigma: a number for all groups, or a list with one a scale or one a group,
        see `temperatures_of_groups`. Image i depends on the seed and i, not on `count`.
        """
        if count < 1:
            raise ValueError(f"count = {count}: must be at least 1")
        return self.generate_from_seeds(image_seeds(seed, count), temperature).mean()

    def generate_from_seeds(
        self,
        seeds: tf.Tensor,
        temperature: Temperature = 1.0,
        latents: Sequence[tf.Tensor] = (),
        forward: ForwardPass | None = None,
    ) -> tfp.distributions.Distribution:
        """The distribution of images for one seed an image `[batch, 2]`; the temperature is the priors' alone.

        Latents of the top groups may be given; the other groups' draws are the same as without. `forward` is that of
        `top_down_pass`.
        """
        temperatures = temperatures_of_groups(temperature, self.plan)
        sources: list[LatentSource] = [GivenSource(latent) for latent in latents]
        if len(sources) < self.plan.num_groups:
            noise = noise_per_image(self.plan.latent_shapes(), seeds)
            drawn = map(PriorSource, noise, temperatures)
            sources += list(drawn)[len(sources) :]
        return self.top_down_pass(sources, tf.shape(seeds)[0], forward).likelihood

    def score(self, images: tf.Tensor, importance_samples: int = 1, seed: int = 0) -> tf.Tensor:
        """Importance-weighted bound on the negative log-likelihood of each image `[batch]`, in nats."""
        images = check_images(images, self.config)
        return self.importance_weighted(images, importance_samples, image_seeds(seed, images.shape[0]))

    @tf.autograph.experimental.do_not_convert
    def importance_weighted(self, images: tf.Tensor, importance_samples: int, seeds: tf.Tensor) -> tf.Tensor:
        """The bound `[batch]` in nats for one seed an image `[batch, 2]`; the bottom-up pass runs once."""
        if importance_samples < 1:
            raise ValueError(f"importance_samples = {importance_samples}: at least 1 sample is needed")
        begun = objectives.ImportanceWeighting.begun(tf.shape(images)[0], num_numbers=1)
        whole = 0, importance_samples, (importance_samples,)
        return self.add_importance_samples(begun, images, self.features(images), seeds, *whole).bounds[:, 0]

    def add_importance_samples(
        self,
        before: objectives.ImportanceWeighting,
        images: tf.Tensor,
        features: Sequence[tf.Tensor],
        seeds: tf.Tensor,
        first: int | tf.Tensor,
        last: int | tf.Tensor,
        numbers: Sequence[int],
        samples_at_once: int = 1,
    ) -> objectives.ImportanceWeighting:
        """Adds samples `first ... last - 1` of every image; sample k depends on the image's seed and k.

        Args:
          before: the samples before.
          images: `[batch, height, width, channels]` in [0, 1].
          features: of the images, see `features`.
          seeds: one an image, `[batch, 2]`.
          first: number of the first sample.
          last: the number after the last.
          numbers: the numbers of samples for which there is to be a bound.
          samples_at_once: so many top-down passes are one, with as many times the memory.
        """
        # Once for all samples, not in every turn of the loop.
        forward = ForwardPass()
        for convolution in self.convolutions:
            convolution.kernels_of(forward)
        if samples_at_once > 1:
            images, *features = (tf.repeat(tensor, samples_at_once, axis=0) for tensor in (images, *features))
        shapes, num_rows = self.plan.latent_shapes(), tf.shape(images)[0]

        def log_weights(indices: tf.Tensor) -> tf.Tensor:
            noise = noise_of_samples(shapes, seeds, indices[0], samples_at_once)
            decoded = self.top_down_pass(self.posterior_sources(features, noise), num_rows, forward)
            log_q, log_p = objectives.log_posterior_and_prior(decoded.latents)
            return tf.reshape(decoded.likelihood.log_prob(images) + log_p - log_q, [-1, samples_at_once])

        return objectives.add_samples(log_weights, before, numbers, first, last, samples_at_once)
