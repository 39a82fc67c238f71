"""Latents of images and images of latents, many at a time: encoded, drawn from the prior, or given for the top groups.

Every image that a model makes comes through here, so the same latents give the same bits. Images are float32 `[count,
height, width, channels]` in [0, 1], latents a list of `[count, height, width, latent channels]`, top group first.
"""

import dataclasses
import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.config import ExperimentConfig, check, check_choice, whole_number
from nvae_tf.data.picture_folder import pictures_for_model
from nvae_tf.data.pipeline import stored_spec
from nvae_tf.latent_plan import LatentPlan, values_of_groups
from nvae_tf.layers import FoldedPass
from nvae_tf.models import NVAE, restoration
from nvae_tf.models.images import check_images
from nvae_tf.models.latents import (
    PriorSource,
    Temperature,
    check_guidance,
    check_labels,
    check_latents,
    image_seeds,
    noise_per_image,
    temperatures_of_groups,
)
from nvae_tf.models.passes import encoded_latents, generated, top_down_pass
from nvae_tf.models.reweighted_prior import check_prior
from nvae_tf.replicas import divided, joined

BATCH_SIZE = 16  # always the same, so that the last bit of image i does not depend on how many there are
# Radians; below it an arc and a line are the same in float32, and opposite latents have no arc.
_SMALLEST_ANGLE = 1e-4
Progress = Callable[[int], None] | None
Array, Arrays = np.ndarray, Sequence[np.ndarray]


