"""The model: a `keras.Model` that trains, scores, encodes, decodes and generates."""

import contextlib
import dataclasses
import functools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf import config as configuration
from nvae_tf import objective as objectives
from nvae_tf.config import ModelConfig, ObjectiveConfig, check, check_choice, real_number, whole_number
from nvae_tf.distributions.image_likelihood import ImageLikelihood
from nvae_tf.latent_plan import latent_plan
from nvae_tf.layers import (
    FoldedPass,
    ForwardPass,
    ResidualCells,
    StackedBatchNormalization,
    StackedConvolution,
    StackedLayer,
    variables_named_alike,
)
from nvae_tf.layers.convolution import DataDependentConvolution
from nvae_tf.models import restoration
from nvae_tf.models.bottom_up import BottomUp
from nvae_tf.models.images import (
    boolean_mask,
    check_images,
    frame,
    real_pixels,
)
from nvae_tf.models.keras_fit import FittedModel
from nvae_tf.models.latents import (
    GivenSource,
    GuidedSource,
    InferredGroup,
    LatentSample,
    LatentSource,
    PosteriorSource,
    PriorSource,
    Temperature,
    active_channels,
    batch_size_of,
    check_guidance,
    check_labels,
    check_latents,
    image_seeds,
    inferred_group,
    latents_type,
    noise_of_samples,
    noise_per_image,
    temperatures_of_groups,
    with_kept_channels,
)
from nvae_tf.models.metrics import RecentMetrics, RunningMetrics
from nvae_tf.models.outlier_scores import OutlierCalibration, OutlierScores, outlier_parts, outlier_scores
from nvae_tf.models.reweighted_prior import NONE_LEARNED, ReweightedPrior, check_prior, with_reweighted_prior
from nvae_tf.models.top_down import ClassEmbedding, TopDown
from nvae_tf.optimization import StepGuard
from nvae_tf.progress import image_bar

_MOST_GRAPHS = 16
# Their conditions are all Python's: in a graph of the caller's, autograph would take as long as the tracing itself.
_AS_WRITTEN = tf.autograph.experimental.do_not_convert


class Decoded(NamedTuple):
    """The end of a top-down pass."""

    parameters: tf.Tensor  # the likelihood's, over the padded frame, `[batch, height, width, parameters]`
    likelihood: tfp.distributions.Distribution  # over the real pixels, event `[height, width, channels]` in [0, 1]
    latents: list[LatentSample]  # top group first

    def elbo(self, images: tf.Tensor) -> objectives.Elbo:
        """The bound's terms for the images that the latents were inferred from, in nats."""
        return objectives.Elbo(-self.likelihood.log_prob(images), objectives.kl_per_group(self.latents))

    def flat_latents(self) -> tf.Tensor:
        """All latents of an image as one row `[batch, total]`, group after group, see `groups_of_flat`."""
        pieces = []
        for latent in self.latents:
            size = math.prod(latent.z.shape[1:])
            flat_groups = tf.reshape(latent.z, [latent.groups, -1, size])
            pieces.append(tf.reshape(tf.transpose(flat_groups, [1, 0, 2]), [-1, latent.groups * size]))
        return tf.concat(pieces, axis=1)


