"""The distance against closed forms and against scipy's root of a matrix."""

import numpy as np
import pytest
import scipy.linalg

from nvae_tf.evaluation.feature_statistics import FeatureStatistics
from nvae_tf.evaluation.frechet_distance import frechet_distance


def gaussian(mean, covariance, count=1000):
    return FeatureStatistics(np.asarray(mean, np.float64), np.asarray(covariance, np.float64), count)


def sample(seed, images, features, scale=1.0):
    values = np.random.RandomState(seed).normal(size=(images, features))
    mixed = scale * values @ np.random.RandomState(seed + 50).normal(size=(features, features))
    return gaussian(mixed.mean(axis=0), np.cov(mixed, rowvar=False), images)


def by_scipy(one, other):
    root = scipy.linalg.sqrtm(one.covariance @ other.covariance)
    difference = one.mean - other.mean
    return difference @ difference + np.trace(one.covariance + other.covariance - 2.0 * root.real)


def test_a_gaussian_has_no_distance_from_itself():
    one = sample(0, 200, 20)
    assert 0.0 <= frechet_distance(one, one) < 1e-9 * np.trace(one.covariance)


def test_a_shifted_mean_counts_squared():
    covariance = sample(0, 200, 3).covariance
    assert frechet_distance(gaussian([1, 2, 3], covariance), gaussian([1, 5, -1], covariance)) == pytest.approx(25.0)


def test_diagonal_covariances_count_by_their_roots():
    one, other = np.array([4.0, 9.0, 0.0]), np.array([1.0, 16.0, 25.0])
    expected = np.sum((np.sqrt(one) - np.sqrt(other)) ** 2)
    assert frechet_distance(gaussian(np.zeros(3), np.diag(one)), gaussian(np.zeros(3), np.diag(other))) == (
        pytest.approx(expected, rel=1e-12)
    )


def test_full_covariances_agree_with_scipy_and_are_symmetric():
    one, other = sample(1, 100, 30), sample(2, 80, 30, scale=1.5)
    expected = by_scipy(one, other)
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(other, one) == pytest.approx(expected, rel=1e-9)


def test_small_variances_beside_large_ones_keep_their_digits():
    # Squared, the smallest would vanish beside the largest.
    variances = 10.0 ** -np.arange(9)
    basis = np.linalg.qr(np.random.RandomState(5).normal(size=(9, 9)))[0]
    one = gaussian(np.zeros(9), basis @ np.diag(variances) @ basis.T)
    other = gaussian(np.zeros(9), 4.0 * one.covariance)
    assert frechet_distance(one, other) == pytest.approx(variances.sum(), rel=1e-10)


def test_fewer_images_than_features():
    features, directions = 40, np.linalg.qr(np.random.RandomState(3).normal(size=(40, 40)))[0]

    def within(columns, variances):
        basis = directions[:, columns]
        return gaussian(np.zeros(features), basis @ np.diag(variances) @ basis.T, len(columns) + 1)

    # Common directions count by their roots, the others with their whole variance.
    one, other = within([0, 1, 2], [4.0, 9.0, 16.0]), within([1, 2, 3, 4], [25.0, 1.0, 7.0, 0.5])
    expected = (3.0 - 5.0) ** 2 + (4.0 - 1.0) ** 2 + 4.0 + 7.0 + 0.5
    assert frechet_distance(one, other) == pytest.approx(expected, rel=1e-10)
    few = sample(4, 12, features)
    # Rounding counted as variance would show as sqrt(1e-16) of it here.
    assert frechet_distance(few, few) < 1e-10 * np.trace(few.covariance)


def test_images_that_are_all_the_same_have_a_distance():
    one = sample(6, 50, 4)
    still = gaussian(one.mean + 1.0, np.zeros((4, 4)))
    assert frechet_distance(one, still) == pytest.approx(4.0 + np.trace(one.covariance))
    assert frechet_distance(still, still) == 0.0


def test_what_has_no_distance_is_told():
    sound = gaussian(np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="at least 2 images on each side, one has 1"):
        frechet_distance(sound, gaussian(np.zeros(2), np.eye(2), count=1))
    with pytest.raises(ValueError, match="2 and 3 features"):
        frechet_distance(sound, gaussian(np.zeros(3), np.eye(3)))
    with pytest.raises(ValueError, match="not all finite"):
        frechet_distance(gaussian([0.0, np.inf], np.eye(2)), sound)
    with pytest.raises(ValueError, match="not of the same features"):
        frechet_distance(gaussian(np.zeros(3), np.eye(2)), sound)