class ImageGenerator:
    """Generates and encodes images by graphs that are kept; each replica of the strategy takes batches of its own."""

    def __init__(self, model: NVAE, strategy: tf.distribute.Strategy | None = None):
        self._model = model
        self._strategy = strategy or tf.distribute.get_strategy()
        self._images = tf.function(self._replica_images, autograph=False)
        self.encode_batch = tf.function(self._encoded_batch, autograph=False)

    def generate(
        self,
        count: int,
        temperature: Temperature = 1.0,
        seed: int | tf.Tensor = 0,
        progress: Progress = None,
        latents: Arrays = (),
        labels: int | Sequence[int] | np.ndarray | None = None,
        guidance: float = 1.0,
        prior: str = "model",
        mean: bool = True,
    ) -> Array:
        """Mean images of latents from the prior, but for the top groups whose latents are given.

        Image i depends on the seed and i alone; there may be a seed for each image, `[count, 2]`. Without labels a
        conditional model draws its classes in turn. `progress` is called after each batch with the number of images
        done. Other arguments and errors as for `NVAE.generate`.
        """
        model, num_classes = self._model, self._model.config.num_classes
        count = whole_number("count", count, 1)
        seeds = np.asarray(seed if np.ndim(seed) else image_seeds(seed, count))
        if len(latents):
            latents = [z.numpy() for z in check_latents(latents, model.plan, may_lack_groups=True)]
            check(len(latents[0]) == count, f"latents are of {len(latents[0])} images, but {count} are asked for")
        elif labels is None and num_classes:
            # The classes follow the images' numbers, so that they do not depend on the batches.
            labels = seeds[:, 1] % num_classes
        labels = [] if labels is None else [check_labels(labels, count, num_classes).numpy()]
        check_guidance(guidance, bool(labels), num_classes, model.label_dropout)
        temperatures = tf.constant(temperatures_of_groups(temperature, model.plan), tf.float32)
        settings = bool(labels), float(guidance), check_prior(prior, model), mean

        def batch_images(*rows: tf.Tensor) -> list[tf.Tensor]:
            return [joined(self._strategy, self._images(temperatures, divided(self._strategy, rows), *settings))]

        return _in_batches(batch_images, [seeds, *labels, *latents], progress, self._strategy.num_replicas_in_sync)[0]

    def _replica_images(self, temperatures: tf.Tensor, rows: Any, has_labels: bool, guidance, prior, mean) -> Any:
        """The images that every replica makes of its rows: seeds, labels if there are some, and given latents."""

        def images(seeds: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
            labels, latents = rest[0] if has_labels else None, rest[has_labels:]
            # A loop can't take latents that are given.
            how = dict(temperatures=tf.unstack(temperatures), guidance=guidance, prior=prior, mean=mean)
            return generated(self._model, seeds, labels, *latents, **how, scanned=not latents)

        return self._strategy.run(images, rows)

    def _encoded_batch(self, noise_scale: tf.Tensor, images: tf.Tensor, seeds: tf.Tensor, labels=None) -> list:
        return [latent.z for latent in encoded_latents(self._model, images, seeds, labels, noise_scale)]


_GENERATORS: weakref.WeakKeyDictionary[NVAE, ImageGenerator] = weakref.WeakKeyDictionary()


def _shared_generator(model: NVAE) -> ImageGenerator:
    if model not in _GENERATORS:
        # A proxy: the graphs must not keep the model alive.
        _GENERATORS[model] = ImageGenerator(weakref.proxy(model))
    return _GENERATORS[model]


def _in_batches(compute: Callable, arrays: Arrays, progress: Progress = None, batches_at_once: int = 1) -> list[Array]:
    """Computes all rows of arrays `[count, ...]` in batches; the last batch is padded with its last row."""
    count, size, parts = len(arrays[0]), batches_at_once * BATCH_SIZE, []
    for first in range(0, count, size):
        # From the last row on all numbers are the last row's number.
        numbers = np.minimum(np.arange(first, first + size), count - 1)
        parts.append([np.asarray(tensor) for tensor in compute(*(tf.constant(array[numbers]) for array in arrays))])
        if progress:
            progress(min(first + size, count))
    return [np.concatenate(batches)[:count] for batches in zip(*parts, strict=True)]


def generate_images(model: NVAE, *arguments, **options) -> Array:
    """`ImageGenerator.generate` on one device, by graphs that are kept for each model."""
    return _shared_generator(model).generate(*arguments, **options)


def encode_images(model: NVAE, images: Array, seed=0, mean=False, progress=None, labels=None) -> list[Array]:
    """Draws from the posterior of images, or its means, after the flows; a function of image, seed and number alone."""
    # `progress` is called after each batch with the number of images done.
    images = check_images(images, model.config).numpy()
    # The scale is an argument, not a constant: means then come from the arithmetic of draws.
    noise_scale, generator = tf.constant(0.0 if mean else 1.0), _shared_generator(model)
    rows = [images, image_seeds(seed, len(images)).numpy()]
    if labels is not None:
        rows.append(check_labels(labels, len(images), model.config.num_classes).numpy())
    return _in_batches(functools.partial(generator.encode_batch, noise_scale), rows, progress)


def _encoded(model: NVAE, images: Array, seed: int, mean=False, progress: Progress = None, labels=None) -> tuple:
    """The latents of images, their labels `[count]` if there are some, and `progress`."""
    latents = encode_images(model, images, seed, mean, labels=labels)
    return latents, None if labels is None else np.broadcast_to(labels, len(images)), progress


def reconstruct_images(model: NVAE, images: Array, kept_groups=None, temperature=1.0, seed: int = 0, **how) -> Array:
    """Mean images of the images' latents in the top `kept_groups` groups (None: all), and of draws in the others."""
    # `how`: mean, progress and labels, as for `encode_images`; so in the functions below.
    kept_groups = checked_kept_groups(kept_groups, model.plan)
    latents, labels, progress = _encoded(model, images, seed, **how)
    return generate_images(model, len(images), temperature, seed, progress, latents[:kept_groups], labels)


def vary_images(model: NVAE, images: Array, kept_groups: int, count: int, temperature=1.0, seed=0, **how) -> Array:
    """Variants `[images, count, height, width, channels]` with the images' latents in the top `kept_groups` groups."""
    # Variant j of image i depends on the seed, i and j, not on `count`.
    kept_groups = checked_kept_groups(kept_groups, model.plan)
    latents, labels, progress = _encoded(model, images, seed, **how)
    # The first variants of all images, then all second variants: more variants leave the earlier ones in their places.
    fold_in = functools.partial(tf.random.experimental.stateless_fold_in, alg="philox")
    seeds = tf.stack([fold_in(one, number) for number in range(count) for one in image_seeds(seed, len(images))])
    kept = [np.tile(latent, (count, 1, 1, 1)) for latent in latents[:kept_groups]]
    labels = None if labels is None else np.tile(labels, count)
    variants = generate_images(model, len(seeds), temperature, seeds, progress, kept, labels)
    return variants.reshape(count, len(images), *variants.shape[1:]).swapaxes(0, 1)


def checked_kept_groups(kept_groups: int | None, plan: LatentPlan) -> int:
    """The number of groups that are kept, all for None; ValueError where the model has fewer."""
    return plan.num_groups if kept_groups is None else whole_number("kept_groups", kept_groups, 0, plan.num_groups)


def latents_between(start: Array, end: Array, fractions: Sequence[float], how: str) -> Array:
    """A group's latents on the way from one image to another, float32 `[fractions, height, width, latent channels]`.

    `how` is "linear", or "spherical": along the arc, which keeps the length of a latent (Shoemake 1985; White 2016).
    Fractions 0 and 1 are exact.
    """
    start, end, fractions = (np.asarray(array, np.float64) for array in (start, end, fractions))
    fractions = fractions.reshape(-1, 1, 1, 1)
    lengths = np.linalg.norm(start), np.linalg.norm(end)
    angle, weights = 0.0, (1.0 - fractions, fractions)
    if how == "spherical" and min(lengths) > 0.0:
        one, other = start / lengths[0], end / lengths[1]
        # Kahan's formula: the arc cosine would lose half of the digits of small angles.
        angle = 2.0 * np.arctan2(np.linalg.norm(one - other), np.linalg.norm(one + other))
    if _SMALLEST_ANGLE < angle < np.pi - _SMALLEST_ANGLE:
        # Both weights are exactly 0 or 1 at the ends.
        weights = [np.sin(weight * angle) / np.sin(angle) for weight in weights]
    return (weights[0] * start + weights[1] * end).astype(np.float32)


def interpolate_images(model: NVAE, images: Array, steps: int, how="spherical", seed: int = 0, **options) -> Array:
    """Mean images on a path through two images or more in turn, `[(count - 1) * steps + 1, height, width, channels]`.

    Where the path passes an image it is exactly its reconstruction. `how`, for all groups or a list with one for each
    scale or group, is as for `latents_between`, or "keep": the latents of the first image stay. An image on the
    way has the class of the nearer end. ValueError for a `how` that is unknown or fits no scales and groups.
    """
    check(len(images) >= 2, f"{len(images)} image: an interpolation needs at least two")
    ways = [how] * model.plan.num_groups if isinstance(how, str) else list(how)
    for way in ways:
        check_choice("how", way, ("spherical", "linear", "keep"))
    ways = values_of_groups(ways, model.plan.latent_shapes(), "ways to interpolate")
    latents, labels, progress = _encoded(model, images, seed, **options)
    passed = [np.repeat(z[:1], len(z), axis=0) if way == "keep" else z for z, way in zip(latents, ways, strict=True)]
    # The ends are a call of their own, in the places that they have in `reconstruct_images`.
    ends = generate_images(model, len(images), 1.0, seed, latents=passed, labels=labels)
    if steps == 1:
        return ends
    fractions = np.arange(1, steps) / steps
    inner = [
        np.concatenate([latents_between(*pair, fractions, way) for pair in zip(z[:-1], z[1:], strict=True)])
        for z, way in zip(passed, ways, strict=True)
    ]
    if labels is not None:
        labels = np.where(fractions < 0.5, labels[:-1, np.newaxis], labels[1:, np.newaxis]).ravel()
    between = generate_images(model, len(inner[0]), 1.0, seed, progress=progress, latents=inner, labels=labels)
    between = between.reshape(len(images) - 1, steps - 1, *ends.shape[1:])
    path = np.concatenate([ends[:-1, np.newaxis], between], axis=1)
    return np.concatenate([path.reshape(-1, *ends.shape[1:]), ends[-1:]])


def latent_direction(model: NVAE, positive: Array, negative: Array) -> list[Array]:
    """Mean latents of `positive` minus mean latents of `negative` (White 2016), `[height, width, latent channels]`."""
    check(min(len(positive), len(negative)) > 0, "a direction needs at least one positive and one negative image")
    both = [encode_images(model, images, mean=True) for images in (positive, negative)]
    means = [[z.mean(axis=0, dtype=np.float64) for z in latents] for latents in both]
    return [(with_it - without).astype(np.float32) for with_it, without in zip(*means, strict=True)]


def move_images(model: NVAE, images: Array, direction: Arrays, strengths: Sequence[float], seed=0, **how) -> Array:
    """Mean images `[images, strengths, height, width, channels]` of `z + strength * direction` in each group."""
    # All groups are decoded as given: what follows from the groups above is in the `latent_direction`.
    latents, labels, progress = _encoded(model, images, seed, **how)
    pairs = list(zip(latents, direction, strict=True))
    moved = [np.concatenate([z + np.float32(strength) * step for strength in strengths]) for z, step in pairs]
    labels = None if labels is None else np.tile(labels, len(strengths))
    made = generate_images(model, len(moved[0]), 1.0, seed, progress=progress, latents=moved, labels=labels)
    return made.reshape(len(strengths), len(images), *made.shape[1:]).swapaxes(0, 1)


def restore_images(model: NVAE, measurement, operator, sigma, steps=40, starts=4, seed=0, labels=None) -> tuple:
    """The images of `NVAE.restore`, and each pixel's deviation over restorations from `starts` draws (0: None)."""
    check(starts != 1, "starts = 1: a deviation needs two or more; 0 leaves it out")
    restore = functools.partial(model.restore, operator=operator, sigma=sigma, steps=steps, batch_size=BATCH_SIZE)
    images = restore(measurement, labels=labels).numpy()
    if not starts:
        return images, None
    labels = None if labels is None else np.repeat(np.broadcast_to(labels, len(measurement)), starts)
    # Side by side: the draws of an image do not depend on how many images there are.
    others = restore(np.repeat(measurement, starts, axis=0), seed=seed, labels=labels)
    return images, np.reshape(others, (-1, starts, *images.shape[1:])).std(axis=1)


def degradation(config: ExperimentConfig, mask=None, scale=1, blur=0.0, resize=None) -> restoration.LinearOperator:
    """The operator that degrades a run's images: a mask, a scale, a blur, or nothing."""
    # The mask is a picture file, white where pixels are missing, of the model's size unless `resize` brings it there.
    size = config.model.image_height, config.model.image_width
    if mask:
        as_it_is = {"resize": "none", "crop_box": None} if resize is None else {}
        as_it_is |= {"channels": 1, "num_bits": 8, "file_bits": 8, "range": (), "display_channels": (), "crop": "none"}
        as_it_is |= {"noise": "none", "likelihood": None}
        spec = dataclasses.replace(stored_spec(config.data), **as_it_is)
        pictures, _ = pictures_for_model([mask], spec, resize=resize, convert=True)
        check(len(pictures) == 1, f"mask {mask}: {len(pictures)} pictures; give one file, it is for all images")
        return restoration.Mask(pictures[0, ..., 0] > 0.5)
    if blur:
        return restoration.gaussian_blur(size, blur)
    return restoration.downsampling(size, scale) if scale > 1 else restoration.Mask()


def nearest_images(samples: Array, batches: Iterable[Array], count: int, progress: Progress = None) -> tuple:
    """The `count` images most like each sample, the nearest first; of equals the earlier wins. Reads batches once.

    Returns, each `[samples, count, ...]`, the places among all images, the mean squared differences, and the images.
    """
    flat, seen = samples.reshape(len(samples), -1).astype(np.float64), 0
    none = np.empty((len(samples), 0))
    best = [none.astype(int), none, np.empty((len(samples), 0, *samples.shape[1:]), np.float32)]
    for batch in map(np.asarray, batches):
        rows = batch.reshape(len(batch), -1).astype(np.float64)
        # |a - b|^2 = |a|^2 - 2 ab + |b|^2, in float64 because it cancels.
        squares = (flat**2).sum(axis=1)[:, np.newaxis] + (rows**2).sum(axis=1)
        distances = np.maximum(squares - 2.0 * flat @ rows.T, 0.0) / flat.shape[1]
        # A stable sort keeps equal distances in the order of the images' numbers.
        chosen = np.argsort(distances, axis=1, kind="stable")[:, :count]
        new = seen + chosen, np.take_along_axis(distances, chosen, axis=1), batch[chosen]
        best = [np.concatenate(pair, axis=1) for pair in zip(best, new, strict=True)]
        order = np.argsort(best[1], axis=1, kind="stable")[:, :count]
        best = [part[np.arange(len(samples))[:, np.newaxis], order] for part in best]
        seen += len(batch)
        if progress:
            progress(seen)
    return tuple(best)


def rows_sharing_groups(model: NVAE, count: int, seed: int) -> tuple[list[int], Array]:
    """Numbers of shared groups 0, 1, 2, 4 ... and all but the last, and for each of them a row of mean images."""
    # The first of a row is the first image of `model.generate`; the others have its latents in that many upper groups,
    # and their own below (Vahdat & Kautz 2020, figure 5 does so by scale).
    last, noise = model.plan.num_groups - 1, noise_per_image(model.plan.latent_shapes(), image_seeds(seed, count))
    numbers = sorted({0, last, *(2**power for power in range(last.bit_length()) if 2**power < last)})
    # A conditional model draws its first class.
    forward = FoldedPass(labels=tf.zeros([count], tf.int32) if model.config.num_classes else None)
    rows = []
    for shared in numbers:
        mixed = [tf.repeat(eps[:1], count, axis=0) if group < shared else eps for group, eps in enumerate(noise)]
        rows.append(top_down_pass(model, list(map(PriorSource, mixed)), count, forward).likelihood.mean().numpy())
    return numbers, np.stack(rows)