@keras.saving.register_keras_serializable("nvae_tf")
class NVAE(FittedModel):
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
      seed: of the initial weights, and of all draws in training.
      recompute: what the backward pass computes again instead of keeping it: nothing ("none"), the cells of the latent
        groups ("groups"), or those before and after them too ("all").
      accumulate_steps: into how many microbatches a batch is cut in training, for less memory.
      label_dropout: the probability with which an image is trained without its class (`config.num_classes`), so that
        the model also works without, and `generate` with guidance.
      scan: whether equal groups and cells are one loop of the graph of a training step. A program that XLA compiles is
        then small, however many there are; the numbers stay. On several replicas, and eagerly, there is no loop.
      **kwargs: of `keras.Model`; `dtype="mixed_bfloat16"` computes the networks in half precision.
    """

    @variables_named_alike()
    def __init__(
        self,
        config: ModelConfig,
        objective: ObjectiveConfig | None = None,
        seed: int = 0,
        recompute: str = "none",
        accumulate_steps: int = 1,
        label_dropout: float = 0.0,
        scan: bool = False,
        **kwargs,
    ):
        # The layers cast what they compute in half precision themselves; statistics and distributions stay in float32.
        super().__init__(autocast=False, **kwargs)
        objective = ObjectiveConfig() if objective is None else objective
        for where, value, expected in (("config", config, ModelConfig), ("objective", objective, ObjectiveConfig)):
            kind = type(value).__name__
            check(isinstance(value, expected), f"{where} is of type {kind}: must be a nvae_tf.{expected.__name__}")
        check_choice("dtype", self.dtype_policy.name, configuration.PRECISIONS)
        check_choice("recompute", recompute, configuration.RECOMPUTATIONS)
        self.config, self.objective, self.plan = config, objective, latent_plan(config)
        # Fails early where the settings do not fit each other.
        objectives.final_kl_weights(objective, self.plan)
        self.seed, self.recompute = whole_number("seed", seed, -configuration.LARGEST_SEED), recompute
        self.accumulate_steps, self.scan = whole_number("accumulate_steps", accumulate_steps, 1), bool(scan)
        probability = "must be a probability from 0 to 1"
        self.label_dropout = real_number("label_dropout", label_dropout, probability, 0.0, 1.0)
        mixture = config.num_mixtures, config.num_bits, config.exact_edges
        self.likelihood = ImageLikelihood(config.likelihood, config.image_channels, *mixture)
        dtype, num_parameters = self.dtype_policy, self.likelihood.num_parameters
        with _seeded_initializers(self.seed):
            self.bottom_up = BottomUp(config, self.plan, name="bottom_up", dtype=dtype)
            self.top_down = TopDown(config, self.plan, num_parameters, name="top_down", dtype=dtype)
            self.spectral_regularizer = objectives.SpectralRegularizer(self.convolutions)
        group_cells = [scale.cells for scale in (*self.bottom_up.scales, *self.top_down.scales)]
        for cells in self._layers_of_kind(ResidualCells):
            cells.recomputed = recompute == "all" or (recompute == "groups" and cells in group_cells)
        self.is_data_dependent = bool(self._layers_of_kind(DataDependentConvolution))
        self.data_initialised = self.add_weight(
            shape=(), initializer="zeros", trainable=False, aggregation="only_first_replica", name="data_initialised"
        )
        self.running = RunningMetrics()
        self.recent = RecentMetrics(self.plan.num_groups, sum(layer.count for layer in self.convolutions))
        self.step_guard = StepGuard()
        # Of `nvae_tf.load`, which leaves reading what lies beside the weights to its first use.
        self.read_prior: Callable[[], ReweightedPrior | str] = lambda: NONE_LEARNED
        self.read_calibration: Callable[[], OutlierCalibration | str | None] = lambda: None
        # Of `batch_size=`: tracing takes many times as long as running.
        self._kept_graphs = functools.lru_cache(_MOST_GRAPHS)(_graph_of)
        # TensorFlow does not look into Keras' lists: `tf.train.Checkpoint(model=...)` would leave their weights out.
        self._weights_of_checkpoint = tf.train.Checkpoint(weights=self.weights)
        self.built = True

    @functools.cached_property
    def reweighted_prior(self) -> ReweightedPrior | str:
        """What nvae-prior has learned for these weights; a text says why there is none."""
        return self.read_prior()

    @functools.cached_property
    def outlier_calibration(self) -> OutlierCalibration | str | None:
        """What nvae-calibrate has measured with these weights; a text says why it can't be used."""
        return self.read_calibration()

    def _layers_of_kind(self, kind: type) -> list:
        return [layer for layer in self._flatten_layers(include_self=False) if isinstance(layer, kind)]

    # Not set in the constructor: Keras would count these layers a second time. The names are not private, because in
    # `.keras` files the weights of these layers lie under them.
    batch_norms = functools.cached_property(lambda self: self._layers_of_kind(StackedBatchNormalization))
    convolutions = functools.cached_property(lambda self: self._layers_of_kind(StackedConvolution))

    # A method, because Keras would save weights under the name of an attribute.
    def _stacks(self) -> list[StackedLayer]:
        return self._layers_of_kind(StackedLayer)

    # The networks: images -> features -> latents -> the distribution of images.

    def _inference_pass(
        self, images: tf.Tensor, noise: Sequence[tf.Tensor], forward: ForwardPass | None = None, kept_channels=None
    ) -> Decoded:
        """Both passes for images `[batch, height, width, channels]`, with every latent from the posterior.

        `noise` are the groups' standard-normal draws, top group first. Without `forward` it is inference. Latent
        channels outside of a mask `kept_channels`, see `active_channels`, are at the prior's mean.
        """
        forward = forward or FoldedPass()
        sources = self._posterior_sources(self._features(images, forward), noise)
        if kept_channels is not None:
            sources = with_kept_channels(sources, kept_channels, self.plan)
        return self._top_down_pass(sources, tf.shape(images)[0], forward)

    def _features(self, images: tf.Tensor, forward: ForwardPass | None = None) -> list[tf.Tensor]:
        """The bottom-up feature of every group, top group first; they do not depend on any random draw."""
        return self.bottom_up.forward(frame(images, self.config), forward or FoldedPass())

    def _top_down_pass(
        self,
        sources: Sequence[LatentSource],
        batch_size: int | tf.Tensor,
        forward: ForwardPass | None = None,
        kept: tf.Tensor | None = None,
    ) -> Decoded:
        """From one latent source a group to the distribution of images, of the first `kept` alone if it is given."""
        parameters, latents = self.top_down.forward(sources, batch_size, forward or FoldedPass())
        parameters = parameters if kept is None else parameters[:kept]
        pixels = real_pixels(parameters, self.config.image_height, self.config.image_width)
        return Decoded(parameters, self.likelihood.distribution(pixels), latents)

    def _posterior_sources(self, features: Sequence[tf.Tensor], noise: Sequence[tf.Tensor]) -> list[LatentSource]:
        """The source of each group's latent, from its bottom-up feature and standard-normal noise."""
        residual = self.config.residual_distributions
        return [PosteriorSource(feature, eps, residual) for feature, eps in zip(features, noise, strict=True)]

    def _inference_forward(self, labels: tf.Tensor | None = None) -> ForwardPass:
        """A forward pass in inference that has all weights already, for what is called in every turn of a loop."""
        forward = FoldedPass(labels=labels)
        for layer in self._layers_of_kind((StackedLayer, TopDown, ClassEmbedding)):
            forward.weights_of(layer)
        return forward

    def call(self, images: tf.Tensor, training: bool = False, seed: int = 0, labels=None) -> tf.Tensor:
        """The mean of the reconstruction of images `[batch, height, width, channels]` in [0, 1]; itself in [0, 1]."""
        images = check_images(images, self.config)
        labels = self._labels(labels, batch_size_of(images))
        forward = ForwardPass(True, labels=labels) if training else FoldedPass(labels=labels)
        noise = noise_per_image(self.plan.latent_shapes(), image_seeds(seed, tf.shape(images)[0]))
        decoded = self._inference_pass(images, noise, forward)
        forward.commit()
        return decoded.likelihood.mean()

    # Encoding, decoding, generating and scoring.

    # All of these are differentiable, with respect to images and latents, and work in graphs. Labels are the classes of
    # a conditional model, one number for all images or one an image; without, and for -1, images have no class. With a
    # batch size the images go through the networks so many at a time, with a bar on a terminal.

    @_AS_WRITTEN
    def infer(
        self, images: tf.Tensor, seed: int = 0, mean: bool = False, labels=None, batch_size: int | None = None
    ) -> tuple[InferredGroup, ...]:
        """What the model infers of each group's latent from images, top group first, see `InferredGroup`.

        Example: `kl_of_top_group = model.infer(images, mean=True)[0].kl`
        """
        images = check_images(images, self.config)
        count = batch_size_of(images)

        rows = images, image_seeds(seed, count), self._labels(labels, count)
        return _in_batches(self, _inferred, batch_size, *rows, mean=mean)

    @_AS_WRITTEN
    def encode(
        self,
        images: tf.Tensor,
        seed: int = 0,
        mean: bool = False,
        labels=None,
        batch_size: int | None = None,
        active_only: bool | np.ndarray | tf.Tensor = False,
    ) -> tuple[tf.Tensor, ...]:
        """Latents of images, one `[batch, height, width, latent channels]` a group, top group first.

        Draws from the posterior, or its means, each given those of the groups above, and what the flows make of them;
        their method `numpy()` gives arrays.

        With `active_only` only a tenth of all latent channels come from there, those with the largest mean KL over
        these images; the others are at the prior's mean given the groups above. It may also be a mask of channels, see
        `nvae_tf.models.latents.active_channels`, which other images have decided.
        Example: `latents = model.encode(images, seed=1)`
        """
        kept = None if isinstance(active_only, bool) else boolean_mask(active_only, "active_only")
        if active_only is True:
            kl = [tf.reduce_sum(group.kl, axis=(1, 2)) for group in self.infer(images, seed, mean, labels, batch_size)]
            kept = active_channels(tf.reduce_mean(kl, axis=1))
        images = check_images(images, self.config)
        count = batch_size_of(images)

        # One mask for all images, given to each, as what goes through in batches is.
        kept = None if kept is None else tf.repeat(tf.convert_to_tensor(kept)[tf.newaxis], count, axis=0)
        rows = images, image_seeds(seed, count), self._labels(labels, count), kept
        return _in_batches(self, _encoded, batch_size, *rows, mean=mean)

    def _encode_from_seeds(
        self, images: tf.Tensor, seeds: tf.Tensor, noise_scale=1.0, labels: tf.Tensor | None = None, kept_channels=None
    ) -> list[LatentSample]:
        """As `encode`, for one seed an image `[batch, 2]`; `noise_scale` multiplies sigma (0: the means)."""
        noise = [noise_scale * eps for eps in noise_per_image(self.plan.latent_shapes(), seeds)]
        return self._inference_pass(images, noise, FoldedPass(labels=labels), kept_channels).latents

    @_AS_WRITTEN
    def decode(
        self,
        latents: Sequence[tf.Tensor],
        temperature: Temperature | None = None,
        seed: int = 0,
        labels=None,
        batch_size: int | None = None,
    ) -> tf.Tensor:
        """Mean images `[batch, height, width, channels]` in [0, 1] from latents, one a group, as `encode` gives them.

        With a temperature those of the top groups are enough, at least of one; the others are drawn from the prior, see
        `generate`. ValueError where the latents are of another architecture, or some are missing.
        Example: `images = model.decode(latents)`; `variants = model.decode(latents[:1], temperature=0.7, seed=2)`
        """
        latents = check_latents(latents, self.plan, may_lack_groups=temperature is not None)
        count, temperature = batch_size_of(latents[0]), 1.0 if temperature is None else temperature
        rows = image_seeds(seed, count), self._labels(labels, count), *latents
        temperatures = tuple(temperatures_of_groups(temperature, self.plan))
        return _in_batches(self, _generated, batch_size, *rows, temperature=temperatures)

    @_AS_WRITTEN
    def generate(
        self,
        count: int,
        temperature: Temperature = 1.0,
        seed: int = 0,
        labels=None,
        guidance: float = 1.0,
        batch_size: int | None = None,
        prior: str = "model",
        mean: bool = True,
    ) -> tf.Tensor:
        """Images `[count, height, width, channels]` in [0, 1] of latents from the prior: the likelihood's means.

        With `mean=False` they are draws from the likelihood p(x | z) instead: 0 or 1 for a model of 1 bit, and noisy.

        `temperature` multiplies the priors' sigma, see `temperatures_of_groups`: a number, or one a scale or group.
        Image i depends on the seed and i, not on `count`. `guidance` above 1 makes images more typical of their class
        (see `GuidedSource`); with 0 latents are from the priors of no class. ValueError unless it is 1 where the model
        was trained without `label_dropout`.
        With `prior="reweighted"` the top groups are drawn from the `ReweightedPrior` that nvae-prior has learned.
        Example: `images = model.generate(16, temperature=0.7, seed=1)`
        """
        count = whole_number("count", count, 1)
        labels = self._labels(labels, count)
        check_guidance(guidance, labels is not None, self.config.num_classes, self.label_dropout)
        temperatures = tuple(temperatures_of_groups(temperature, self.plan))
        how = dict(temperature=temperatures, guidance=guidance, prior=check_prior(prior, self), mean=mean)
        return _in_batches(self, _generated, batch_size, image_seeds(seed, count), labels, **how)

    def _generate_from_seeds(
        self,
        seeds: tf.Tensor,
        temperature: Temperature = 1.0,
        latents=(),
        forward: ForwardPass | None = None,
        guidance: float = 1.0,
        prior: ReweightedPrior | None = None,
        mean: bool = True,
    ) -> tf.Tensor:
        """As `generate`, for one seed an image `[batch, 2]`; the temperature is the priors' alone.

        Latents of the top groups may be given; the other groups' draws are the same as without, and as with a
        reweighted prior of the top groups.
        """
        temperatures, forward = temperatures_of_groups(temperature, self.plan), forward or FoldedPass()
        sources: list[LatentSource] = [GivenSource(latent) for latent in latents]
        is_guided = guidance != 1.0
        check(not (is_guided and latents), "guidance is of the priors of all groups: no latents may be given with it")
        if len(sources) < self.plan.num_groups:
            noise = noise_per_image(self.plan.latent_shapes(), seeds)
            make = functools.partial(GuidedSource, guidance=guidance) if is_guided else PriorSource
            sources += list(map(make, noise, temperatures))[len(sources) :]
        if prior is not None:
            sources = with_reweighted_prior(prior, sources, seeds, temperatures, self.plan, forward.labels)
        count = kept = tf.shape(seeds)[0]
        if is_guided:
            labels = tf.concat([forward.labels, -tf.ones_like(forward.labels)], axis=0)
            count, forward = 2 * count, dataclasses.replace(forward, labels=labels)
        decoded = self._top_down_pass(sources, count, forward, kept if is_guided else None)
        if mean:
            return decoded.likelihood.mean()
        pixels = real_pixels(decoded.parameters, self.config.image_height, self.config.image_width)
        return self.likelihood.sample(pixels, seeds)

    @_AS_WRITTEN
    def score(
        self,
        images: tf.Tensor,
        importance_samples: int = 1,
        seed: int = 0,
        labels=None,
        per_group: bool = False,
        batch_size: int | None = None,
    ) -> tf.Tensor | objectives.Elbo:
        """Importance-weighted bound on the negative log-likelihood of each image `[batch]`, in nats.

        With `per_group` it is that of one draw with analytic KLs (the NELBO), in its parts: an `objective.Elbo`.
        Example: `nats = model.score(images, importance_samples=100, batch_size=50)`
        """
        images = check_images(images, self.config, scored=True)
        count = batch_size_of(images)
        parts = f"per_group with importance_samples = {importance_samples}: the KL of each group is that of one sample"
        check(importance_samples == 1 or not per_group, parts)
        rows = images, image_seeds(seed, count), self._labels(labels, count)
        if per_group:
            return _in_batches(self, _elbo, batch_size, *rows)
        return _in_batches(self, NVAE._importance_weighted, batch_size, *rows, importance_samples=importance_samples)

    @_AS_WRITTEN
    def outlier_score(self, images: tf.Tensor, labels=None, batch_size: int | None = None) -> OutlierScores:
        """How unlike the training images these are, by one pass at the posterior's means, without a random draw.

        Without labels a conditional model takes for each image the class that fits best, which is a pass a class.
        ValueError where the calibration file of the model's run is damaged or of other weights.
        Example: `p_values = model.outlier_score(images).kl_p_value`
        """
        calibration = self.outlier_calibration
        check(not isinstance(calibration, str), calibration)
        images = check_images(images, self.config, scored=True)
        rows = images, self._labels(labels, batch_size_of(images))
        return outlier_scores(_in_batches(self, outlier_parts, batch_size, *rows), calibration)

    @_AS_WRITTEN
    def classify(self, images: tf.Tensor, seed: int = 0, batch_size: int | None = None) -> tf.Tensor:
        """The probability of each class given an image, `[batch, classes]`: Bayes' rule over the bounds.

        All classes are as probable a priori, and `log p(x | class)` is replaced by its lower bound (`score` with
        `per_group`), with the same draws for all.
        Example: `likeliest = tf.argmax(model.classify(images), axis=1)`
        """
        check(self.config.num_classes > 0, "this model has no classes (model.num_classes = 0)")
        images = check_images(images, self.config, scored=True)
        return _in_batches(self, _classified, batch_size, images, image_seeds(seed, batch_size_of(images)))

    def _nelbo_of_classes(self, images: tf.Tensor, noise: Sequence[tf.Tensor]) -> tf.Tensor:
        """The NELBO of images given each class, in nats, `[classes, batch]`; `noise` see `_inference_pass`."""
        # What does not depend on the class is computed once.
        forward, count = self._inference_forward(), tf.shape(images)[0]
        sources = self._posterior_sources(self._features(images, forward), noise)

        def nelbo(number: tf.Tensor) -> tf.Tensor:
            class_pass = dataclasses.replace(forward, labels=tf.fill([count], number))
            return self._top_down_pass(sources, count, class_pass).elbo(images).nelbo

        return tf.map_fn(nelbo, tf.range(self.config.num_classes), fn_output_signature=tf.float32)

    def restore(
        self,
        measurement: tf.Tensor,
        operator: restoration.LinearOperator,
        sigma: float | tf.Tensor,
        steps: int = 40,
        pnp_steps: int | None = None,
        seed: int | None = None,
        labels=None,
        batch_size: int | None = None,
    ) -> tf.Tensor:
        """Images `[batch, height, width, channels]` in [0, 1] that are likely and agree with a noisy measurement.

        The measurement is `operator.apply(images)` and noise of standard deviation `sigma`, pixels being in [0, 1]; the
        operators are in `nvae_tf.models.restoration`, which has the method. After `pnp_steps` (None: 20, but none where
        sigma is at least 0.1, or a tensor of a graph) come `steps` of gradient descent; with 0 of these it is quick and
        less exact. It begins at the posterior's means, or with a seed at draws, which differ where the measurement
        leaves much open.
        Example: `images = model.restore(damaged, restoration.Mask(missing), sigma=0.0)`
        """
        measurement, sigma = restoration.checked_measurement(measurement, operator, sigma, self.config)
        pnp_steps = restoration.default_pnp_steps(sigma) if pnp_steps is None else pnp_steps
        steps, pnp_steps = whole_number("steps", steps), whole_number("pnp_steps", pnp_steps)
        count = batch_size_of(measurement)
        how = dict(operator=operator, sigma=sigma, steps=steps, pnp_steps=pnp_steps, from_draws=seed is not None)
        # Never eagerly: its loops are fast in a graph alone. Anew at each call: an operator's arrays may change.
        batch_size = count if batch_size is None and tf.executing_eagerly() else batch_size
        rows = measurement, image_seeds(0 if seed is None else seed, count), self._labels(labels, count)
        return _in_batches(self, restoration.restored, batch_size, *rows, keep_graph=False, **how)

    def _labels(self, labels: object, count: int | tf.Tensor) -> tf.Tensor | None:
        return check_labels(labels, count, self.config.num_classes)

    @_AS_WRITTEN
    def _importance_weighted(self, images, seeds, labels, importance_samples: int) -> tf.Tensor:
        """The bound `[batch]` in nats for one seed an image `[batch, 2]`; the bottom-up pass runs once."""
        most = configuration.MOST_IMPORTANCE_SAMPLES
        importance_samples = whole_number("importance_samples", importance_samples, 1, most)
        begun = objectives.ImportanceWeighting.begun(tf.shape(images)[0], num_numbers=1)
        whole = 0, importance_samples, (importance_samples,)
        features = self._features(images)
        return self._add_importance_samples(begun, images, features, seeds, *whole, labels=labels).bounds[:, 0]

    def _add_importance_samples(
        self,
        before: objectives.ImportanceWeighting,
        images: tf.Tensor,
        features: Sequence[tf.Tensor],
        seeds: tf.Tensor,
        first: int | tf.Tensor,
        last: int | tf.Tensor,
        numbers: Sequence[int],
        samples_at_once: int = 1,
        labels: tf.Tensor | None = None,
    ) -> objectives.ImportanceWeighting:
        """Adds samples `first ... last - 1` of every image to those `before`, functions of seed and number.

        `images` are `[batch, height, width, channels]` in [0, 1] with these `features` and a seed each, `[batch, 2]`;
        `numbers` see `objective.add_samples`. One pass draws `samples_at_once`, with as many times the memory.
        """
        forward = self._inference_forward(None if labels is None else tf.repeat(labels, samples_at_once))
        if samples_at_once > 1:
            images, *features = (tf.repeat(tensor, samples_at_once, axis=0) for tensor in (images, *features))
        shapes, num_rows = self.plan.latent_shapes(), tf.shape(images)[0]

        def log_weights(indices: tf.Tensor) -> tf.Tensor:
            noise = noise_of_samples(shapes, seeds, indices[0], samples_at_once)
            decoded = self._top_down_pass(self._posterior_sources(features, noise), num_rows, forward)
            log_q, log_p = objectives.log_posterior_and_prior(decoded.latents)
            return tf.reshape(decoded.likelihood.log_prob(images) + log_p - log_q, [-1, samples_at_once])

        return objectives.add_samples(log_weights, before, numbers, first, last, samples_at_once)

    def summary(self, *_: object, print_fn: Callable[[str], object] | None = None, **__: object) -> None:
        """Prints the hierarchy: of each scale its groups, the shape of their latents, channels and weights.

        Other arguments of `keras.Model.summary` have no effect.
        """
        for line in _lines_of_summary(self):
            (print_fn or print)(line)

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
        settings |= {
            name: getattr(self, name)
            for name in ("seed", "recompute", "accumulate_steps", "label_dropout", "scan", "name")
        }
        return settings | {"dtype": self.dtype_policy.name}

    @classmethod
    def from_config(cls, config: dict) -> "NVAE":
        model = configuration.config_from_dict(ModelConfig, config["config"])
        objective = configuration.config_from_dict(ObjectiveConfig, config["objective"])
        return cls(**config | {"config": model, "objective": objective})


