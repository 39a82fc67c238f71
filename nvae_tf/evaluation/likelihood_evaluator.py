"""Measures bounds on the likelihood of images, batch by batch."""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from nvae_tf.evaluation.likelihood import Likelihood
from nvae_tf.evaluation.samples_at_once import samples_at_once
from nvae_tf.models import NVAE
from nvae_tf.models.noise import image_seeds, noise_per_image
from nvae_tf.objective import ImportanceWeighting, kl_per_channel
from nvae_tf.replicas import divided, joined
from nvae_tf.setting_checks import check

# Turns of the samples' loop between two looks at the progress.
_TURNS = 25


class LikelihoodEvaluator:
    """Evaluates a model, with running batch-norm statistics, on batches of one size; its graphs are traced once.

    Example:
      >>> evaluator = LikelihoodEvaluator(model, batch_size=100, importance_samples=1000)
      >>> evaluator.evaluate(evaluation_batches(source, spec, 100, seed=0), seed=0).importance_weighted_nats

    Args:
      model: its weights are read at each evaluation, so one evaluator serves a whole training run.
      batch_size: the largest batch; smaller ones are filled up.
      importance_samples: K of the importance-weighted bound; 0 for none. It is also given for 1, 10, 100 ... samples
        on the way.
      strategy: where the model's replicas are, all in this process; each takes an equal part of every batch.

    Raises:
      ValueError: a number is out of range.
    """

    def __init__(
        self,
        model: NVAE,
        batch_size: int,
        importance_samples: int = 0,
        strategy: tf.distribute.Strategy | None = None,
    ):
        self._strategy = strategy or tf.distribute.get_strategy()
        replicas = self._strategy.num_replicas_in_sync
        check(importance_samples >= 0, f"importance_samples = {importance_samples}: must be at least 0")
        check(
            batch_size >= 1 and batch_size % replicas == 0,
            f"batch_size = {batch_size}: must be at least 1, and a multiple of the {replicas} replicas",
        )
        self._model = model
        self._batch_size = batch_size
        self._numbers = numbers_of_samples(importance_samples)
        self._at_once = samples_at_once(model, batch_size // replicas, importance_samples, replicas)
        self._elbo = self._on_replicas(self._elbo_of)
        self._features = self._on_replicas(model.features)
        at_once = {"numbers": self._numbers, "samples_at_once": self._at_once}
        self._add_samples = self._on_replicas(functools.partial(model.add_importance_samples, **at_once))

    def evaluate(
        self, batches: Iterable[tf.Tensor], seed: int = 0, progress: Callable[[int], None] | None = None
    ) -> Likelihood:
        """Goes once through all batches.

        The draws of an image depend on the seed and on its number, not on the batches that it comes in.

        Args:
          batches: float `[up to batch_size, height, width, channels]` in [0, 1].
          seed: of the posterior's samples.
          progress: is called now and then with the number of images done.

        Raises:
          ValueError: there is no image, or a batch is too large or of another size than the model's images.
        """
        parts, count = [], 0
        for images in batches:
            parts.append(self.evaluate_batch(images, seed, count, progress))
            count += len(images)
        return Likelihood.joined(parts)

    def evaluate_batch(
        self, images: tf.Tensor, seed: int, first: int, progress: Callable[[int], None] | None = None
    ) -> Likelihood:
        """As `evaluate`, for the images that are number `first` and the following of the set."""
        size = images.shape[0]
        tell = progress or (lambda done: None)
        images, seeds = divided(self._strategy, [self._filled(images), image_seeds(seed, self._batch_size, first)])
        reconstruction, kl = joined(self._strategy, self._elbo(images, seeds))
        bounds, effective = tf.zeros([self._batch_size, 0]), tf.zeros([self._batch_size])
        if self._numbers:
            last = self._numbers[-1]
            weighting = self._importance_weights(images, seeds, lambda done: tell(first + size * done // last))
            bounds, effective = weighting.bounds, weighting.effective_samples
        else:
            tell(first + size)
        rows = (value.numpy()[:size] for value in (reconstruction, kl, bounds, effective))
        reconstruction, kl, bounds, effective = rows
        return Likelihood(reconstruction, kl, self._numbers, bounds, effective)

    def _elbo_of(self, images: tf.Tensor, seeds: tf.Tensor) -> list[tf.Tensor]:
        """Reconstruction `[batch]` and KL `[batch, groups, channels]`."""
        decoded = self._model.infer(images, noise_per_image(self._model.plan.latent_shapes(), seeds))
        reconstruction = -decoded.likelihood.log_prob(images)
        return [reconstruction, tf.stack([kl_per_channel(latent) for latent in decoded.latents], axis=1)]

    def _importance_weights(self, images: Any, seeds: Any, progress: Callable[[int], None]) -> ImportanceWeighting:
        """All samples of a batch; tells how many are done."""
        features = self._features(images)
        weighting = divided(self._strategy, ImportanceWeighting.begun(self._batch_size, len(self._numbers)))
        count, step = self._numbers[-1], _TURNS * self._at_once
        for first in range(0, count, step):
            until = min(first + step, count)
            weighting = self._add_samples(weighting, images, features, seeds, tf.constant(first), tf.constant(until))
            progress(until)
        return joined(self._strategy, weighting)

    def _on_replicas(self, function: Callable) -> Callable:
        return tf.function(lambda *arguments: self._strategy.run(function, arguments), autograph=False)

    def _filled(self, images: tf.Tensor) -> tf.Tensor:
        missing = self._batch_size - images.shape[0]
        if missing < 0:
            raise ValueError(f"a batch of {images.shape[0]} images is larger than batch_size = {self._batch_size}")
        return tf.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)])


def numbers_of_samples(importance_samples: int) -> tuple[int, ...]:
    """1, 10, 100 ... and last the number itself; none for 0."""
    powers = itertools.takewhile(lambda power: power < importance_samples, (10**exponent for exponent in range(20)))
    return (*powers, importance_samples) if importance_samples else ()
