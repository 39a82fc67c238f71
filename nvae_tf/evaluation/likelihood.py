"""Bounds on the likelihood of a set of images (Vahdat & Kautz 2020, section 4.1)."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.models import NVAE
from nvae_tf.models.noise import image_seeds, noise_per_image
from nvae_tf.objective import kl_per_channel


class Likelihood(NamedTuple):
    """Means over a set of images, in nats per image.

    Attributes:
      reconstruction_nats: -log p(x | z) of one sample from the posterior.
      kl_per_channel_nats: KL of posterior and prior, `[groups, latent channels]`, top group first, summed over
        height and width; without flows analytic, with flows of the same sample.
      importance_weighted_nats: the importance-weighted bound, or None where it was not asked for.
      num_images: how many images the means are over.
    """

    reconstruction_nats: float
    kl_per_channel_nats: np.ndarray
    importance_weighted_nats: float | None
    num_images: int

    @property
    def kl_per_group_nats(self) -> np.ndarray:
        """KL summed over the channels, `[groups]`, top group first."""
        return self.kl_per_channel_nats.sum(axis=1)

    @property
    def kl_nats(self) -> float:
        """KL summed over the groups."""
        return float(self.kl_per_channel_nats.sum())

    @property
    def nelbo_nats(self) -> float:
        """The negative evidence lower bound: reconstruction and KL."""
        return self.reconstruction_nats + self.kl_nats


class LikelihoodEvaluator:
    """Evaluates a model, with running batch-norm statistics, on batches of one size; the graph is traced
    once.

    Example:
      >>> evaluator = LikelihoodEvaluator(model, batch_size=100, importance_samples=1000)
      >>> evaluator.evaluate(evaluation_batches(source, spec, 100, seed=0), seed=0).importance_weighted_nats

    Args:
      model: its weights are read at each evaluation, so one evaluator serves a whole training run.
      batch_size: the largest batch; smaller ones are filled up.
      importance_samples: K of the importance-weighted bound; 0 for none.

    Raises:
      ValueError: a number is out of range.
    """

    def __init__(self, model: NVAE, batch_size: int, importance_samples: int = 0):
        if batch_size < 1 or importance_samples < 0:
            raise ValueError(
                f"batch_size = {batch_size}, importance_samples = {importance_samples}: "
                "the first must be at least 1, the second at least 0"
            )
        self._model = model
        self._batch_size = batch_size
        self._importance_samples = importance_samples
        config = model.config
        shape = (batch_size, config.image_height, config.image_width, config.image_channels)
        self._bounds = tf.function(
            self._bounds_of_batch,
            input_signature=[tf.TensorSpec(shape), tf.TensorSpec((batch_size, 2), tf.int32)],
            autograph=False,
        )

    def evaluate(
        self, batches: Iterable[tf.Tensor], seed: int = 0, progress: Callable[[int], None] | None = None
    ) -> Likelihood:
        """Goes once through all batches.

        The draws of an image depend on the seed and on its number, not on the batches that it comes in.

        Args:
          batches: float `[up to batch_size, height, width, channels]` in [0, 1].
          seed: of the posterior's samples.
          progress: is called after each batch with the number of images done.

        Raises:
          ValueError: there is no image, or a batch is too large or of another size than the model's images.
        """
        count, sums = 0, None
        for images in batches:
            size = images.shape[0]
            values = self._bounds(self._filled(images), image_seeds(seed, self._batch_size, first=count))
            of_batch = [np.asarray(value, np.float64)[:size].sum(axis=0) for value in values]
            sums = of_batch if sums is None else [done + new for done, new in zip(sums, of_batch, strict=True)]
            count += size
            if progress:
                progress(count)
        if sums is None:
            raise ValueError("there are no images to evaluate")
        reconstruction, kl, importance_weighted = (value / count for value in sums)
        weighted = float(importance_weighted) if self._importance_samples else None
        return Likelihood(float(reconstruction), kl, weighted, count)

    def _bounds_of_batch(self, images: tf.Tensor, seeds: tf.Tensor) -> list[tf.Tensor]:
        """Reconstruction `[batch]`, KL `[batch, groups, channels]`, importance-weighted bound (or zeros) `[batch]`."""
        decoded = self._model.infer(images, noise_per_image(self._model.plan.latent_shapes(), seeds))
        reconstruction = decoded.elbo(images).reconstruction
        kl = tf.stack([kl_per_channel(latent) for latent in decoded.latents], axis=1)
        weighted = tf.zeros_like(reconstruction)
        if self._importance_samples:
            weighted = self._model.importance_weighted(images, self._importance_samples, seeds)
        return [reconstruction, kl, weighted]

    def _filled(self, images: tf.Tensor) -> tf.Tensor:
        missing = self._batch_size - images.shape[0]
        if missing < 0:
            raise ValueError(f"a batch of {images.shape[0]} images is larger than batch_size = {self._batch_size}")
        return tf.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)])
