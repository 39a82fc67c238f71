"""Outlier scores: what they are made of, calibrations and their files, areas under ROC curves."""

import numpy as np
import pytest
import scipy.spatial.distance
import tensorflow as tf

from nvae_tf.evaluation.outliers import aurocs, calibrate, calibration_of, flagged, scores_by_name
from nvae_tf.models.outlier_scores import OutlierCalibration, OutlierParts, outlier_scores
from nvae_tf.runs.companions import read_calibration, write_calibration
from nvae_tf.schemas import Field, read_arrays, write_arrays
from tests import refuses
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
    refuses("^runs/x/outliers.npz: of other weights$", plain.outlier_score, images)


@pytest.mark.slow
def test_an_image_of_a_conditional_model_is_scored_with_its_label_or_the_likeliest_class():
    model = with_distinct_classes(tiny_model(num_classes=3, seed=0))
    images = images_of(model.config)
    together = model.outlier_score(images, labels=[0, 1, 2, -1])
    near(together.nelbo_at_mean[1:2], model.outlier_score(images[1:2], labels=1).nelbo_at_mean)
    bounds = np.stack([model.outlier_score(images, labels=label).nelbo_at_mean for label in range(3)])
    assert np.ptp(bounds, axis=0).min() > 0.1 and len({*bounds.argmin(axis=0)}) > 1
    near(tf.function(model.outlier_score)(images).nelbo_at_mean, bounds.min(axis=0))
    images = images_of(model.config, 60)
    learned = calibrate(model, images, images[:20], batch_size=20)
    for label in (None, 0, 1, 2):
        scores = np.sort(model.outlier_score(images[:20], labels=label).kl)
        assert np.allclose(scores, learned.kl, rtol=1e-4) == (label is None)


def parts(count, shift=0.0):
    """Of images whose numbers are normal; the first group says more where the reconstruction is better."""
    random = np.random.default_rng(count)
    kl = random.normal([20.0, 5.0, 0.0], [3.0, 0.1, 0.0], (count, 3))
    reconstruction = 100.0 - 4.0 * kl[:, 0] + random.normal(shift, 1.0, count)
    return OutlierParts(np.float32(reconstruction), np.float32(kl), None)


@pytest.fixture(scope="module")
def model():
    return shaken(tiny_model(num_groups_per_scale=2, seed=0), 0.5)


@pytest.fixture(scope="module")
def learned(model):
    return calibrate(model, images_of(model.config, 60), images_of(model.config, 20), batch_size=20)


def test_p_values_of_further_images_are_uniform_and_correlated_numbers_are_seen_together():
    # Of the training images the model knows the reconstruction better.
    learned = calibration_of(parts(4000, shift=-1.0), parts(1000))
    assert len(learned.kl) == len(learned.mahalanobis) == 1000
    assert all(np.all(np.diff(values) >= 0.0) for values in (learned.kl, learned.mahalanobis))
    np.testing.assert_allclose(learned.mean, [20.0, 5.0, 0.0, 19.0], atol=0.6)
    assert learned.covariance[0, 3] == pytest.approx(-36.0, rel=0.1)
    # What a group that is not used may vary by.
    assert np.sqrt(learned.covariance[2, 2]) == pytest.approx(0.01, rel=0.1)
    own, shifted = scores_by_name(parts(3000), learned), scores_by_name(parts(3001, shift=8.0), learned)
    assert aurocs(own, shifted)["mahalanobis"] > 0.95 > 0.6 > aurocs(own, shifted)["kl"]
    for name, share in flagged(own).items():
        assert share == pytest.approx(0.05, abs=0.015), name
    # Eight nats are little against what the reconstruction varies by, and much given the first group's KL.
    assert flagged(shifted)["mahalanobis"] > 0.99 > 0.1 > flagged(shifted)["kl"]


def test_too_few_images_and_a_diverged_model_are_refused(model):
    with pytest.raises(ValueError, match="4 training images are too few to calibrate; give 50 or more"):
        calibrate(model, images_of(model.config), images_of(model.config))
    refuses("18 held-out images are too few to calibrate; give 19 or more", calibration_of, parts(50), parts(18))
    broken = parts(60)
    broken.kl[7, 1] = np.nan
    for pair in ((broken, parts(60)), (parts(60), broken)):
        refuses("the model has diverged", calibration_of, *pair)


def test_a_calibration_file_is_of_one_checkpoints_weights(tmp_path, model, learned):
    file = tmp_path / "outliers.npz"
    assert read_calibration(file, model, 1200) is None
    assert model.outlier_calibration is learned
    write_calibration(file, model, 1200, learned)
    # A copy elsewhere, of the same weights at another step: what counts is the weights.
    for name, value in vars(read_calibration(file, model, 3000)).items():
        np.testing.assert_array_equal(value, getattr(learned, name))
    other = tiny_model(num_groups_per_scale=2, seed=0)
    expected = "outliers.npz: of other weights, from step 1,200; the model is of step 3,000; make it anew by `nvae-"
    assert expected in read_calibration(file, other, 3000)
    file.write_bytes(file.read_bytes()[:-99])
    assert "outliers.npz: damaged" in read_calibration(file, model, 1200)


def test_a_calibration_that_can_not_be_is_refused_in_a_line(tmp_path, model, learned):
    file = tmp_path / "outliers.npz"
    write_calibration(file, model, 7, learned)
    # Of other types than ours, as another program may write them.
    arrays = read_arrays(file, {"*": Field("value", None, None)})
    write_arrays(file, arrays | {"kl": learned.kl.astype(np.float64)})
    model.outlier_calibration = read_calibration(file, model, 7)
    assert model.outlier_score(images_of(model.config)).kl_p_value.shape == 4
    for name, change in {"mean": lambda a: a * np.nan, "covariance": np.triu, "kl": lambda a: a[::-1]}.items():
        write_arrays(file, arrays | {name: change(arrays[name])})
        assert "outliers.npz: damaged" in read_calibration(file, model, 7)
