"""The model: a `keras.Model` that trains, scores, encodes, decodes and generates."""

import functools
import numbers
from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf import config as configuration
from nvae_tf import objective as objectives
from nvae_tf.config import ModelConfig, ObjectiveConfig
from nvae_tf.distributions.image_likelihood import ImageLikelihood
from nvae_tf.latent_plan import latent_plan
from nvae_tf.layers import ForwardPass, ResidualCells, StackedBatchNormalization, StackedConvolution, StackedLayer
from nvae_tf.layers.convolution import DataDependentConvolution
from nvae_tf.models.bottom_up import BottomUp
from nvae_tf.models.images import (
    assert_unit_range,
    check_image_size,
    frame_with_zeros,
    real_pixels,
    training_images,
    with_one_line_errors,
)
from nvae_tf.models.inference import InferenceMixin
from nvae_tf.models.latents import LatentSample, LatentSource, PosteriorSource
from nvae_tf.models.metrics import RecentMetrics, RunningMetrics
from nvae_tf.models.noise import image_seeds, noise_per_image
from nvae_tf.models.top_down import TopDown
from nvae_tf.models.training import TrainingMixin
from nvae_tf.optimization.step_guard import StepGuard
from nvae_tf.setting_checks import check, check_choice
from nvae_tf.train_config import LARGEST_SEED, PRECISIONS, RECOMPUTATIONS


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
class NVAE(TrainingMixin, InferenceMixin, keras.Model):
    """Nouveau VAE (Vahdat & Kautz 2020).

    Example:
      >>> model = NVAE(ModelConfig(image_height=8, image_width=8, image_channels=1, num_bits=1, likelihood="bernoulli"))
      >>> model.compile(optimizer=NVAEAdamax())
      >>> model.fit(dataset_of_images)
      >>> images = model.generate(16, temperature=0.7, seed=1)

    Images are `[batch, height, width, channels]` in [0, 1]; scores are nats per image.

    Args:
      config: the architecture.
      objective: the training loss.
      seed: of all draws in training.
      recompute: what the backward pass computes again instead of keeping it: nothing ("none"), the cells of the latent
        groups ("groups"), or those before and after them too ("all").
      accumulate_steps: into how many parts a batch is cut in training, one after the other, for less memory.
      **kwargs: of `keras.Model`; `dtype="mixed_bfloat16"` computes the networks in half precision.

    Raises:
      ValueError: the settings do not fit each other.
    """

    def __init__(
        self,
        config: ModelConfig,
        objective: ObjectiveConfig | None = None,
        seed: int = 0,
        recompute: str = "none",
        accumulate_steps: int = 1,
        **kwargs,
    ):
        # The layers cast what they compute in half precision themselves; statistics and distributions stay in float32.
        super().__init__(autocast=False, **kwargs)
        objective = ObjectiveConfig() if objective is None else objective
        for where, value, expected in (("config", config, ModelConfig), ("objective", objective, ObjectiveConfig)):
            found = type(value).__name__
            check(isinstance(value, expected), f"{where} is of type {found}: must be a nvae_tf.{expected.__name__}")
        whole = isinstance(seed, numbers.Integral)
        check(whole and abs(seed) <= LARGEST_SEED, f"seed = {seed!r}: must be a whole number up to {LARGEST_SEED}")
        self.config = config
        self.objective = objective
        self.seed = int(seed)
        whole = isinstance(accumulate_steps, int) and not isinstance(accumulate_steps, bool)
        check(
            whole and accumulate_steps >= 1,
            f"accumulate_steps = {accumulate_steps!r}: must be a whole number and at least 1",
        )
        check_choice("dtype", self.dtype_policy.name, PRECISIONS)
        self.recompute = recompute
        self.accumulate_steps = accumulate_steps
        self.plan = latent_plan(config)
        mixture = config.num_mixtures, config.num_bits, config.exact_edges
        self.likelihood = ImageLikelihood(config.likelihood, config.image_channels, *mixture)
        shared = {"dtype": self.dtype_policy}
        self.bottom_up = BottomUp(config, self.plan, name="bottom_up", **shared)
        self.top_down = TopDown(config, self.plan, self.likelihood.num_parameters, name="top_down", **shared)
        for cells in self._recomputed_cells():
            cells.recomputed = True
        self.spectral_regularizer = objectives.SpectralRegularizer(self.convolutions)
        self.is_data_dependent = bool(self._stacks(DataDependentConvolution))
        self.data_initialised = self.add_weight(
            name="data_initialised",
            shape=(),
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )
        self.running = RunningMetrics()
        num_layers = sum(convolution.count for convolution in self.convolutions)
        self.recent = RecentMetrics(self.plan.num_groups, num_layers)
        self.step_guard = StepGuard()
        # TensorFlow does not look into Keras' lists: `tf.train.Checkpoint(model=...)` would leave their weights out.
        self._weights_of_checkpoint = tf.train.Checkpoint(weights=self.weights)
        self.built = True

    # Not set in the constructor: Keras would count and save these layers a second time.
    @functools.cached_property
    def batch_norms(self) -> list[StackedBatchNormalization]:
        """The batch normalizations of both networks."""
        return self._stacks(StackedBatchNormalization)

    @functools.cached_property
    def stacks(self) -> list[StackedLayer]:
        """All stacks of both networks, those that others are made of too."""
        return self._stacks(StackedLayer)

    @functools.cached_property
    def convolutions(self) -> list[StackedConvolution]:
        """The convolutions of both networks."""
        return self._stacks(StackedConvolution)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """What `fit` reports: means of loss, reconstruction and KL in nats per image, the mean norm of the gradients,
        and how many steps were not taken because of NaN or infinity (`nvae_tf.optimization.StepGuard`).
        """
        return self.running.of_training

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
        """The mean of the reconstruction of images `[batch, height, width, channels]` in [0, 1]; itself in [0, 1]."""
        forward = ForwardPass(training)
        images = training_images(images, self.config)
        if tf.executing_eagerly():
            with_one_line_errors(assert_unit_range)(images, nan_allowed=False)
        noise = noise_per_image(self.plan.latent_shapes(), image_seeds(seed, tf.shape(images)[0]))
        decoded = self.infer(images, noise, forward)
        forward.commit()
        return decoded.likelihood.mean()

    def export(self, filepath, *args, **kwargs) -> None:
        """Not this way: a SavedModel has several signatures, and is written by the command for it.

        Raises:
          ValueError: always; the message names the command.
        """
        raise ValueError(
            f"{filepath}: not written; `python -m export.export_saved_model --workdir=RUN --output=DIR` exports a run "
            "folder of train.main; in Python, nvae_tf.serving.saved_model.export_saved_model(model, DIR) "
            "exports a model"
        )

    def get_config(self) -> dict:
        """The settings, for `save` and `from_config`."""
        return {
            "config": configuration.config_to_dict(self.config),
            "objective": configuration.config_to_dict(self.objective),
            "seed": self.seed,
            "recompute": self.recompute,
            "accumulate_steps": self.accumulate_steps,
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

    def _recomputed_cells(self) -> list[ResidualCells]:
        check_choice("recompute", self.recompute, RECOMPUTATIONS)
        if self.recompute == "all":
            return self._stacks(ResidualCells)
        if self.recompute == "groups":
            scales = (*self.bottom_up.scales, *self.top_down.scales)
            return [scale.cells for scale in scales if scale.cells is not None]
        return []

    def _stacks(self, kind: type) -> list:
        return [layer for layer in self._flatten_layers(include_self=False) if isinstance(layer, kind)]
