"""The images most like some samples: whether a model has memorized its training images."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from nvae_tf.config import check


class NearestImages(NamedTuple):
    """For every sample the nearest images, the nearest first."""

    numbers: np.ndarray  # place of each among all images, int64 `[samples, count]`
    distances: np.ndarray  # mean squared difference of a pixel value, float64 `[samples, count]`
    images: np.ndarray  # their pixels, `[samples, count, height, width, channels]`


def nearest_images(
    samples: np.ndarray, batches: Iterable[np.ndarray], count: int, progress: Callable[[int], None] = lambda done: None
) -> NearestImages:
    """Looks through all images once, a batch at a time; of images that are equally near the earlier ones win.

    Samples and batches are `[images, height, width, channels]` in [0, 1]; ValueError where their sizes differ, or
    `count` is less than 1 or more than there are images.
    """
    check(count >= 1, f"count = {count}: must be at least 1")
    samples = np.asarray(samples)
    flat, size = _flat(samples), samples.shape[1:]
    best, seen = None, 0
    for batch in batches:
        images = np.asarray(batch)
        check(images.shape[1:] == size, f"images of {images.shape[1:]} can't be compared with samples of {size}")
        rows = _flat(images)
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
    check(seen >= count, f"count = {count}: there are only {seen} images to choose from")
    return NearestImages(*best)


def _flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).astype(np.float64)
