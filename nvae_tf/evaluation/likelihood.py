"""Bounds on the likelihood of a set of images (Vahdat & Kautz 2020, section 4.1), measured batch by batch."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import psutil
import tensorflow as tf

from nvae_tf.config import MOST_IMPORTANCE_SAMPLES, check, whole_number
from nvae_tf.latent_plan import inference_bytes_per_image
from nvae_tf.layers import ForwardPass
from nvae_tf.models import NVAE
from nvae_tf.models.latents import image_seeds, noise_per_image
from nvae_tf.models.passes import add_importance_samples, inference_pass
from nvae_tf.objective import ImportanceWeighting, kl_per_channel
from nvae_tf.replicas import divided, gpus, joined

_TURNS = 25  # of the samples' loop between two reports of progress
_ROWS = 256  # more in one pass do not make a row cheaper
# TensorFlow does not say how much memory is free; beside the weights this fits into 8 GiB.
_BYTES_ON_GPU = 2 * 2**30

Batch = tf.Tensor | tuple[tf.Tensor, tf.Tensor]


class Likelihood(NamedTuple):
    """Bounds on the likelihood of images and their parts, image by image, in nats; properties are means over images."""

    reconstruction: np.ndarray  # -log p(x | z) of one sample from the posterior, `[images]`
    # The KL of posterior and prior, `[images, groups, latent channels]`, top group first; with flows of this sample.
    kl: np.ndarray
    numbers_of_samples: tuple[int, ...]  # the K of every importance-weighted bound, ascending; empty for none
    importance_weighted: np.ndarray  # the importance-weighted bounds, `[images, number of Ks]`
    effective_samples: np.ndarray  # of the largest K, `[images]`; zeros where there is none

    @classmethod
    def joined(cls, batches: Iterable[Mapping[str, np.ndarray]], numbers_of_samples: tuple = ()) -> "Likelihood":
        """Joins the arrays of batches of images, by name, in order; there is one batch at least."""
        batches = list(batches)
        columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        return cls(numbers_of_samples=numbers_of_samples, **columns)

    @property
    def nelbo(self) -> np.ndarray:
        """The negative evidence lower bound of every image."""
        return self.reconstruction + self.kl.sum(axis=(1, 2))

    # Means over the images, in nats: single numbers, but the KL of each group `[groups]` and channel.
    reconstruction_nats = property(lambda self: float(self.reconstruction.mean(dtype=np.float64)))
    kl_per_channel_nats = property(lambda self: self.kl.mean(axis=0, dtype=np.float64))
    kl_per_group_nats = property(lambda self: self.kl_per_channel_nats.sum(axis=1))
    kl_nats = property(lambda self: float(self.kl_per_channel_nats.sum()))
    nelbo_nats = property(lambda self: self.reconstruction_nats + self.kl_nats)


class LikelihoodEvaluator:
    """Evaluates a model on batches of up to `batch_size` images, which are padded; its graphs are traced once.

    `importance_samples` is the K of the importance-weighted bound, 0 for none; the bounds of 1, 10, 100 ... samples are
    measured on the way. Each replica of the strategy, all in this process, takes an equal part of every batch. With a
    mask `kept_channels` images are reconstructed from these latent channels alone, see `passes.inference_pass`.
    """

    def __init__(self, model: NVAE, batch_size: int, importance_samples: int = 0, strategy=None, kept_channels=None):
        self._strategy = strategy or tf.distribute.get_strategy()
        replicas = self._strategy.num_replicas_in_sync
        importance_samples = whole_number("importance_samples", importance_samples, 0, MOST_IMPORTANCE_SAMPLES)
        if batch_size < 1 or batch_size % replicas:
            raise ValueError(f"batch_size = {batch_size}: must be a multiple of the {replicas} replicas")
        self._model, self._batch_size, self._kept_channels = model, batch_size, kept_channels
        powers = (10**exponent for exponent in range(20) if 10**exponent < importance_samples)
        self.numbers_of_samples = (*powers, importance_samples) if importance_samples else ()
        self._at_once = samples_at_once(model, batch_size // replicas, importance_samples, replicas)
        self._elbo_parts = self._on_replicas(self._replica_elbo)
        self._features = self._on_replicas(model.bottom_up.features)
        how = {"numbers": self.numbers_of_samples, "samples_at_once": self._at_once}
        self._add_samples = self._on_replicas(functools.partial(add_importance_samples, model, **how))

    def evaluate(self, batches: Iterable[Batch], seed: int = 0, progress: Callable = lambda done: None) -> Likelihood:
        """Goes once through batches of images in [0, 1], or pairs with labels; `progress` gets the number done."""
        # The draws of an image depend on the seed and its number alone.
        parts, count = [], 0
        for batch in batches:
            parts.append(self.evaluate_batch(batch, count, lambda done, before=count: progress(before + done), seed))
            count += len(parts[-1]["reconstruction"])
        return Likelihood.joined(parts, self.numbers_of_samples)

    def evaluate_batch(self, batch: Batch, first: int, progress: Callable = lambda done: None, seed: int = 0) -> dict:
        """The arrays for `Likelihood.joined` of a batch, whose first image has the number `first`."""
        rows = [tf.convert_to_tensor(row) for row in (batch if isinstance(batch, tuple) else (batch,))]
        size = rows[0].shape[0]
        check(size <= self._batch_size, f"a batch of {size} images is larger than batch_size = {self._batch_size}")
        padded = [tf.pad(row, [(0, self._batch_size - size), *[(0, 0)] * (row.shape.rank - 1)]) for row in rows]
        images, *labels = divided(self._strategy, padded)
        labels = labels[0] if labels and self._model.config.num_classes else None
        seeds = divided(self._strategy, image_seeds(seed, self._batch_size, first))
        reconstruction, kl = joined(self._strategy, self._elbo_parts(images, seeds, labels))
        weighting = ImportanceWeighting.begun(self._batch_size, len(self.numbers_of_samples))
        if self.numbers_of_samples:
            features, count, step = self._features(images), self.numbers_of_samples[-1], _TURNS * self._at_once
            weighting = divided(self._strategy, weighting)
            for start in range(0, count, step):
                samples = tf.constant(start), tf.constant(min(start + step, count))
                weighting = self._add_samples(weighting, images, features, seeds, labels, *samples)
                progress(size * min(start + step, count) // count)
            weighting = joined(self._strategy, weighting)
        else:
            progress(size)
        measured = {"reconstruction": reconstruction, "kl": kl, "importance_weighted": weighting.bounds}
        measured["effective_samples"] = weighting.effective_samples
        return {name: value.numpy()[:size] for name, value in measured.items()}

    def _replica_elbo(self, images: tf.Tensor, seeds: tf.Tensor, labels: tf.Tensor | None) -> list[tf.Tensor]:
        """The reconstruction `[batch]` and the KL `[batch, groups, channels]` of one replica's images."""
        noise = noise_per_image(self._model.plan.latent_shapes(), seeds)
        # A loop can't draw latents of which some channels are kept. Folding would copy most kernels for one pass.
        forward = ForwardPass(labels=labels, scanned=self._kept_channels is None)
        decoded = inference_pass(self._model, images, noise, forward, self._kept_channels)
        return [-decoded.likelihood.log_prob(images), kl_per_channel(decoded.latents)]

    def _on_replicas(self, function: Callable) -> Callable:
        return tf.function(lambda *arguments: self._strategy.run(function, arguments), autograph=False)


def samples_at_once(model: NVAE, batch_size: int, importance_samples: int, replicas: int = 1) -> int:
    """The number of importance samples that go through the network together: fast, and in a quarter of the memory."""
    free = _BYTES_ON_GPU if gpus() else psutil.virtual_memory().available / replicas
    rows = min(_ROWS, 0.25 * free / inference_bytes_per_image(model.config))
    return max(1, min(importance_samples, int(rows) // batch_size))
