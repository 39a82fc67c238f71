"""The images most like some samples: whether a model has memorized its training images."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from nvae_tf.config import check


class NearestImages(NamedTuple):
    """For every sample the nearest images, the nearest first.

    Attributes:
      numbers: place of each among all images, int64 `[samples, count]`.
      distances: mean squared difference of a pixel value, float64 `[samples, count]`.
      images: their pixels, `[samples, count, height, width, channels]`.
    """

    numbers: np.ndarray
    distances: np.ndarray
    images: np.ndarray


def nearest_images(
    samples: np.ndarray, batches: Iterable[np.ndarray], count: int, progress: Callable[[int], None] | None = None
) -> NearestImages:
    """Looks through all images once, a batch at a time; of images that are equally near the earlier ones win.

    Samples and batches are `[images, height, width, channels]` in [0, 1]; ValueError where their sizes differ, or
    `count` is less than 1 or more than there are images.
    """
    check(count >= 1, f"count = {count}: must be at least 1")
    samples = np.asarray(samples)
    flat = _flat(samples)
    numbers = np.zeros((len(samples), 0), np.int64)
    best = NearestImages(numbers, numbers.astype(np.float64), np.zeros((len(samples), 0, *samples.shape[1:])))
    seen = 0
    for batch in batches:
        images = np.asarray(batch)
        check(
            images.shape[1:] == samples.shape[1:],
            f"images of {images.shape[1:]} can't be compared with samples of {samples.shape[1:]}",
        )
        rows = _flat(images)
        # |a - b|^2 = |a|^2 - 2 ab + |b|^2, in float64 because it cancels.
        squares = (flat**2).sum(axis=1)[:, np.newaxis] + (rows**2).sum(axis=1)
        distances = np.maximum(squares - 2.0 * flat @ rows.T, 0.0) / flat.shape[1]
        best = _merged(best, images, distances, seen, count)
        seen += len(images)
        if progress:
            progress(seen)
    check(seen >= count, f"count = {count}: there are only {seen} images to choose from")
    return best


def _merged(best: NearestImages, images: np.ndarray, distances: np.ndarray, first: int, count: int) -> NearestImages:
    """The nearest of those so far and of a batch whose first image has this number."""
    rows = np.arange(len(distances))[:, np.newaxis]
    # In order of distance and, stable, of number.
    chosen = np.argsort(distances, axis=1, kind="stable")[:, :count]
    joined = NearestImages(
        np.concatenate([best.numbers, first + chosen], axis=1),
        np.concatenate([best.distances, distances[rows, chosen]], axis=1),
        np.concatenate([best.images, images[chosen]], axis=1, dtype=images.dtype, casting="unsafe"),
    )
    order = np.argsort(joined.distances, axis=1, kind="stable")[:, :count]
    return NearestImages(*(part[rows, order] for part in joined))


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64)
