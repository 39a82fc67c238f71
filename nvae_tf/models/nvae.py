"""The model: a `keras.Model` that trains, scores, encodes, decodes and generates."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf import config as configuration
from nvae_tf import objective as objectives
from nvae_tf.config import ModelConfig, ObjectiveConfig
from nvae_tf.distributions import image_likelihood
from nvae_tf.latent_plan import latent_plan
from nvae_tf.layers import ForwardPass, StackedBatchNormalization, StackedConvolution
from nvae_tf.layers.convolution import DataDependentConvolution
from nvae_tf.models.bottom_up import BottomUp
from nvae_tf.models.images import check_image_size, frame_with_zeros, real_pixels, training_images
from nvae_tf.models.inference import InferenceMixin
from nvae_tf.models.latents import LatentSample, LatentSource, PosteriorSource
from nvae_tf.models.noise import batch_noise, image_seeds, noise_per_image
from nvae_tf.models.top_down import TopDown
from nvae_tf.optimization.step_guard import StepGuard


class Decoded(NamedTuple):
    """The end of a top-down pass.

    Attributes:
      parameters: the likelihood's parameters over the padded frame, `[batch, height, width, parameters]`.
      likelihood: the distribution over the real pixels, event `[height, width, channels]` in [0, 1].
      latents: every group's latent, top group first.
    """

    parameters: tf.Tensor
    likelihood: tfp.distributions.Distribution
    latents: list[LatentSample]

    def elbo(self, images: tf.Tensor) -> objectives.Elbo:
        """The bound's parts for the images that the latents were inferred from, in nats."""
        return objectives.Elbo(-self.likelihood.log_prob(images), objectives.kl_per_group(self.latents))


