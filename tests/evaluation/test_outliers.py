"""Outlier scores of sets of images: the calibration and its file, areas under ROC curves."""

import numpy as np
import pytest

from nvae_tf.evaluation.outliers import aurocs, calibrate, calibration_of, flagged, scores_by_name
from nvae_tf.files import read_arrays, write_arrays
from nvae_tf.models.outlier_scores import OutlierParts
from nvae_tf.runs.companions import read_calibration, write_calibration
from nvae_tf.schemas import ANY
from tests.tiny_model import images_of, shaken, tiny_model


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
def calibration(model):
    return calibrate(model, images_of(model.config, 60), images_of(model.config, 20), batch_size=20)


def test_p_values_of_further_images_are_uniform_and_correlated_numbers_are_seen_together():
    # Of the training images the model knows the reconstruction better.
    calibration = calibration_of(parts(4000, shift=-1.0), parts(1000))
    assert len(calibration.kl) == len(calibration.mahalanobis) == 1000
    assert all(np.all(np.diff(values) >= 0.0) for values in (calibration.kl, calibration.mahalanobis))
    np.testing.assert_allclose(calibration.mean, [20.0, 5.0, 0.0, 19.0], atol=0.6)
    assert calibration.covariance[0, 3] == pytest.approx(-36.0, rel=0.1)
    # What a group that is not used may vary by.
    assert np.sqrt(calibration.covariance[2, 2]) == pytest.approx(0.01, rel=0.1)
    own, shifted = scores_by_name(parts(3000), calibration), scores_by_name(parts(3001, shift=8.0), calibration)
    assert aurocs(own, shifted)["mahalanobis"] > 0.95 > 0.6 > aurocs(own, shifted)["kl"]
    for name, share in flagged(own).items():
        assert share == pytest.approx(0.05, abs=0.015), name
    # Eight nats are little against what the reconstruction varies by, and much given the first group's KL.
    assert flagged(shifted)["mahalanobis"] > 0.99 > 0.1 > flagged(shifted)["kl"]


def test_too_few_images_and_a_diverged_model_are_refused(model):
    with pytest.raises(ValueError, match="4 training images are too few to calibrate; give 50 or more"):
        calibrate(model, images_of(model.config), images_of(model.config))
    with pytest.raises(ValueError, match="18 held-out images are too few to calibrate; give 19 or more"):
        calibration_of(parts(50), parts(18))
    broken = parts(60)
    broken.kl[7, 1] = np.nan
    for pair in ((broken, parts(60)), (parts(60), broken)):
        with pytest.raises(ValueError, match="the model has diverged"):
            calibration_of(*pair)


def test_a_calibration_file_is_of_one_checkpoints_weights(tmp_path, model, calibration):
    file = tmp_path / "outliers.npz"
    assert read_calibration(file, model, 1200) is None
    assert model.outlier_calibration is calibration
    write_calibration(file, model, 1200, calibration)
    # A copy elsewhere, of the same weights at another step: what counts is the weights.
    for name, value in vars(read_calibration(file, model, 3000)).items():
        np.testing.assert_array_equal(value, getattr(calibration, name))
    other = tiny_model(num_groups_per_scale=2, seed=0)
    expected = "outliers.npz: of other weights, those of step 1,200; the model is of step 3,000; make it anew by `nvae-"
    assert expected in read_calibration(file, other, 3000)
    file.write_bytes(file.read_bytes()[:-99])
    assert "outliers.npz: damaged" in read_calibration(file, model, 1200)


def test_a_calibration_that_can_not_be_is_refused_in_a_line(tmp_path, model, calibration):
    file = tmp_path / "outliers.npz"
    write_calibration(file, model, 7, calibration)
    # Of other types than ours, as another program may write them.
    write_arrays(file, read_arrays(file, ANY) | {"kl": calibration.kl.astype(np.float64)})
    model.outlier_calibration = read_calibration(file, model, 7)
    assert model.outlier_score(images_of(model.config)).kl_p_value.shape == 4
    arrays = read_arrays(file, ANY)
    for name, change in {"mean": lambda a: a * np.nan, "covariance": np.triu, "kl": lambda a: a[::-1]}.items():
        write_arrays(file, arrays | {name: change(arrays[name])})
        assert "outliers.npz: damaged" in read_calibration(file, model, 7)
