"""The model: a `keras.Model` that trains, scores, encodes, decodes and generates."""

import functools
import numbers as number_types
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf import config as configuration
from nvae_tf import objective as objectives
from nvae_tf.config import ExperimentConfig, ModelConfig, ObjectiveConfig, check, check_choice
from nvae_tf.distributions.image_likelihood import ImageLikelihood
from nvae_tf.latent_plan import latent_plan
from nvae_tf.layers import ForwardPass, ResidualCells, StackedBatchNormalization, StackedConvolution, StackedLayer
from nvae_tf.layers.convolution import DataDependentConvolution
from nvae_tf.models import training_step
from nvae_tf.models.bottom_up import BottomUp
from nvae_tf.models.images import assert_unit_range, check_batch, check_images, frame, real_pixels, with_one_line_errors
from nvae_tf.models.latents import (
    GivenSource,
    LatentSample,
    LatentSource,
    PosteriorSource,
    PriorSource,
    Temperature,
    active_channels,
    batch_size_of,
    check_latents,
    image_seeds,
    noise_of_samples,
    noise_per_image,
    temperatures_of_groups,
    with_kept_channels,
)
from nvae_tf.models.metrics import RecentMetrics, RunningMetrics
from nvae_tf.models.top_down import TopDown
from nvae_tf.optimization import LoweredRate, NVAEAdamax, RunawayGuard, StepGuard, WarmupCosine
from nvae_tf.replicas import replica_count, replica_means


class Decoded(NamedTuple):
    """The end of a top-down pass."""

    parameters: tf.Tensor  # the likelihood's, over the padded frame, `[batch, height, width, parameters]`
    likelihood: tfp.distributions.Distribution  # over the real pixels, event `[height, width, channels]` in [0, 1]
    latents: list[LatentSample]  # top group first

    def elbo(self, images: tf.Tensor) -> objectives.Elbo:
        """The bound's terms for the images that the latents were inferred from, in nats."""
        return objectives.Elbo(-self.likelihood.log_prob(images), objectives.kl_per_group(self.latents))