@contextlib.contextmanager
def _seeded_initializers(seed: int) -> Iterator[None]:
    """In this block the seeds of Keras' initializers, which come from Python's generator, follow from `seed`."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


# What goes through in batches: functions of a model and of tensors with a row an image.


def _inferred(model: NVAE, images, seeds, labels, mean: bool) -> tuple[InferredGroup, ...]:
    return tuple(map(inferred_group, model._encode_from_seeds(images, seeds, 0.0 if mean else 1.0, labels)))


def _encoded(model: NVAE, images, seeds, labels, kept, mean: bool) -> tuple[tf.Tensor, ...]:
    kept = None if kept is None else kept[0]
    latents = model._encode_from_seeds(images, seeds, 0.0 if mean else 1.0, labels, kept)
    return latents_type(len(latents))._make(latent.z for latent in latents)


def _generated(model: NVAE, seeds, labels, *latents, **how) -> tf.Tensor:
    return model._generate_from_seeds(seeds, latents=latents, forward=FoldedPass(labels=labels), **how)


def _elbo(model: NVAE, images, seeds, labels) -> objectives.Elbo:
    noise = noise_per_image(model.plan.latent_shapes(), seeds)
    return model._inference_pass(images, noise, FoldedPass(labels=labels)).elbo(images)


def _classified(model: NVAE, images, seeds) -> tf.Tensor:
    noise = noise_per_image(model.plan.latent_shapes(), seeds)
    return tf.nn.softmax(-tf.transpose(model._nelbo_of_classes(images, noise)))


def _in_batches(model: NVAE, function: Callable, batch_size: int | None, *rows, keep_graph: bool = True, **settings):
    """`function(model, *rows, **settings)`, for at most `batch_size` rows at a time, or for all; None stays None.

    The model keeps the latest graphs, by function and settings; `keep_graph=False` is for settings that may change.
    """
    if batch_size is None:
        return function(model, *rows, **settings)
    count = next(row.shape[0] for row in rows if row is not None)
    check(count is not None, "batch_size is for images of a known number, not in a graph that takes any")
    batch_size = whole_number("batch_size", batch_size, 1)
    specs = [None if row is None else tf.TensorSpec([None, *row.shape[1:]], row.dtype) for row in rows]
    try:
        graph_of = model._kept_graphs if keep_graph and tf.executing_eagerly() else _graph_of
        graph = graph_of(model, function, **settings)
    except TypeError:  # A setting is no key, such as a tensor.
        graph = _graph_of(model, function, **settings)
    traced, parts = graph.get_concrete_function(*specs), []
    with image_bar(count) as bar:
        for first in range(0, count, batch_size):
            some = [None if row is None else row[first : first + batch_size] for row in rows]
            parts.append(traced(*some))
            bar.update(len(some[0]))
    return tf.nest.map_structure(lambda *tensors: tf.concat(tensors, axis=0), *parts)


def _graph_of(model: NVAE, function: Callable, **settings) -> tf.types.experimental.PolymorphicFunction:
    return tf.function(lambda *rows: function(model, *rows, **settings), autograph=False)


_COLUMNS_OF_SUMMARY = ("part", "groups", "latent of a group", "channels", "weights, encoder", "weights, decoder")


def _lines_of_summary(model: NVAE) -> list[str]:
    """A line about the model, then a table with a line for each scale, from the top, and for what is around them."""
    config, plan = model.config, model.plan
    size = f"{config.image_height}x{config.image_width}x{config.image_channels}"
    classes = f", {config.num_classes} classes" if config.num_classes else ""
    head = f"NVAE of images {size} of {config.num_bits} bits{classes}, likelihood {config.likelihood}"
    rows = [_COLUMNS_OF_SUMMARY]
    encoders = [*reversed(model.bottom_up.scales)] or [None] * len(plan.scales)
    for index, (scale, below, above) in enumerate(zip(plan.scales, encoders, model.top_down.scales, strict=True)):
        place = f"{scale.height}x{scale.width}"
        groups = f"{scale.groups[0]}-{scale.groups[-1]}" if len(scale.groups) > 1 else str(scale.groups[0])
        channels = f"{scale.encoder_channels} / {scale.decoder_channels}"
        down = [layer for layer in (below, model.bottom_up.top if index == 0 else None) if layer is not None]
        latent = f"{place}x{config.num_latent_per_group}"
        rows.append((f"scale {place}", groups, latent, channels, _weights_of(*down), _weights_of(above)))
    before = _weights_of(model.bottom_up.stem, *model.bottom_up.preprocess)
    after = _weights_of(*model.top_down.postprocess, model.top_down.image)
    ends = f"{config.num_channels_encoder} / {config.num_channels_decoder}"
    rows.append((f"image {size}", "", "", ends, before, after))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return [f"{head}: {plan.num_groups} latent groups, {_weights_of(model)} weights", *map(str.rstrip, padded)]


def _weights_of(*layers: keras.layers.Layer) -> str:
    return f"{sum(math.prod(weight.shape) for layer in layers for weight in layer.trainable_weights):,}"
