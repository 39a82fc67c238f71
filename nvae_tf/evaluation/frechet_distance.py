"""The Fréchet distance of two sets of features, each taken for a Gaussian (Heusel et al. 2017, eq. 6)."""

import numpy as np

from nvae_tf.evaluation.feature_statistics import FeatureStatistics
from nvae_tf.setting_checks import check


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """`|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2))`, in float64, in the features' unit squared.

    The trace of the root is the sum of the roots of the eigenvalues of `C1^(1/2) C2 C1^(1/2)`, which are those of
    `C1 C2`: the singular values of `C1^(1/2) C2^(1/2)`. The roots of the covariances come from their eigenvalues. So no
    complex number appears, as it does where the root of `C1 C2` itself is taken of nearly singular matrices, and what
    is small is not squared before its root is taken. Variances that are zero but for rounding count as zero: the root
    of a rounding error of 1e-16 is 1e-8, and there can be thousands of them.

    With fewer images than features a covariance is singular. The formula holds for such Gaussians too, and the distance
    is that of the two samples. As an estimate of the distance of the two distributions it is far too large, though: its
    bias falls about as one over the number of images. So distances compare only where the numbers of images are the
    same; published ones are of 50,000.

    Args:
      one: statistics of one set of images.
      other: of the other set; the distance is the same with both exchanged.

    Returns:
      At least 0; 0 for the same mean and covariance.

    Raises:
      ValueError: a set has fewer than 2 images, the numbers of features differ, or not all values are finite.
    """
    _check_statistics(one)
    _check_statistics(other)
    sizes = len(one.mean), len(other.mean)
    check(sizes[0] == sizes[1], f"the sets have {sizes[0]} and {sizes[1]} features: they are of different extractors")
    difference = one.mean - other.mean
    traces = np.trace(one.covariance) + np.trace(other.covariance)
    distance = difference @ difference + traces - 2.0 * _trace_of_root(one.covariance, other.covariance)
    return max(float(distance), 0.0)


def _trace_of_root(one: np.ndarray, other: np.ndarray) -> float:
    """`Tr (one other)^(1/2)` of symmetric matrices without negative eigenvalues."""
    return float(np.linalg.svd(_root(one).T @ _root(other), compute_uv=False).sum())


def _root(covariance: np.ndarray) -> np.ndarray:
    """`R [features, rank]` with `R R^T` the covariance; the directions without variance are left out."""
    values, vectors = np.linalg.eigh(covariance)
    # Up to there an eigenvalue may be nothing but rounding.
    kept = values > len(values) * np.finfo(np.float64).eps * np.abs(values).max(initial=0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


def _check_statistics(statistics: FeatureStatistics) -> None:
    mean, covariance, count = statistics
    check(count >= 2, f"the Fréchet distance needs at least 2 images on each side, one has {count}")
    check(
        mean.ndim == 1 and covariance.shape == (len(mean), len(mean)),
        f"mean {mean.shape} and covariance {covariance.shape} are not of the same features",
    )
    check(
        bool(np.isfinite(mean).all() and np.isfinite(covariance).all()),
        "the statistics of features are not all finite: an image or a feature has NaN or infinity in it",
    )