@keras.saving.register_keras_serializable("nvae_tf")
class NVAE(InferenceMixin, keras.Model):
    """Nouveau VAE (Vahdat & Kautz 2020).

    Example:
      >>> model = NVAE(ModelConfig(image_height=8, image_width=8, image_channels=1, num_bits=1, likelihood="bernoulli"))
      >>> model.compile(optimizer=NVAEAdamax())
      >>> model.fit(dataset_of_images)
      >>> images = model.generate(16, temperature=0.7, seed=1)

    Images are `[batch, height, width, channels]` in [0, 1]; scores are nats per image.

    Raises:
      ValueError: the settings do not fit each other.
    """

    def __init__(self, config: ModelConfig, objective: ObjectiveConfig | None = None, seed: int = 0, **kwargs):
        # The layers cast what they compute in half precision themselves; statistics and distributions stay in float32.
        super().__init__(autocast=False, **kwargs)
        self.config = config
        self.objective = objective or ObjectiveConfig()
        self.seed = seed
        self.plan = latent_plan(config)
        self.likelihood = image_likelihood(config.likelihood, config.num_mixtures, config.num_bits, config.exact_edges)
        shared = {"dtype": self.dtype_policy}
        self.bottom_up = BottomUp(config, self.plan, name="bottom_up", **shared)
        num_parameters = self.likelihood.num_parameters(config.image_channels)
        self.top_down = TopDown(config, self.plan, num_parameters, name="top_down", **shared)
        self.batch_norms = self._stacks(StackedBatchNormalization)
        self.convolutions = self._stacks(StackedConvolution)
        self.spectral_regularizer = objectives.SpectralRegularizer(self.convolutions)
        self.is_data_dependent = bool(self._stacks(DataDependentConvolution))
        self.data_initialised = self.add_weight(
            name="data_initialised",
            shape=(),
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.reconstruction_tracker = keras.metrics.Mean(name="reconstruction")
        self.kl_tracker = keras.metrics.Mean(name="kl")
        self.skipped_tracker = keras.metrics.Sum(name="skipped_steps")
        self.step_guard = StepGuard()
        self.built = True

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """What `fit` and `evaluate` report: means of loss, reconstruction and KL in nats per image, and how many
        steps were not taken because of NaN or infinity (`nvae_tf.optimization.StepGuard`).
        """
        return [self.loss_tracker, self.reconstruction_tracker, self.kl_tracker, self.skipped_tracker]

    def infer(self, images: tf.Tensor, noise: Sequence[tf.Tensor], forward: ForwardPass | None = None) -> Decoded:
        """Bottom-up and top-down with every latent from the posterior.

        Args:
          images: `[batch, height, width, channels]` in [0, 1].
          noise: the groups' standard-normal draws, top group first.
          forward: training or inference mode; inference when left out.
        """
        forward = forward or ForwardPass()
        features = self.features(images, forward)
        return self.top_down_pass(self.posterior_sources(features, noise), tf.shape(images)[0], forward)

    def features(self, images: tf.Tensor, forward: ForwardPass | None = None) -> list[tf.Tensor]:
        """The bottom-up feature of every group, top group first; they do not depend on any random draw."""
        check_image_size(images, self.config)
        framed = frame_with_zeros(images, self.config.network_height, self.config.network_width)
        return self.bottom_up.forward(framed, forward or ForwardPass())

    def posterior_sources(self, features: Sequence[tf.Tensor], noise: Sequence[tf.Tensor]) -> list[LatentSource]:
        """Sources that draw every group from the posterior."""
        residual = self.config.residual_distributions
        return [PosteriorSource(feature, eps, residual) for feature, eps in zip(features, noise, strict=True)]

    def top_down_pass(
        self,
        sources: Sequence[LatentSource],
        batch_size: int | tf.Tensor,
        forward: ForwardPass | None = None,
    ) -> Decoded:
        """From one latent source a group to the distribution of images."""
        parameters, latents = self.top_down.forward(sources, batch_size, forward or ForwardPass())
        height, width = self.config.image_height, self.config.image_width
        likelihood = self.likelihood.distribution(real_pixels(parameters, height, width))
        return Decoded(parameters, likelihood, latents)

    def call(self, images: tf.Tensor, training: bool = False, seed: int = 0) -> tf.Tensor:
        """The mean of the reconstruction of `[batch, height, width, channels]`, in [0, 1]."""
        forward = ForwardPass(training)
        noise = noise_per_image(self.plan.latent_shapes(), image_seeds(seed, tf.shape(images)[0]))
        decoded = self.infer(images, noise, forward)
        forward.commit()
        return decoded.likelihood.mean()

    @tf.autograph.experimental.do_not_convert
    def train_step(self, data) -> dict[str, tf.Tensor]:
        """One step of `fit` on a batch of images in [0, 1]; the draws depend on the seed and the step alone."""
        images = self._images_of(data)
        step = self.optimizer.iterations
        if self.is_data_dependent:
            tf.cond(self.data_initialised > 0.0, lambda: None, lambda: self._initialise_from(images))
        forward = ForwardPass(training=True)
        with tf.GradientTape() as tape:
            elbo, loss = self.training_loss(images, self._training_noise(images, step), step, forward)
            scaled_loss = self.optimizer.scale_loss(loss.loss)
        gradients = tape.gradient(scaled_loss, self.trainable_weights)
        self._take_step_if_sound(gradients, loss.loss, elbo, forward)
        return self._results()

    def training_loss(
        self, images: tf.Tensor, noise: Sequence[tf.Tensor], step: tf.Tensor, forward: ForwardPass
    ) -> tuple[objectives.Elbo, objectives.TrainingLoss]:
        """The bound's parts and the loss at a step, see `nvae_tf.objective`."""
        spectral = tf.reduce_sum(tf.concat(self.spectral_regularizer.norms(forward), axis=0))
        regularisers = spectral + (objectives.batch_norm_loss(self.batch_norms) if self.batch_norms else 0.0)
        inputs, regularisers = objectives.gradients_after_network(images, regularisers)
        decoded = self.infer(inputs, noise, forward)
        elbo = decoded.elbo(images)
        beta = objectives.kl_weight(step, self.objective)
        weight = objectives.regularisation_weight(beta, self.objective)
        scales = objectives.balancing_scales(self.plan)
        return elbo, objectives.training_loss(elbo, beta, scales, regularisers, weight)

    @tf.autograph.experimental.do_not_convert
    def test_step(self, data) -> dict[str, tf.Tensor]:
        """One step of `evaluate`: the negative bound in nats, with running batch-norm statistics.

        Every batch gets the same draws; `nvae_tf.evaluation` gives each image its own.
        """
        images = self._images_of(data)
        noise = batch_noise(self.plan.latent_shapes(), tf.shape(images)[0], (self.seed, -1))
        decoded = self.infer(images, noise)
        elbo = decoded.elbo(images)
        self._track(elbo, tf.reduce_mean(elbo.nelbo))
        return self._results()

    def get_config(self) -> dict:
        """The settings, for `save` and `from_config`."""
        return {
            "config": configuration.config_to_dict(self.config),
            "objective": configuration.config_to_dict(self.objective),
            "seed": self.seed,
            "name": self.name,
            "dtype": self.dtype_policy.name,
        }

    @classmethod
    def from_config(cls, config: dict) -> "NVAE":
        """The model of settings from `get_config`."""
        settings = dict(config)
        model = configuration.config_from_dict(ModelConfig, settings.pop("config"))
        objective = configuration.config_from_dict(ObjectiveConfig, settings.pop("objective"))
        return cls(model, objective, **settings)

    def _training_noise(self, images: tf.Tensor, step: tf.Tensor) -> list[tf.Tensor]:
        batch_size = images.shape[0] or tf.shape(images)[0]
        return batch_noise(self.plan.latent_shapes(), batch_size, (self.seed, tf.cast(step, tf.int32)))

    def _initialise_from(self, images: tf.Tensor) -> None:
        forward = ForwardPass(training=True, initialising=True)
        self.infer(images, self._training_noise(images, 0), forward)
        for layer_variable, value in forward.updates:
            layer_variable.assign(value)
        self.data_initialised.assign(1.0)

    def _take_step_if_sound(
        self, gradients: list[tf.Tensor], loss: tf.Tensor, elbo: objectives.Elbo, forward: ForwardPass
    ) -> None:
        """Updates weights, slots and running statistics, all or none of them, as the step guard decides."""
        norm = tf.linalg.global_norm(gradients)
        accepted = self.step_guard.accepts(loss, norm)
        scales_loss = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        # Gradients that overflow are how a scaler of the loss learns to scale less; it looks at them by itself.
        applies = accepted | ~tf.math.is_finite(norm) if scales_loss else accepted

        def follow() -> None:
            forward.commit()
            self._track(elbo, loss)

        tf.cond(applies, lambda: self.optimizer.apply(gradients, self.trainable_weights), lambda: None)
        tf.cond(accepted, follow, lambda: None)
        self.step_guard.observe(loss, accepted)
        self.skipped_tracker.update_state(tf.where(accepted, 0.0, 1.0))

    def _track(self, elbo: objectives.Elbo, loss: tf.Tensor) -> None:
        self.loss_tracker.update_state(loss)
        self.reconstruction_tracker.update_state(elbo.reconstruction)
        self.kl_tracker.update_state(tf.reduce_sum(elbo.kl, axis=1))

    def _results(self) -> dict[str, tf.Tensor]:
        return {metric.name: metric.result() for metric in self.metrics}

    def _images_of(self, data) -> tf.Tensor:
        """The images of a batch; a dataset may also give labels or weights, which are not used."""
        images = tf.convert_to_tensor(data[0] if isinstance(data, (tuple, list)) else data)
        return training_images(images, self.config)

    def _stacks(self, kind: type) -> list:
        return [layer for layer in self._flatten_layers(include_self=False) if isinstance(layer, kind)]
