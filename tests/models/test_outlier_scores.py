"""The scores of `NVAE.outlier_score`: what they are made of, and how they are compared with a calibration."""

import numpy as np
import pytest
import scipy.spatial.distance
import tensorflow as tf

from nvae_tf.models.outlier_scores import OutlierCalibration, OutlierParts, outlier_scores
from tests.models.test_coding import near
from tests.tiny_model import PADDED, images_of, shaken, tiny_model, with_distinct_classes

GROUPS = dict(num_groups_per_scale=2, adaptive_groups=True, num_preprocess_blocks=1, num_postprocess_blocks=1)


@pytest.fixture(scope="module")
def plain():
    """Three groups, the two of the larger scale on 4x4 positions of a frame of 8x8 around 6x6 pixels; no flows."""
    return shaken(tiny_model(**PADDED, **GROUPS, seed=0))


@pytest.fixture
def calibration():
    random = np.random.default_rng(0)
    spread = random.normal(size=(4, 4))
    distances = np.sort(random.gamma(2.0, 1.0, 9)).astype(np.float32)
    return OutlierCalibration(random.normal(size=4), spread @ spread.T, np.float32([1, 2, 2, 3]), distances)


def test_the_parts_are_those_of_a_pass_at_the_means(plain, images):
    scores, groups = plain.outlier_score(images), plain.infer(images, mean=True)
    kl = np.stack([np.sum(group.kl, axis=(1, 2, 3)) for group in groups], axis=1)
    assert np.ptp(kl, axis=0).min() > 1e-3
    near(scores.parts.kl, kl)
    near(scores.kl, kl.sum(axis=1))
    mean = np.float64(plain.decode([group.z for group in groups]))
    log_p = np.sum(np.log(np.where(images > 0.5, mean, 1.0 - mean)), axis=(1, 2, 3))
    near(scores.parts.reconstruction, -log_p)
    near(scores.nelbo_at_mean, kl.sum(axis=1) - log_p)
    assert scores.mahalanobis is scores.kl_p_value is scores.mahalanobis_p_value is None


def test_the_map_says_which_pixels_the_positions_of_the_largest_scale_cover(plain, images):
    (_, *largest), found = plain.infer(images, mean=True), plain.outlier_score(images).parts.kl_map
    at_positions = np.sum([np.sum(group.kl, axis=3) for group in largest], axis=0)
    assert found.shape == (len(images), 6, 6) and at_positions.shape[1:] == (4, 4)
    for row, column in ((0, 0), (1, 4), (5, 2)):
        # The pixel lies one further in the frame.
        near(found[:, row, column], at_positions[:, (row + 1) // 2, (column + 1) // 2] / 4)


@pytest.mark.slow
def test_a_calibration_gives_distances_and_ranks(plain, images, calibration, monkeypatch):
    monkeypatch.setattr(plain, "outlier_calibration", calibration)
    scores = tf.function(plain.outlier_score)(images)
    inverse = np.linalg.inv(calibration.covariance)
    values = np.concatenate([scores.parts.kl, scores.parts.reconstruction[:, np.newaxis]], axis=1)
    near(scores.mahalanobis, [scipy.spatial.distance.mahalanobis(each, calibration.mean, inverse) for each in values])
    at_least = (calibration.mahalanobis >= scores.mahalanobis.numpy()[:, np.newaxis]).sum(axis=1)
    near(scores.mahalanobis_p_value, (1 + at_least) / 10)


def test_p_values_count_equal_scores(calibration):
    kl = tf.constant([[0.0], [2.0], [2.5], [3.0], [9.0]]) * tf.constant([[1.0, 0.0, 0.0]])
    scores = outlier_scores(OutlierParts(tf.zeros(5), kl, None), calibration)
    near(scores.kl_p_value, [1.0, 0.8, 0.4, 0.4, 0.2])


def test_what_can_not_be_compared(plain, images, calibration, monkeypatch):
    with pytest.raises(ValueError, match="is of a model with 3 latent groups, this one has 2"):
        outlier_scores(OutlierParts(tf.zeros(1), tf.zeros([1, 2]), None), calibration)
    monkeypatch.setattr(plain, "outlier_calibration", "runs/x/outliers.npz: of other weights")
    with pytest.raises(ValueError, match="^runs/x/outliers.npz: of other weights$"):
        plain.outlier_score(images)


@pytest.mark.slow
def test_an_image_of_a_conditional_model_is_scored_with_its_label_or_the_likeliest_class():
    model = with_distinct_classes(tiny_model(num_classes=3, seed=0))
    images = images_of(model.config)
    together = model.outlier_score(images, labels=[0, 1, 2, -1])
    near(together.nelbo_at_mean[1:2], model.outlier_score(images[1:2], labels=1).nelbo_at_mean)
    bounds = np.stack([model.outlier_score(images, labels=label).nelbo_at_mean for label in range(3)])
    assert np.ptp(bounds, axis=0).min() > 0.1 and len({*bounds.argmin(axis=0)}) > 1
    near(tf.function(model.outlier_score)(images).nelbo_at_mean, bounds.min(axis=0))