@keras.saving.register_keras_serializable("nvae_tf")
class NVAE(keras.Model):
    """Nouveau VAE (Vahdat & Kautz 2020).

    Example:
      >>> model = NVAE(ModelConfig(image_height=8, image_width=8, image_channels=1, num_bits=1, likelihood="bernoulli"))
      >>> model.compile(optimizer=NVAEAdamax())
      >>> model.fit(dataset_of_images)
      >>> images = model.generate(16, temperature=0.7, seed=1)

    Images are `[batch, height, width, channels]` in [0, 1]; scores are nats per image.

    Args:
      config: the architecture; ValueError where its settings do not fit each other.
      objective: the training loss.
      seed: of all draws in training.
      recompute: what the backward pass computes again instead of keeping it: nothing ("none"), the cells of the latent
        groups ("groups"), or those before and after them too ("all").
      accumulate_steps: into how many microbatches a batch is cut in training, for less memory.
      **kwargs: of `keras.Model`; `dtype="mixed_bfloat16"` computes the networks in half precision.
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
        is_seed = isinstance(seed, number_types.Integral) and abs(seed) <= configuration.LARGEST_SEED
        check(is_seed, f"seed = {seed!r}: must be a whole number up to {configuration.LARGEST_SEED}")
        is_count = isinstance(accumulate_steps, int) and accumulate_steps is not True and accumulate_steps >= 1
        check(is_count, f"accumulate_steps = {accumulate_steps!r}: must be a whole number and at least 1")
        check_choice("dtype", self.dtype_policy.name, configuration.PRECISIONS)
        check_choice("recompute", recompute, configuration.RECOMPUTATIONS)
        self.config, self.objective, self.plan = config, objective, latent_plan(config)
        # Fails early where the settings do not fit each other.
        objectives.final_kl_weights(objective, self.plan)
        self.seed, self.recompute, self.accumulate_steps = int(seed), recompute, accumulate_steps
        mixture = config.num_mixtures, config.num_bits, config.exact_edges
        self.likelihood = ImageLikelihood(config.likelihood, config.image_channels, *mixture)
        dtype, num_parameters = self.dtype_policy, self.likelihood.num_parameters
        self.bottom_up = BottomUp(config, self.plan, name="bottom_up", dtype=dtype)
        self.top_down = TopDown(config, self.plan, num_parameters, name="top_down", dtype=dtype)
        of_groups = [scale.cells for scale in (*self.bottom_up.scales, *self.top_down.scales)]
        for cells in self._stacks(ResidualCells):
            cells.recomputed = recompute == "all" or (recompute == "groups" and cells in of_groups)
        self.spectral_regularizer = objectives.SpectralRegularizer(self.convolutions)
        self.is_data_dependent = bool(self._stacks(DataDependentConvolution))
        self.data_initialised = self.add_weight(
            shape=(), initializer="zeros", trainable=False, aggregation="only_first_replica", name="data_initialised"
        )
        self.running = RunningMetrics()
        self.recent = RecentMetrics(self.plan.num_groups, sum(layer.count for layer in self.convolutions))
        self.step_guard = StepGuard()
        # TensorFlow does not look into Keras' lists: `tf.train.Checkpoint(model=...)` would leave their weights out.
        self._weights_of_checkpoint = tf.train.Checkpoint(weights=self.weights)
        self.built = True

    def _stacks(self, kind: type) -> list:
        return [layer for layer in self._flatten_layers(include_self=False) if isinstance(layer, kind)]

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

    # The networks: images -> features -> latents -> the distribution of images.

    def infer(
        self, images: tf.Tensor, noise: Sequence[tf.Tensor], forward: ForwardPass | None = None, kept_channels=None
    ) -> Decoded:
        """Both passes for images `[batch, height, width, channels]`, with every latent from the posterior.

        `noise` are the groups' standard-normal draws, top group first. Without `forward` it is inference. Latent
        channels outside of a mask `kept_channels`, see `active_channels`, are at the prior's mean.
        """
        forward = forward or ForwardPass()
        sources = self._posterior_sources(self.features(images, forward), noise)
        if kept_channels is not None:
            sources = with_kept_channels(sources, kept_channels, self.plan)
        return self.top_down_pass(sources, tf.shape(images)[0], forward)

    def features(self, images: tf.Tensor, forward: ForwardPass | None = None) -> list[tf.Tensor]:
        """The bottom-up feature of every group, top group first; they do not depend on any random draw."""
        return self.bottom_up.forward(frame(images, self.config), forward or ForwardPass())

    def top_down_pass(
        self, sources: Sequence[LatentSource], batch_size: int | tf.Tensor, forward: ForwardPass | None = None
    ) -> Decoded:
        """From one latent source a group to the distribution of images."""
        parameters, latents = self.top_down.forward(sources, batch_size, forward or ForwardPass())
        pixels = real_pixels(parameters, self.config.image_height, self.config.image_width)
        return Decoded(parameters, self.likelihood.distribution(pixels), latents)

    def _posterior_sources(self, features: Sequence[tf.Tensor], noise: Sequence[tf.Tensor]) -> list[LatentSource]:
        residual = self.config.residual_distributions
        return [PosteriorSource(feature, eps, residual) for feature, eps in zip(features, noise, strict=True)]

    def call(self, images: tf.Tensor, training: bool = False, seed: int = 0) -> tf.Tensor:
        """The mean of the reconstruction of images `[batch, height, width, channels]` in [0, 1]; itself in [0, 1]."""
        forward = ForwardPass(training)
        images = check_images(images, self.config)
        noise = noise_per_image(self.plan.latent_shapes(), image_seeds(seed, tf.shape(images)[0]))
        decoded = self.infer(images, noise, forward)
        forward.commit()
        return decoded.likelihood.mean()

    # Encoding, decoding, generating and scoring.

    def encode(
        self, images: tf.Tensor, seed: int = 0, mean: bool = False, active_only: bool | np.ndarray | tf.Tensor = False
    ) -> list[tf.Tensor]:
        """Latents of images, a list `[batch, height, width, latent channels]` a group, top group first.

        Draws from the posterior, or its means, each given those of the groups above, and what the flows make of them.
        With `active_only` only a tenth of all latent channels are, those with the largest mean KL over these images;
        the others are at the prior's mean given the groups above. It may also be a mask of channels, see
        `nvae_tf.models.latents.active_channels`, which other images have decided.
        """
        images = check_images(images, self.config)
        seeds = image_seeds(seed, batch_size_of(images))
        kept = None if isinstance(active_only, bool) else active_only
        if active_only is True:
            kl = [objectives.kl_per_channel(latent) for latent in self.encode_from_seeds(images, seeds)]
            kept = active_channels(tf.reduce_mean(kl, axis=1))
        return [latent.z for latent in self.encode_from_seeds(images, seeds, 0.0 if mean else 1.0, kept)]

    def encode_from_seeds(
        self, images: tf.Tensor, seeds: tf.Tensor, noise_scale=1.0, kept_channels=None
    ) -> list[LatentSample]:
        """As `encode`, for one seed an image `[batch, 2]`; `noise_scale` multiplies sigma (0: the means)."""
        noise = [noise_scale * eps for eps in noise_per_image(self.plan.latent_shapes(), seeds)]
        return self.infer(images, noise, kept_channels=kept_channels).latents

    def decode(self, latents: Sequence[tf.Tensor], temperature: Temperature | None = None, seed: int = 0) -> tf.Tensor:
        """Mean images `[batch, height, width, channels]` in [0, 1] from latents, a list as `encode` gives it.

        With a temperature those of the top groups are enough, at least of one; the others are drawn from the prior, see
        `generate`. ValueError where the latents are of another architecture, or some are missing.
        """
        latents = check_latents(latents, self.plan, may_lack_groups=temperature is not None)
        seeds = image_seeds(seed, batch_size_of(latents[0]))
        return self.generate_from_seeds(seeds, 1.0 if temperature is None else temperature, latents).mean()

    def generate(self, count: int, temperature: Temperature = 1.0, seed: int = 0) -> tf.Tensor:
        """Mean images `[count, height, width, channels]` in [0, 1] of latents from the prior.

        `temperature` multiplies the priors' sigma, see `temperatures_of_groups`: a number, or one a scale or group.
        Image i depends on the seed and i, not on `count`.
        """
        check(count >= 1, f"count = {count}: must be at least 1")
        return self.generate_from_seeds(image_seeds(seed, count), temperature).mean()

    def generate_from_seeds(
        self, seeds: tf.Tensor, temperature: Temperature = 1.0, latents=(), forward: ForwardPass | None = None
    ) -> tfp.distributions.Distribution:
        """The distribution of images for one seed an image `[batch, 2]`; the temperature is the priors' alone.

        Latents of the top groups may be given; the other groups' draws are the same as without.
        """
        temperatures = temperatures_of_groups(temperature, self.plan)
        sources: list[LatentSource] = [GivenSource(latent) for latent in latents]
        if len(sources) < self.plan.num_groups:
            drawn = map(PriorSource, noise_per_image(self.plan.latent_shapes(), seeds), temperatures)
            sources += list(drawn)[len(sources) :]
        return self.top_down_pass(sources, tf.shape(seeds)[0], forward).likelihood

    def score(self, images: tf.Tensor, importance_samples: int = 1, seed: int = 0) -> tf.Tensor:
        """Importance-weighted bound on the negative log-likelihood of each image `[batch]`, in nats."""
        images = check_images(images, self.config)
        return self.importance_weighted(images, importance_samples, image_seeds(seed, batch_size_of(images)))

    @tf.autograph.experimental.do_not_convert
    def importance_weighted(self, images: tf.Tensor, importance_samples: int, seeds: tf.Tensor) -> tf.Tensor:
        """The bound `[batch]` in nats for one seed an image `[batch, 2]`; the bottom-up pass runs once."""
        check(importance_samples >= 1, f"importance_samples = {importance_samples}: at least 1 sample is needed")
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
        """Adds samples `first ... last - 1` of every image to those `before`, functions of seed and number.

        `images` are `[batch, height, width, channels]` in [0, 1] with these `features` and a seed each, `[batch, 2]`;
        `numbers` see `objective.add_samples`. One pass draws `samples_at_once`, with as many times the memory.
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
            decoded = self.top_down_pass(self._posterior_sources(features, noise), num_rows, forward)
            log_q, log_p = objectives.log_posterior_and_prior(decoded.latents)
            return tf.reshape(decoded.likelihood.log_prob(images) + log_p - log_q, [-1, samples_at_once])

        return objectives.add_samples(log_weights, before, numbers, first, last, samples_at_once)

    # Training and evaluation through Keras; the step itself is in `training_step`.

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """What `fit` reports, see `RunningMetrics`."""
        return self.running.of_training

    def training_loss(
        self, images: tf.Tensor, noise: Sequence[tf.Tensor], step: tf.Tensor, forward: ForwardPass
    ) -> training_step.StepLoss:
        """The bound's terms and the loss at a step, see `nvae_tf.objective`."""
        norms, total = training_step.regularizers_of(self, forward)
        inputs, total = objectives.gradients_after_network(images, total)
        return training_step.loss_of(self, images, noise, step, forward, (norms, total), inputs)

    @tf.autograph.experimental.do_not_convert
    def train_step(self, data) -> dict[str, tf.Tensor]:
        """One step of `fit` on a batch of images in [0, 1]."""
        training_step.train(self, self._images_of(data))
        return _results(self.running.of_training)

    @tf.autograph.experimental.do_not_convert
    def test_step(self, data) -> dict[str, tf.Tensor]:
        """One step of `evaluate`: the negative bound in nats; every batch gets the same draws."""
        images = self._images_of(data)
        elbo = self.infer(images, training_step.draws(self, images, -1)).elbo(images)
        reconstruction, kl = replica_means([tf.reduce_mean(elbo.reconstruction), tf.reduce_mean(elbo.kl, axis=0)])
        kl = tf.reduce_sum(kl)
        self.running.track_bound(reconstruction + kl, reconstruction, kl, batch_size_of(images) * replica_count())
        return _results(self.running.of_evaluation)

    def _images_of(self, data) -> tf.Tensor:
        # A dataset may also give labels or weights, which are not used.
        return check_batch(data[0] if isinstance(data, (tuple, list)) else data, self.config)

    def fit(self, *args, class_weight=None, **kwargs) -> keras.callbacks.History:
        """As `keras.Model.fit`; ValueError for images that are not floats in [0, 1] of the model's size."""
        _refuse_class_weight(class_weight)
        return super().fit(*args, **kwargs)

    def train_on_batch(self, x, y=None, sample_weight=None, class_weight=None, return_dict=False):
        """As `keras.Model.train_on_batch`; refuses what `fit` does."""
        _refuse_class_weight(class_weight)
        return super().train_on_batch(x, y, sample_weight, return_dict=return_dict)

    def make_train_function(self, force: bool = False) -> None:
        """Makes what `fit` runs. Images with NaN pass, and the step guard skips their step."""
        check(self.optimizer is not None, "the model has no optimizer: compile(optimizer=nvae_tf.NVAEAdamax())")
        if self._compile_loss is not None or self._compile_metrics is not None:
            warnings.warn("loss and metrics of `compile` have no effect: the model has its own", stacklevel=2)
        if not self.optimizer.built:
            # Else they would be made by the first trace of the step, which a refused batch breaks off.
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        self._make_checked_function("train", super().make_train_function, force, nan_allowed=True)

    def make_test_function(self, force: bool = False) -> None:
        """Makes what `evaluate` runs."""
        self._make_checked_function("test", super().make_test_function, force)

    def make_predict_function(self, force: bool = False) -> None:
        """Makes what `predict` runs."""
        self._make_checked_function("predict", super().make_predict_function, force)

    def _make_checked_function(self, kind: str, make: Callable, force: bool, nan_allowed: bool = False) -> None:
        name = f"{kind}_function"
        if getattr(self, name) is None or force:
            self._nan_allowed = nan_allowed
            make(force)
            setattr(self, name, with_one_line_errors(getattr(self, name)))

    def _autoconvert_optionals(self, step_func: Callable) -> Callable:
        # Keras wraps in this what it does with a batch, be it compiled by XLA or not: the one place outside of that.
        step, nan_allowed = super()._autoconvert_optionals(step_func), self._nan_allowed

        def checked(data):
            images, *others = data if isinstance(data, (tuple, list)) else (data,)
            if len(others) > 1 and others[1] is not None:
                warnings.warn("sample weights have no effect: the loss is the mean over all images", stacklevel=2)
            replicas = self.distribute_strategy.experimental_local_results(images)
            checks = [assert_unit_range(check_batch(shard, self.config), nan_allowed) for shard in replicas]
            # The data itself waits for the checks: on several replicas a reduction that has begun when a check fails
            # is broken off, and with it every later one of the process.
            with tf.control_dependencies(checks):
                checked_data = tf.nest.map_structure(
                    lambda value: None if value is None else tf.identity(value), data, expand_composites=True
                )
            return step(checked_data)

        return checked

    # Saving.

    def save(self, filepath, *args, **kwargs) -> None:
        """As `keras.Model.save`; ValueError for an HDF5 file, which would lack the optimizer's state."""
        check(
            not str(filepath).endswith((".h5", ".hdf5")),
            f"{filepath}: HDF5 files of models lack the optimizer's state; give a name that ends in .keras",
        )
        super().save(filepath, *args, **kwargs)

    def export(self, filepath, *args, **kwargs) -> None:
        """Not available: a SavedModel has several signatures. The ValueError names the command that writes it."""
        raise ValueError(
            f"{filepath}: not written; `nvae-export --workdir=RUN --output=DIR` exports a run "
            "folder of nvae-train; in Python, nvae_tf.serving.saved_model.export_saved_model(model, DIR) "
            "exports a model"
        )

    def get_config(self) -> dict:
        settings = {name: configuration.config_to_dict(getattr(self, name)) for name in ("config", "objective")}
        settings |= {name: getattr(self, name) for name in ("seed", "recompute", "accumulate_steps", "name")}
        return settings | {"dtype": self.dtype_policy.name}

    @classmethod
    def from_config(cls, config: dict) -> "NVAE":
        model = configuration.config_from_dict(ModelConfig, config["config"])
        objective = configuration.config_from_dict(ObjectiveConfig, config["objective"])
        return cls(**config | {"config": model, "objective": objective})


