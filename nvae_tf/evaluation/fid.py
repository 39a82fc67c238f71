"""The Fréchet inception distance of generated images (Heusel et al. 2017)."""

from collections.abc import Callable, Iterable

import numpy as np

from nvae_tf.evaluation.feature_statistics import FeatureStatistics, RunningFeatureStatistics
from nvae_tf.evaluation.frechet_distance import frechet_distance
from nvae_tf.evaluation.inception import FeatureExtractor


def image_statistics(
    batches: Iterable[np.ndarray], extractor: FeatureExtractor, progress: Callable[[int], None] | None = None
) -> FeatureStatistics:
    """Mean and covariance of the features of all images.

    Args:
      batches: float `[batch, height, width, channels]` in [0, 1].
      extractor: gives the features.
      progress: is called after each batch with the number of images done.

    Raises:
      ValueError: there are not two images, or an image or a feature is not sound.
    """
    running = RunningFeatureStatistics()
    for images in batches:
        running.add(extractor.features(images))
        if progress:
            progress(running.count)
    return running.statistics()


def frechet_inception_distance(
    real: FeatureStatistics,
    generated: Iterable[np.ndarray],
    extractor: FeatureExtractor,
    progress: Callable[[int], None] | None = None,
) -> float:
    """The distance of generated images from real ones, whose statistics may come from `load_statistics`.

    What makes it the published number is told in `nvae_tf.evaluation.inception`.

    Args:
      real: of the real images, by the same extractor.
      generated: batches, see `image_statistics`.
      extractor: see there.
      progress: see there.

    Raises:
      ValueError: see `image_statistics` and `frechet_distance`.
    """
    return frechet_distance(real, image_statistics(generated, extractor, progress))
