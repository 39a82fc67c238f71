"""What a model of noisy images (`data.noise`) makes of them: the signal, and how much of the noise is left in it.

Larger images are cut into tiles, which overlap, and are joined again. `model` is the `NVAE` (nvae.py). Its largest
latents should have half the images' height and width or less: with a position for each pixel it would be cheap to hand
the noise through to the signal. `passing_noise` measures it.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.config import ModelConfig, check
from nvae_tf.layers import FoldedPass
from nvae_tf.models.latents import PosteriorSource, noise_per_image
from nvae_tf.models.passes import inference_pass, pass_of_loop, top_down_pass
from nvae_tf.progress import image_bar

_PROBE = 0.1  # the standard deviation of a probe, in units of the noise's


class Denoised(NamedTuple):
    """What `NVAE.denoise` returns, of the images' shape and on their scale."""

    images: tf.Tensor  # the signal: at the posterior's means, one draw, or the mean of several
    deviation: tf.Tensor | None = None  # of several draws, their standard deviation: where they differ


def check_is_denoising(config: ModelConfig, what: str) -> None:
    """ValueError, which begins with `what`, unless a model is of noisy images."""
    check(config.is_denoising, f"{what}: this model was not trained with data.noise, so that it has no signal to give")


def passing_noise(model, images: tf.Tensor, seeds: tf.Tensor, labels=None) -> tuple[tf.Tensor, tf.Tensor]:
    """The signal at the posterior's means, and the part of the noise that is in it, `[batch]`: 0 for none, 1 for all.

    It is measured by a little more noise, drawn from the seeds: the trace of the signal's derivative by the image over
    the number of values (Ramani et al. 2008, "Monte-Carlo SURE"), which needs no clean image.
    """
    forward, means = FoldedPass(labels=labels), [0.0] * model.plan.num_groups
    likelihood = inference_pass(model, images, means, forward).likelihood
    signal, deviation = likelihood.mean(), _PROBE * likelihood.stddev()
    (probe,) = noise_per_image([tuple(images.shape[1:])], seeds)
    moved = inference_pass(model, images + deviation * probe, means, forward).likelihood.mean() - signal
    products, squares = (tf.reduce_sum(values, axis=(1, 2, 3)) for values in (probe * moved / deviation, probe**2))
    return signal, products / squares


def denoised(model, images: tf.Tensor, seeds: tf.Tensor, labels: tf.Tensor | None, samples: int) -> list[tf.Tensor]:
    """The signal at the posterior's means (`samples` 0), or the mean of draws, and of two or more their deviation."""
    forward, shapes = pass_of_loop(model, labels), model.plan.latent_shapes()
    features, count = model.bottom_up.features(images, forward), tf.shape(images)[0]

    def signal(noise: list) -> tf.Tensor:
        return top_down_pass(model, list(map(PosteriorSource, features, noise)), count, forward).likelihood.mean()

    def add(number: tf.Tensor, mean: tf.Tensor, squares: tf.Tensor) -> tuple[tf.Tensor, ...]:  # Welford 1962
        drawn = signal(noise_per_image(shapes, seeds, number))
        new_mean = mean + (drawn - mean) / tf.cast(number + 1, tf.float32)
        return number + 1, new_mean, squares + (drawn - mean) * (drawn - new_mean)

    if not samples:
        return [signal([0.0] * len(shapes))]
    begun = tf.constant(0), tf.zeros_like(images), tf.zeros_like(images)
    _, mean, squares = tf.while_loop(lambda number, *_: number < samples, add, begun, parallel_iterations=1)
    return [mean] if samples == 1 else [mean, tf.sqrt(squares / (samples - 1.0))]


def in_tiles(function: Callable, images: tf.Tensor, tile: tuple[int, int], at_once: int) -> list[np.ndarray]:
    """The arrays that `function(tiles, rows, first)` makes of tiles `[tiles, *tile, channels]`, joined again.

    `rows` is the number of each tile's image, `first` the first tile's number among all. The tiles of several images
    go together, `at_once` or fewer, but never fewer than the tiles of one image.
    Tiles overlap by a quarter or more. There the result is a weighted mean; a tile's weight falls to its edges.
    """
    places = list(itertools.product(*map(_slices, images.shape[1:3], tile)))
    weight, total = np.multiply.outer(*map(_ramp, tile))[..., np.newaxis], np.zeros([*images.shape[1:3], 1])
    for place in places:
        total[place] += weight
    # Not of all images at once: together tiles are twice as large as the images.
    results, step = [], max(1, at_once // len(places))
    with image_bar(len(images)) as bar:
        for start in range(0, len(images), step):
            some = np.asarray(images[start : start + step])
            tiles = np.stack([some[:, *place] for place in places], axis=1).reshape(-1, *tile, images.shape[3])
            made = function(tiles, np.repeat(start + np.arange(len(some)), len(places)), start * len(places))
            results = results or [np.zeros(images.shape, np.float32) for _ in made]
            for result, parts in zip(results, map(np.asarray, made), strict=True):
                joined = result[start : start + step]
                for number, place in enumerate(places):
                    joined[:, *place] += weight * parts[number :: len(places)]
                joined /= total
            bar.update(len(some))
    return results


def _slices(length: int, tile: int) -> Iterator[slice]:
    count = 1 + -(-(length - tile) // (tile - tile // 4))
    return (slice(start, start + tile) for start in np.rint(np.linspace(0, length - tile, count)).astype(int))


def _ramp(length: int) -> np.ndarray:
    rising = np.arange(1.0, length + 1.0)
    return np.minimum(np.minimum(rising, rising[::-1]), length // 4 + 1).astype(np.float32)
