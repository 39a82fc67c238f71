"""Mean and covariance of the features of many images, gathered batch by batch and kept in a file."""

import pathlib
from typing import NamedTuple

import numpy as np

from nvae_tf.files import read_arrays, write_arrays
from nvae_tf.setting_checks import check

_FORM = 1


class FeatureStatistics(NamedTuple):
    """Of the features of `count` images, in float64.

    Attributes:
      mean: `[features]`.
      covariance: `[features, features]`, unbiased: divided by `count - 1`.
      count: number of images.
    """

    mean: np.ndarray
    covariance: np.ndarray
    count: int


class RunningFeatureStatistics:
    """Takes in features batch by batch; the memory does not grow with the number of images.

    Two parts are merged by the difference of their means (Chan, Golub & LeVeque 1983), so nothing large is subtracted
    from something large, as it is where sums of squares are gathered.

    Example:
      >>> running = RunningFeatureStatistics()
      >>> for images in batches:
      ...     running.add(extractor.features(images))
      >>> statistics = running.statistics()
    """

    def __init__(self):
        self._count = 0
        self._mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))  # sum of the outer products of deviations from the mean

    @property
    def count(self) -> int:
        """How many images there were."""
        return self._count

    def add(self, features: np.ndarray) -> None:
        """Takes in the features `[images, features]` of a batch; one without images changes nothing.

        Raises:
          ValueError: they have another form, another number of features than before, or are not all finite.
        """
        features = np.asarray(features, np.float64)
        check(features.ndim == 2, f"features have shape {features.shape}; they must be [images, features]")
        count, size = features.shape
        check(
            size == len(self._mean) or not self._count,
            f"a batch has {size} features an image, those before had {len(self._mean)}",
        )
        check(bool(np.isfinite(features).all()), f"features of the images from number {self._count} are not all finite")
        if not count:
            return
        mean = features.mean(axis=0)
        centered = features - mean
        scatter = centered.T @ centered
        if self._count:
            difference = mean - self._mean
            total = self._count + count
            scatter += self._scatter + np.outer(difference, difference) * (self._count * count / total)
            mean = self._mean + difference * (count / total)
        self._count, self._mean, self._scatter = self._count + count, mean, scatter

    def statistics(self) -> FeatureStatistics:
        """Of all images so far.

        Raises:
          ValueError: there are not two images, so there is no covariance.
        """
        check(self._count >= 2, f"the covariance of features needs at least 2 images, there are {self._count}")
        return FeatureStatistics(self._mean.copy(), self._scatter / (self._count - 1), self._count)


def save_statistics(path: str | pathlib.Path, statistics: FeatureStatistics, fingerprint: str) -> None:
    """Writes an `.npz` file, whole or not at all.

    Args:
      path: of the file; its folder must exist.
      statistics: what to write.
      fingerprint: of what they are: data set, split, preprocessing, number of images and `FeatureExtractor.name`.
        `load_statistics` takes the file only for the same fingerprint.
    """
    about = {"form": np.array(_FORM), "fingerprint": np.array(fingerprint)}
    write_arrays(pathlib.Path(path), about | {name: np.asarray(part) for name, part in statistics._asdict().items()})


def load_statistics(path: str | pathlib.Path, fingerprint: str) -> FeatureStatistics | None:
    """What `save_statistics` wrote; None where there is no file, or it is of another fingerprint.

    Raises:
      ValueError: the file is damaged.
    """
    path = pathlib.Path(path)
    if not path.exists():
        return None
    try:
        arrays = read_arrays(path)
        if int(arrays["form"]) != _FORM or str(arrays["fingerprint"]) != fingerprint:
            return None
        statistics = FeatureStatistics(arrays["mean"], arrays["covariance"], int(arrays["count"]))
        _check_sound(statistics)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: the statistics of features are damaged ({error}); remove the file, and they will be made again"
        ) from None
    return statistics


def _check_sound(statistics: FeatureStatistics) -> None:
    mean, covariance, count = statistics
    check(mean.ndim == 1 and covariance.shape == (len(mean), len(mean)), "mean and covariance do not fit each other")
    check(mean.dtype == covariance.dtype == np.float64, "they are not in float64")
    check(count >= 2 and bool(np.isfinite(mean).all() and np.isfinite(covariance).all()), "they are not all finite")
