"""The model: a `keras.Model` that trains, scores, encodes, decodes and generates.

A step of `fit` is in keras_fit.py and training_step.py, what the methods compute in passes.py.
"""

import dataclasses
import functools
import hashlib
import math
import operator
import random
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from nvae_tf import config as configuration
from nvae_tf import layers
from nvae_tf import objective as objectives
from nvae_tf.config import ModelConfig, ObjectiveConfig, check, check_choice, real_number, whole_number
from nvae_tf.distributions.image_likelihood import ImageLikelihood
from nvae_tf.latent_plan import feature_groups, latent_plan
from nvae_tf.models import denoising, passes, restoration
from nvae_tf.models.bottom_up import BottomUp
from nvae_tf.models.images import as_tensor, boolean_mask, check_images
from nvae_tf.models.keras_fit import WITHOUT_AUTOGRAPH, FittedModel
from nvae_tf.models.latents import (
    InferredGroup,
    Temperature,
    active_channels,
    batch_size_of,
    check_guidance,
    check_labels,
    check_latents,
    image_seeds,
    noise_per_image,
    temperatures_of_groups,
)
from nvae_tf.models.outlier_scores import OutlierCalibration, OutlierScores, outlier_parts, outlier_scores
from nvae_tf.models.reweighted_prior import NONE_LEARNED, ReweightedPrior, check_prior
from nvae_tf.models.top_down import TopDown
from nvae_tf.models.training_step import RecentMetrics, RunningMetrics
from nvae_tf.optimization import StepGuard
from nvae_tf.progress import image_bar


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

    @layers.variables_named_alike()  # makes tracing quicker
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
        # The layers cast what they compute in half precision; statistics and distributions stay in float32.
        super().__init__(autocast=False, **kwargs)
        objective = ObjectiveConfig() if objective is None else objective
        for name, value, expected in (("config", config, ModelConfig), ("objective", objective, ObjectiveConfig)):
            if not isinstance(value, expected):
                raise ValueError(f"{name} is of type {type(value).__name__}: must be a nvae_tf.{expected.__name__}")
        check_choice("dtype", self.dtype_policy.name, configuration.PRECISIONS)
        check_choice("recompute", recompute, configuration.RECOMPUTATIONS)
        self.config, self.objective, self.plan = config, objective, latent_plan(config)
        objectives.final_kl_weights(objective, self.plan)  # ValueError if the two do not fit each other
        self.recompute, self.scan = recompute, bool(scan)
        self.seed = whole_number("seed", seed, -configuration.LARGEST_SEED)
        self.accumulate_steps = whole_number("accumulate_steps", accumulate_steps, 1)
        self.label_dropout = real_number("label_dropout", label_dropout, "must be from 0 to 1", 0.0, 1.0)
        self.likelihood = ImageLikelihood.for_model(config)
        dtype, num_parameters = self.dtype_policy, self.likelihood.num_parameters
        state = random.getstate()  # the seeds of Keras' initializers come from Python's generator
        random.seed(self.seed)
        try:
            self.bottom_up = BottomUp(config, self.plan, name="bottom_up", dtype=dtype)
            self.top_down = TopDown(config, self.plan, num_parameters, name="top_down", dtype=dtype)
            self.spectral_regularizer = objectives.SpectralRegularizer(self.convolutions)
        finally:
            random.setstate(state)
        group_cells = [scale.cells for scale in (*self.bottom_up.scales, *self.top_down.scales) if scale.cells]
        all_cells = layers.layers_of_kind(self, layers.ResidualCells)
        for cells in {"none": [], "groups": group_cells, "all": all_cells}[recompute]:
            cells.recomputed = True
        self.is_data_dependent = bool(layers.layers_of_kind(self, layers.DataDependentConvolution))
        self.data_initialised = self.add_weight(  # 1 once data-dependent layers have their scales, of the first batch
            shape=(), initializer="zeros", trainable=False, aggregation="only_first_replica", name="data_initialised"
        )
        self.running = RunningMetrics()
        self.recent = RecentMetrics(self.plan.num_groups, sum(layer.count for layer in self.convolutions))
        self.step_guard = StepGuard()
        # `nvae_tf.load` replaces these by functions that read files of the run, when they are first needed.
        self.read_prior: Callable[[], ReweightedPrior | str] = lambda: NONE_LEARNED
        self.read_calibration: Callable[[], OutlierCalibration | str | None] = lambda: None
        # Tracing a graph for `batch_size=` takes many times as long as running it.
        self._cached_graph_of = functools.lru_cache(16)(_graph_of)
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

    # `batch_norms` and `convolutions` must keep their names: Keras stores a layer in a `.keras` file under the
    # alphabetically first attribute that leads to it, here one of these two. They are cached properties, because Keras
    # would count the layers of a list that the constructor sets twice.

    @functools.cached_property
    def batch_norms(self) -> list[layers.StackedBatchNormalization]:
        """All stacks of batch norms."""
        return layers.layers_of_kind(self, layers.StackedBatchNormalization)

    @functools.cached_property
    def statistics(self) -> list[keras.Variable]:
        """The running statistics of all batch norms, and the state of registered cells."""
        stacks = layers.layers_of_kind(self, (layers.StackedBatchNormalization, layers.KerasLayers))
        return [variable for stack in stacks for variable in stack.statistics]

    @functools.cached_property
    def convolutions(self) -> list[layers.StackedConvolution]:
        """All stacks of convolutions."""
        return layers.layers_of_kind(self, layers.StackedConvolution)

    def _stacks(self) -> list[layers.StackedLayer]:
        """All stacks of layers, those that are parts of others among them."""
        return layers.layers_of_kind(self, layers.StackedLayer)

    def call(self, images: tf.Tensor, training: bool = False, seed: int = 0, labels=None) -> tf.Tensor:
        """The mean of the reconstruction of images `[batch, height, width, channels]` in [0, 1]; itself in [0, 1].

        Of noisy images, which may have any values, it is the signal.
        """
        images, seeds, labels = self._rows(images, seed, labels)
        forward = layers.ForwardPass(training=True, labels=labels) if training else layers.FoldedPass(labels=labels)
        decoded = passes.inference_pass(self, images, noise_per_image(self.plan.latent_shapes(), seeds), forward)
        forward.commit()
        return decoded.likelihood.mean()

    def _weights_sha256(self) -> str:
        """The SHA-256 of the networks' weights and running statistics, without what only training uses."""
        digest = hashlib.sha256()
        for weight in (*self.bottom_up.weights, *self.top_down.weights):
            digest.update(weight.numpy().tobytes())
        return digest.hexdigest()

    # The public methods below, but for `compress` and `decompress`, are differentiable with respect to images and
    # latents, and work in graphs. Labels are the classes of a conditional model, one number for all images or one for
    # each; without labels, and with -1, an image has no class (but see `outlier_score`). With a batch size the
    # images go through the networks in batches, with a bar on a terminal.

    @WITHOUT_AUTOGRAPH
    def infer(
        self, images: tf.Tensor, seed: int = 0, mean: bool = False, labels=None, batch_size: int | None = None
    ) -> tuple[InferredGroup, ...]:
        """What the model infers of each group's latent from images, top group first, see `InferredGroup`.

        Example: `kl_of_top_group = model.infer(images, mean=True)[0].kl`
        """
        rows = self._rows(images, seed, labels)
        return self._in_batches(passes.inferred, batch_size, *rows, noise_scale=0.0 if mean else 1.0)

    @WITHOUT_AUTOGRAPH
    def encode(
        self, images, seed: int = 0, mean: bool = False, labels=None, batch_size: int | None = None, active_only=False
    ) -> tuple[tf.Tensor, ...]:
        """Latents of images, one `[batch, height, width, latent channels]` a group, top group first.

        Draws from the posterior, or its means, after the flows; the tuple's method `numpy()` gives arrays. With
        `active_only` only the tenth of all latent channels with the largest mean KL over these images is taken from the
        posterior; the others are at the prior's mean given the groups above. `active_only` may also be a mask, see
        `latents.active_channels`.
        Example: `latents = model.encode(images, seed=1)`
        """
        kept = None if isinstance(active_only, bool) else boolean_mask(active_only, "active_only")
        shape = [self.plan.num_groups, self.plan.num_latent_per_group]
        if kept is not None and list(kept.shape) != shape:
            raise ValueError(f"active_only has shape {list(kept.shape)}: must be {shape}, groups and latent channels")
        if active_only is True:
            kl = [tf.reduce_sum(group.kl, axis=(1, 2)) for group in self.infer(images, seed, mean, labels, batch_size)]
            kept = active_channels(tf.reduce_mean(kl, axis=1))
        rows = self._rows(images, seed, labels)
        if kept is not None:  # as rows, because all that goes through in batches has a row for each image
            kept = tf.repeat(tf.convert_to_tensor(kept)[tf.newaxis], batch_size_of(rows[0]), axis=0)
        return self._in_batches(passes.encoded, batch_size, *rows, kept, noise_scale=0.0 if mean else 1.0)

    @WITHOUT_AUTOGRAPH
    def features(
        self, images, groups: str | Sequence[int] = "all", pool: str | None = None, labels=None, batch_size=None
    ) -> tf.Tensor:
        """Features of images for other programs, a row for each image, `[batch, features]` (`feature_names`).

        They are the posterior's means in units of the prior's sigma, before the flows, of all latent groups or those
        of these numbers (0: the top one), without a random draw. With `pool="mean"` a channel has the mean of its
        positions instead of each. ValueError where there is no such group.
        Example: `rows = model.features(images, groups=[0, 1], batch_size=64)`
        """
        how = {"groups": feature_groups(self.plan, groups, pool), "pool": pool}
        return self._in_batches(passes.features, batch_size, *self._rows(images, 0, labels), **how)

    @WITHOUT_AUTOGRAPH
    def decode(
        self, latents, temperature: Temperature | None = None, seed: int = 0, labels=None, batch_size: int | None = None
    ) -> tf.Tensor:
        """Mean images `[batch, height, width, channels]` in [0, 1] from latents, one a group, as `encode` gives them.

        With a temperature the top groups' latents are enough, at least one; the others are drawn from the prior, see
        `generate`. ValueError where the latents are of another architecture, or some are missing.
        Example: `images = model.decode(latents)`; `variants = model.decode(latents[:1], temperature=0.7, seed=2)`
        """
        latents = check_latents(latents, self.plan, may_lack_groups=temperature is not None)
        count, temperature = batch_size_of(latents[0]), 1.0 if temperature is None else temperature
        rows = image_seeds(seed, count), self._labels(labels, count), *latents
        temperatures = tuple(temperatures_of_groups(temperature, self.plan))
        return self._in_batches(passes.generated, batch_size, *rows, temperatures=temperatures)

    @WITHOUT_AUTOGRAPH
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

        With `mean=False` they are draws from the likelihood p(x | z) instead, with its pixel noise: 0 or 1 at 1 bit.
        `temperature` multiplies the priors' sigma, see `temperatures_of_groups`: a number, or one a scale or group.
        Image i depends on the seed and i, not on `count`. `guidance` above 1 makes images more typical of their class
        (see `GuidedSource`), and `guidance=0` draws from the priors of no class. A model that was trained without
        `label_dropout` takes 1 alone (ValueError).
        With `prior="reweighted"` the top groups are drawn from the `ReweightedPrior` that nvae-prior has learned.
        Example: `images = model.generate(16, temperature=0.7, seed=1)`
        """
        count = whole_number("count", count, 1)
        labels = self._labels(labels, count)
        check_guidance(guidance, labels is not None, self.config.num_classes, self.label_dropout)
        temperatures = tuple(temperatures_of_groups(temperature, self.plan))
        how = dict(temperatures=temperatures, guidance=guidance, prior=check_prior(prior, self), mean=mean)
        return self._in_batches(passes.generated, batch_size, image_seeds(seed, count), labels, **how)

    @WITHOUT_AUTOGRAPH
    def score(
        self, images, importance_samples: int = 1, seed: int = 0, labels=None, per_group=False, batch_size=None
    ) -> tf.Tensor | objectives.Elbo:
        """Importance-weighted bound on the negative log-likelihood of each image `[batch]`, in nats.

        With `per_group` it is the bound of one draw with analytic KLs (the NELBO), in its parts: an `objective.Elbo`.
        Example: `nats = model.score(images, importance_samples=100, batch_size=50)`
        """
        rows, count = self._rows(images, seed, labels, scored=True), importance_samples
        if not per_group:
            return self._in_batches(passes.importance_weighted, batch_size, *rows, importance_samples=count)
        check(count == 1, f"per_group with importance_samples = {count}: the KL of each group comes from one sample")
        return self._in_batches(passes.elbo, batch_size, *rows)

    # These two need the extra `compress`.

    def compress(
        self, images, labels=None, chunk: int = 500, tolerance: float = 2.0**-17, verify: bool = True
    ) -> bytes:
        """Images `[count, height, width, channels]` in [0, 1], on the model's levels, as a file of nvae-compress.

        `chunk` images are decoded together. Another machine decodes them if its outputs x differ by at most
        `tolerance (1 + |x|)`. `verify` decodes each chunk. A conditional model needs the `labels`. TensorFloat-32 of
        GPUs is turned off for the whole process. ValueError for values between the levels, and for models with flows,
        or whose likelihood is a density.
        Example: `images = model.decompress(model.compress(images))`
        """
        from nvae_tf.models import lossless

        images, coded_model = check_images(images, self.config, scored=True).numpy(), lossless.with_weights(self)
        highest = 2**self.config.num_bits - 1
        levels, labels = np.rint(images * highest).astype(np.uint8), self._labels(labels, len(images))
        if (np.abs(images - levels / highest) > 1e-3).any():  # half precision has 1 + 1/1024 next to 1
            raise ValueError(f"images have values between the {highest + 1} levels of the model: they would be lost")
        labels = None if labels is None else labels.numpy()
        return lossless.compress(coded_model, levels, labels, chunk=chunk, tolerance=tolerance, verify=verify)

    def decompress(self, data: bytes, chunk: int | None = None) -> np.ndarray:
        """The images of `compress`, exactly, all or one chunk: float32 `[count, height, width, channels]`.

        ValueError where the data are damaged or of other weights, or where this machine's numbers differ too much.
        Example: `some = model.decompress(data, chunk=3)`
        """
        from nvae_tf.models import lossless

        levels = np.concatenate(list(lossless.decompress(lossless.with_weights(self), data, chunk)))
        return levels.astype(np.float32) / np.float32(2**self.config.num_bits - 1)

    @WITHOUT_AUTOGRAPH
    def outlier_score(self, images: tf.Tensor, labels=None, batch_size: int | None = None) -> OutlierScores:
        """How unlike the training images these are, by one pass at the posterior's means, without a random draw.

        Without labels a conditional model takes for each image the class that fits best, which is a pass a class.
        ValueError where the calibration file of the model's run is damaged or of other weights.
        Example: `p_values = model.outlier_score(images).kl_p_value`
        """
        calibration = self.outlier_calibration
        check(not isinstance(calibration, str), calibration)
        images, _, labels = self._rows(images, 0, labels, scored=True)
        return outlier_scores(self._in_batches(outlier_parts, batch_size, images, labels), calibration)

    @WITHOUT_AUTOGRAPH
    def classify(self, images: tf.Tensor, seed: int = 0, batch_size: int | None = None, samples: int = 1) -> tf.Tensor:
        """The probability of each class given an image, `[batch, classes]`: Bayes' rule over the bounds.

        All classes are as probable a priori, and `log p(x | class)` is replaced by its lower bound, the negative of
        what `score` with `per_group` gives: the mean over `samples` draws of the latents, the same draws for all
        classes. One draw moves the bound by more than the classes differ; more draws classify more images rightly.
        Example: `likeliest = tf.argmax(model.classify(images, samples=8, batch_size=100), axis=1)`
        """
        check(self.config.num_classes > 0, "this model has no classes (model.num_classes = 0)")
        samples = whole_number("samples", samples, 1)
        images, seeds, _ = self._rows(images, seed, None, scored=True)
        return self._in_batches(passes.class_probabilities, batch_size, images, seeds, samples=samples)

    @WITHOUT_AUTOGRAPH
    def denoise(self, images, samples: int = 0, seed: int = 0, labels=None, batch_size=None) -> denoising.Denoised:
        """The signal of noisy images `[batch, height, width, channels]` by a model that was trained with `data.noise`.

        It is the signal at the posterior's means, in one pass; with `samples` the mean of this number of draws, and
        their standard deviation; `samples=1` is a single draw. Images may be larger than the model's, except in graphs:
        tiles that overlap are denoised, 64 at a time unless there is a `batch_size`. ValueError for other models.
        Example: `signal, deviation = model.denoise(noisy, samples=64)`
        """
        denoising.check_is_denoising(self.config, "denoise")
        samples, images = whole_number("samples", samples), as_tensor(images, "images")

        def parts(images: Any, labels: Any, first: int = 0) -> list[tf.Tensor]:
            rows = self._rows(images, seed, labels, first=first)
            # Never eagerly: its loop is fast in a graph alone.
            at_once = min(rows[0].shape[0], 64) if batch_size is None and tf.executing_eagerly() else batch_size
            return self._in_batches(denoising.denoised, at_once, *rows, samples=samples)

        own, size = (self.config.image_height, self.config.image_width), tuple(images.shape[1:3])
        can_be_cut = tf.executing_eagerly() and images.shape.rank == 4  # in graphs the size may be unknown
        if not (can_be_cut and size != own and all(map(operator.ge, size, own))):
            return denoising.Denoised(*parts(images, labels))
        # Whatever is wrong is said before hours of work.
        images = check_images(images, dataclasses.replace(self.config, image_height=size[0], image_width=size[1]))
        labels = self._labels(labels, len(images))

        def parts_of_tiles(tiles: np.ndarray, rows: np.ndarray, first: int) -> list[tf.Tensor]:
            return parts(tiles, labels if labels is None else tf.gather(labels, rows), first)

        return denoising.Denoised(*map(tf.constant, denoising.in_tiles(parts_of_tiles, images, own, batch_size or 64)))

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
        sigma is at least 0.1, or a tensor of a graph) come `steps` of gradient descent; `steps=0` is quick and less
        exact. It begins at the posterior's means, or with a seed at draws, which differ where the measurement leaves
        much open. ValueError for models of noisy images.
        Example: `images = model.restore(damaged, restoration.Mask(missing), sigma=0.0)`
        """
        check(not self.config.is_denoising, "restore: this model, of data.noise, is not for other damage; use denoise")
        measurement, sigma = restoration.checked_measurement(measurement, operator, sigma, self.config)
        if pnp_steps is None:
            is_noisy = isinstance(sigma, tf.Tensor) or sigma >= restoration.PNP_MOST_NOISE
            pnp_steps = 0 if is_noisy else restoration.PNP_STEPS
        steps, pnp_steps = whole_number("steps", steps), whole_number("pnp_steps", pnp_steps)
        count = batch_size_of(measurement)
        how = dict(operator=operator, sigma=sigma, steps=steps, pnp_steps=pnp_steps, from_draws=seed is not None)
        # Never eagerly: its loops are fast in a graph alone.
        batch_size = count if batch_size is None and tf.executing_eagerly() else batch_size
        rows = measurement, image_seeds(0 if seed is None else seed, count), self._labels(labels, count)
        # The arrays of a user's operator may change between two calls.
        keep_graph = type(operator) in (restoration.Mask, restoration.Separable)
        return self._in_batches(restoration.restored, batch_size, *rows, keep_graph=keep_graph, **how)

    def _labels(self, labels: Any, count: int | tf.Tensor) -> tf.Tensor | None:
        return check_labels(labels, count, self.config.num_classes)

    def _rows(self, images: Any, seed: int, labels: Any, scored: bool = False, first: int = 0) -> tuple:
        """The checked images, a seed for each (the first has the number `first`), and labels: a row for each image."""
        images = check_images(images, self.config, scored)
        count = batch_size_of(images)
        return images, image_seeds(seed, count, first), self._labels(labels, count)

    def _in_batches(
        self, function: Callable, batch_size: int | None, *rows, keep_graph: bool = True, **settings
    ) -> Any:
        """`function(self, *rows, **settings)`, for at most `batch_size` rows at a time; rows may be None.

        The model keeps the latest graphs, by function and settings; `keep_graph=False` is for settings that may change.
        """
        if batch_size is None:
            return function(self, *rows, **settings)
        count = next(row.shape[0] for row in rows if row is not None)
        check(count is not None, "batch_size is for images of a known number, not in a graph that takes any")
        batch_size = whole_number("batch_size", batch_size, 1)
        specs = [None if row is None else tf.TensorSpec([None, *row.shape[1:]], row.dtype) for row in rows]
        try:
            graph_of = self._cached_graph_of if keep_graph and tf.executing_eagerly() else _graph_of
            graph = graph_of(self, function, **settings)
        except TypeError:  # a setting that can't be a key of the cache, such as a tensor; nothing was traced
            graph = _graph_of(self, function, **settings)
        traced, parts = graph.get_concrete_function(*specs), []
        with image_bar(count) as bar:
            for first in range(0, count, batch_size):
                some = [None if row is None else row[first : first + batch_size] for row in rows]
                parts.append(traced(*some))
                bar.update(len(some[0]))
        return tf.nest.map_structure(lambda *tensors: tf.concat(tensors, axis=0), *parts)

    def summary(self, *_: object, print_fn: Callable[[str], object] | None = None, **__: object) -> None:
        """Prints the hierarchy: of each scale its groups, the shape of their latents, channels and weights.

        Other arguments of `keras.Model.summary` have no effect.
        """
        config, plan, encoder, decoder = self.config, self.plan, self.bottom_up, self.top_down
        size = f"{config.image_height}x{config.image_width}x{config.image_channels}"
        classes = f", {config.num_classes} classes" if config.num_classes else ""
        head = f"NVAE of images {size} of {config.num_bits} bits{classes}, likelihood {config.likelihood}"
        lines = [f"{head}: {plan.num_groups} latent groups, {_count(self)} weights (encoder / decoder):"]
        # From the top, as the decoder's; a model of one group has no scales in the encoder.
        encoders = [[scale] for scale in reversed(encoder.scales)] or [[]]
        encoders[0].append(encoder.top)
        for scale, own_encoder, own_decoder in zip(plan.scales, encoders, decoder.scales, strict=True):
            groups = f"scale {scale.height}x{scale.width}: groups {scale.groups[0]}-{scale.groups[-1]}"
            channels = f"channels {scale.encoder_channels} / {scale.decoder_channels}"
            weights = f"weights {_count(*own_encoder)} / {_count(own_decoder)}"
            lines.append(f"{groups}, {config.num_latent_per_group} latent channels, {channels}, {weights}")
        ends = _count(encoder.stem, *encoder.preprocess), _count(*decoder.postprocess, decoder.image)
        channels = f"channels {config.num_channels_encoder} / {config.num_channels_decoder}"
        for line in [*lines, f"image {size}: {channels}, weights {ends[0]} / {ends[1]}"]:
            (print_fn or print)(line)

    def save(self, filepath, *args, **kwargs) -> None:
        """As `keras.Model.save`; ValueError for an HDF5 file, which would lack the optimizer's state."""
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(f"{filepath}: HDF5 files lack the optimizer's state; give a name that ends in .keras")
        super().save(filepath, *args, **kwargs)

    def export(self, filepath, *args, **kwargs) -> None:
        """Not available: a SavedModel has several signatures. The ValueError names the command that writes it."""
        raise ValueError(
            f"{filepath}: not written; `nvae-export --workdir=RUN --output=DIR` exports a run folder of nvae-train, "
            "and nvae_tf.serving.saved_model.export_saved_model(model, DIR) a model"
        )

    def get_config(self) -> dict:
        settings = {name: configuration.config_to_dict(getattr(self, name)) for name in ("config", "objective")}
        names = "seed", "recompute", "accumulate_steps", "label_dropout", "scan", "name"
        return settings | {name: getattr(self, name) for name in names} | {"dtype": self.dtype_policy.name}

    @classmethod
    def from_config(cls, config: dict) -> "NVAE":
        model = configuration.config_from_dict(ModelConfig, config["config"])
        objective = configuration.config_from_dict(ObjectiveConfig, config["objective"])
        return cls(**config | {"config": model, "objective": objective})


def _graph_of(model: NVAE, function: Callable, **settings) -> tf.types.experimental.PolymorphicFunction:
    return tf.function(lambda *rows: function(model, *rows, **settings), autograph=False)


def _count(*layers: keras.layers.Layer) -> str:
    return f"{sum(math.prod(weight.shape) for layer in layers for weight in layer.trainable_weights):,}"
