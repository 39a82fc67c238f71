import types

import numpy as np
import pytest
import scipy.linalg

from nvae_tf.data import data_spec
from nvae_tf.data.sources import load_split
from nvae_tf.evaluation import fid
from nvae_tf.progress import Report


def test_uneven_batches_give_what_numpy_gives_for_all():
    features = np.random.RandomState(0).normal(size=(50, 6)) * [1, 2, 3, 4, 5, 6] + np.arange(6)
    features = features.astype(np.float32)
    actual = fid.statistics_of(np.split(features, [1, 20, 20, 49]))
    np.testing.assert_allclose(actual.mean, features.astype(np.float64).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(actual.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-12)
    assert actual.count == 50 and actual.mean.dtype == actual.covariance.dtype == np.float64
    # Sums of squares would lose all digits of a variance of 1.
    features = np.random.RandomState(0).normal(size=(4000, 3))
    far = fid.statistics_of(np.split(features + 1e8, 40))
    np.testing.assert_allclose(far.covariance, np.cov(features, rowvar=False), atol=1e-7)


def gaussian(mean, covariance, count=1000):
    return fid.FeatureStatistics(np.asarray(mean, np.float64), np.asarray(covariance, np.float64), count)


def sample(seed, images, features, scale=1.0):
    values = np.random.RandomState(seed).normal(size=(images, features))
    mixed = scale * values @ np.random.RandomState(seed + 50).normal(size=(features, features))
    return gaussian(mixed.mean(axis=0), np.cov(mixed, rowvar=False), images)


def test_full_covariances_agree_with_scipy_and_are_symmetric():
    one, other = sample(1, 100, 30), sample(2, 80, 30, scale=1.5)
    root = scipy.linalg.sqrtm(one.covariance @ other.covariance)
    expected = np.sum((one.mean - other.mean) ** 2) + np.trace(one.covariance + other.covariance - 2.0 * root.real)
    assert fid.frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert fid.frechet_distance(other, one) == pytest.approx(expected, rel=1e-9)
    assert 0.0 <= fid.frechet_distance(one, one) < 1e-9 * np.trace(one.covariance)
    still = gaussian(one.mean + 1.0, np.zeros((30, 30)))
    assert fid.frechet_distance(one, still) == pytest.approx(30.0 + np.trace(one.covariance))


def test_fewer_images_than_features():
    features, directions = 40, np.linalg.qr(np.random.RandomState(3).normal(size=(40, 40)))[0]

    def within(columns, variances):
        basis = directions[:, columns]
        return gaussian(np.zeros(features), basis @ np.diag(variances) @ basis.T, len(columns) + 1)

    # Common directions count by their roots, the others with their whole variance.
    one, other = within([0, 1, 2], [4.0, 9.0, 16.0]), within([1, 2, 3, 4], [25.0, 1.0, 7.0, 0.5])
    expected = (3.0 - 5.0) ** 2 + (4.0 - 1.0) ** 2 + 4.0 + 7.0 + 0.5
    assert fid.frechet_distance(one, other) == pytest.approx(expected, rel=1e-10)
    few = sample(4, 12, features)
    # Rounding counted as variance would show as sqrt(1e-16) of it here.
    assert fid.frechet_distance(few, few) < 1e-10 * np.trace(few.covariance)


def test_statistics_of_training_images_are_kept_and_damaged_ones_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen, kept = [], []
    extractor = types.SimpleNamespace(
        name="mean", features=lambda images: seen.append(len(images)) or images[:, 2, 2:5, 0]
    )
    status = types.SimpleNamespace(keep=kept.append, show_if_due=print, report=Report)
    task = types.SimpleNamespace(spec=data_spec("digits"), status=status)
    images = load_split(task.spec, "train").images[:, 2, 2:5, 0] / 255
    for damage in (None, None, lambda content: content[:-99], lambda content: b""):
        del seen[:]
        file = next(tmp_path.rglob("*.npz"), None)
        if damage:
            file.write_bytes(damage(file.read_bytes()))
        statistics = fid._real_statistics(task, extractor)
        np.testing.assert_allclose(statistics.covariance, np.cov(images, rowvar=False), rtol=1e-5)
        assert statistics.count == 1437 and sum(seen) == (0 if file and not damage else 1437)
    assert len(kept) == 3


def test_what_is_wrong_is_named():
    first = np.zeros((1, 3))
    for features in ([], [np.zeros((1, 4))], [np.zeros(3)], [np.full((1, 3), np.nan)]):
        with pytest.raises(ValueError, match=r"at least 2 images, there are 1|features \(.*\) are not .* all finite"):
            fid.statistics_of([first, *features])
    with pytest.raises(ValueError, match="2 and 3 features"):
        fid.frechet_distance(gaussian(np.zeros(2), np.eye(2)), gaussian(np.zeros(3), np.eye(3)))
    for name, message in (
        ("no_such_module:make", "name it as MODULE:FUNCTION.*No module named 'no_such_module'"),
        ("json:Circles", "no attribute 'Circles'"),
        ("json:JSONDecoder", "gives JSONDecoder; it must have a string `name`"),
    ):
        with pytest.raises(ValueError, match=message):
            fid.named_extractor(name)