def _results(metrics: Sequence[keras.metrics.Metric]) -> dict[str, tf.Tensor]:
    # Several workers' `fit` joins their metrics along an axis, which scalars lack.
    several = isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy)
    return {metric.name: tf.reshape(metric.result(), [1] if several else []) for metric in metrics}


def _refuse_class_weight(class_weight: object) -> None:
    check(
        class_weight is None,
        "class_weight has no effect: the loss is the mean over all images, whatever their class; leave it out",
    )


class ModelForTraining(NamedTuple):
    """A model with its first weights, compiled; the optimizer's slots are not made yet."""

    model: NVAE  # with a `RunawayGuard`
    schedule: LoweredRate  # step -> learning rate

    @property
    def variables(self) -> list:
        """What a checkpoint must hold besides weights, metrics and the optimizer's variables."""
        return [*self.model.step_guard.variables, *self.schedule.variables]


def model_for_training(config: ExperimentConfig, steps_per_epoch: int, total_steps: int) -> ModelForTraining:
    """Makes the model of an experiment; the same settings, of a run of this length, give the same first weights."""
    settings, rates = config.train, configuration.resolve_lengths(config, steps_per_epoch, total_steps).optimizer
    keras.utils.set_random_seed(settings.seed)
    of_training = {"recompute": settings.recompute, "accumulate_steps": settings.accumulate_steps}
    model = NVAE(config.model, config.objective, seed=settings.seed, dtype=settings.precision, **of_training)
    warmup_steps = round(rates.warmup_epochs * steps_per_epoch)
    limits = rates.learning_rate, rates.learning_rate_min
    schedule = LoweredRate(WarmupCosine(*limits, warmup_steps, steps_per_epoch, total_steps))
    model.step_guard = RunawayGuard(settings.loss_tolerance)
    average = {"use_ema": True, "ema_momentum": rates.ema_momentum} if rates.ema_momentum else {}
    optimizer = NVAEAdamax(learning_rate=schedule, l2=rates.weight_decay, **average)
    # The step is compiled with all that is around it, see `nvae_tf.training.strategy`.
    model.compile(optimizer=optimizer, jit_compile=False)
    return ModelForTraining(model, schedule)
