"""Latents of images and images of latents, many at a time: encoded, drawn from the prior, or given for the top groups.

Every image that a model makes comes through here, so the same latents give the same bits.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.config import check
from nvae_tf.models import NVAE
from nvae_tf.models.images import check_images
from nvae_tf.models.latents import (
    PriorSource,
    Temperature,
    check_latents,
    image_seeds,
    noise_per_image,
    temperatures_of_groups,
)
from nvae_tf.replicas import divided, joined

# Always the same, so that the arithmetic of image i, and with it its last bit, does not depend on how many
# there are.
BATCH_SIZE = 16
Progress = Callable[[int], None]


def generate_images(
    model: NVAE, count: int, temperature: Temperature = 1.0, seed: int = 0, progress: Progress | None = None
) -> np.ndarray:
    """Mean images `[count, height, width, channels]` in [0, 1] of latents from the prior.

    Image i depends on the seed and i alone. The temperature multiplies the priors' sigma: a number, or a list with one
    a scale or one a group, see `temperatures_of_groups`, which has the errors too.
    """
    return generator_of(model).generate(count, temperature, seed, progress)


def encode_images(
    model: NVAE, images: np.ndarray, seed: int = 0, mean: bool = False, progress: Progress | None = None
) -> list[np.ndarray]:
    """Latents of images `[count, height, width, channels]` in [0, 1] from the posterior, or with `mean` its means.

    Those of image i depend on the image, the seed and i alone. Returns float32 `[count, height, width, channels]` for
    each group, top group first. `progress` is called after each batch with the number of images done. ValueError where
    the images have another size, or are not all in [0, 1].
    """
    images = check_images(images, model.config).numpy()
    # The scale is an argument, not a constant: means then come from the arithmetic of draws.
    noise_scale, generator = tf.constant(0.0 if mean else 1.0), generator_of(model)
    rows = [images, image_seeds(seed, len(images)).numpy()]
    return _in_batches(lambda *batch: generator.encode_batch(*batch, noise_scale), rows, progress)


def decode_images(
    model: NVAE,
    latents: Sequence[np.ndarray],
    temperature: Temperature | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> np.ndarray:
    """Mean images `[count, height, width, channels]` of latents as `encode_images` gives them.

    With a temperature those of the top groups are enough, at least of one; the others are drawn, see `generate_images`.
    """
    latents = check_latents(latents, model.plan, may_lack_groups=temperature is not None)
    temperature = 1.0 if temperature is None else temperature
    return generator_of(model).generate(len(latents[0]), temperature, seed, progress, latents)


class ImageGenerator:
    """What `generate_images` does, by graphs that are kept, one for every number of groups whose latents are given.

    Each of the strategy's replicas, all in this process, takes batches of its own.
    """

    def __init__(self, model: NVAE, strategy: tf.distribute.Strategy | None = None):
        self._model = model
        self._strategy = strategy or tf.distribute.get_strategy()
        self._mean_images = tf.function(self._images_of, autograph=False)
        self.encode_batch = tf.function(self._latents_of, autograph=False)

    def generate(
        self,
        count: int,
        temperature: Temperature = 1.0,
        seed: int = 0,
        progress: Progress | None = None,
        latents: Sequence[np.ndarray] = (),
    ) -> np.ndarray:
        """See `generate_images`; latents of the top groups may be given."""
        check(count >= 1, f"count = {count}: must be at least 1")
        return self.from_seeds(image_seeds(seed, count), temperature, latents, progress)

    def from_seeds(
        self,
        seeds: tf.Tensor,
        temperature: Temperature = 1.0,
        latents: Sequence[np.ndarray] = (),
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Mean images `[count, height, width, channels]` for one seed an image `[count, 2]`, see `generate_images`."""
        if len(latents):
            checked = check_latents(latents, self._model.plan, may_lack_groups=True)
            latents = [latent.numpy() for latent in checked]
            given = len(latents[0])
            check(given == len(seeds), f"latents are of {given} images, but {len(seeds)} are asked for")
        temperatures = tf.constant(temperatures_of_groups(temperature, self._model.plan), tf.float32)

        def images_of(*rows: tf.Tensor) -> list[tf.Tensor]:
            return [joined(self._strategy, self._mean_images(temperatures, divided(self._strategy, rows)))]

        batches = self._strategy.num_replicas_in_sync
        (images,) = _in_batches(images_of, [np.asarray(seeds), *latents], progress, batches)
        return images

    def _images_of(self, temperatures: tf.Tensor, rows: Any) -> Any:
        """The images that every replica makes of its rows: seeds and given latents."""

        def of_replica(seeds: tf.Tensor, *latents: tf.Tensor) -> tf.Tensor:
            return self._model.generate_from_seeds(seeds, tf.unstack(temperatures), latents).mean()

        return self._strategy.run(of_replica, rows)

    def _latents_of(self, images: tf.Tensor, seeds: tf.Tensor, noise_scale: tf.Tensor) -> list[tf.Tensor]:
        return [latent.z for latent in self._model.encode_from_seeds(images, seeds, noise_scale)]


_GENERATORS: weakref.WeakKeyDictionary[NVAE, ImageGenerator] = weakref.WeakKeyDictionary()


def generator_of(model: NVAE) -> ImageGenerator:
    """The generator that all functions share, so that a model's graphs are traced once."""
    if model not in _GENERATORS:
        # A proxy, so that the graphs do not keep the model alive.
        _GENERATORS[model] = ImageGenerator(weakref.proxy(model))
    return _GENERATORS[model]


def nearest_images(
    samples: np.ndarray, batches: Iterable[np.ndarray], count: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The `count` images most like each sample, the nearest first; of equals the earlier wins. One look at each batch.

    Samples and batches are `[images, height, width, channels]` in [0, 1]. Returns, each `[samples, count, ...]`, the
    places among all images, the mean squared differences of a pixel value, and the images.
    """
    flat = samples.reshape(len(samples), -1).astype(np.float64)
    best, seen = None, 0
    for batch in batches:
        images = np.asarray(batch)
        rows = images.reshape(len(images), -1).astype(np.float64)
        # |a - b|^2 = |a|^2 - 2 ab + |b|^2, in float64 because it cancels.
        squares = (flat**2).sum(axis=1)[:, np.newaxis] + (rows**2).sum(axis=1)
        distances = np.maximum(squares - 2.0 * flat @ rows.T, 0.0) / flat.shape[1]
        # In order of distance and, stable, of number.
        chosen = np.argsort(distances, axis=1, kind="stable")[:, :count]
        found = seen + chosen, np.take_along_axis(distances, chosen, axis=1), images[chosen]
        best = found if best is None else [np.concatenate(pair, axis=1) for pair in zip(best, found, strict=True)]
        order = np.argsort(best[1], axis=1, kind="stable")[:, :count]
        best = [part[np.arange(len(samples))[:, np.newaxis], order] for part in best]
        seen += len(images)
        progress(seen)
    return tuple(best)


def _in_batches(
    compute: Callable[..., Sequence[tf.Tensor]],
    arrays: Sequence[np.ndarray],
    progress: Progress | None = None,
    batches_at_once: int = 1,
) -> list[np.ndarray]:
    """What `compute` gives for all rows of arrays `[count, ...]`, `batches_at_once * BATCH_SIZE` rows at a time; the
    last batch is padded with its last row.
    """
    count, size, parts = len(arrays[0]), batches_at_once * BATCH_SIZE, []
    for first in range(0, count, size):
        rows = [array[first : first + size] for array in arrays]
        missing = size - len(rows[0])
        if missing:
            rows = [np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) for part in rows]
        parts.append([np.asarray(tensor) for tensor in compute(*map(tf.convert_to_tensor, rows))])
        if progress:
            progress(min(first + size, count))
    return [np.concatenate(of_batches)[:count] for of_batches in zip(*parts, strict=True)]


def samples_sharing_groups(
    model: NVAE, shared_groups: int, count: int, temperature: Temperature = 1.0, seed: int = 0
) -> np.ndarray:
    """Mean images `[count, height, width, channels]` of samples with the same latents in the upper groups.

    The first is that of `model.generate`; the others have its latents in the upper `shared_groups` groups, 0 to all,
    and their own below (Vahdat & Kautz 2020, figure 5 does so by scale).
    """
    groups = model.plan.num_groups
    check(0 <= shared_groups <= groups, f"shared_groups = {shared_groups}: must be from 0 to {groups}")
    noise = noise_per_image(model.plan.latent_shapes(), image_seeds(seed, count))
    mixed = [tf.repeat(eps[:1], count, axis=0) if group < shared_groups else eps for group, eps in enumerate(noise)]
    temperatures = temperatures_of_groups(temperature, model.plan)
    sources = [PriorSource(*of_group) for of_group in zip(mixed, temperatures, strict=True)]
    return model.top_down_pass(sources, count).likelihood.mean().numpy()


def numbers_of_shared_groups(groups: int) -> list[int]:
    """None, 1, 2, 4 ... and all but the last."""
    powers = [2**power for power in range(groups.bit_length()) if 2**power < groups - 1]
    return sorted({0, *powers, groups - 1})


def rows_sharing_groups(model: NVAE, count: int, seed: int) -> np.ndarray:
    """`count` samples for each of `numbers_of_shared_groups`: `[rows * count, height, width, channels]`."""
    numbers = numbers_of_shared_groups(model.plan.num_groups)
    return np.concatenate([samples_sharing_groups(model, number, count, seed=seed) for number in numbers])
