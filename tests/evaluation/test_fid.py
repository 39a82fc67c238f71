import types

import numpy as np
import pytest
import scipy.linalg

from nvae_tf.evaluation import fid
from tests.tiny_model import assert_same

FINGERPRINT = "digits train 8x8 1,437 images inception-2015-12-05"


def of_batches(*batches):
    return fid.statistics_of(batches)


@pytest.fixture
def statistics():
    return of_batches(np.random.RandomState(1).normal(size=(9, 4)))


def test_uneven_batches_give_what_numpy_gives_for_all():
    features = np.random.RandomState(0).normal(size=(50, 6)) * [1, 2, 3, 4, 5, 6] + np.arange(6)
    features = features.astype(np.float32)
    found = of_batches(features[:1], features[1:20], features[20:20], features[20:49], features[49:])
    np.testing.assert_allclose(found.mean, features.astype(np.float64).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-12)
    assert found.count == 50 and found.mean.dtype == found.covariance.dtype == np.float64
    # Sums of squares would lose all digits of a variance of 1.
    features = np.random.RandomState(0).normal(size=(4000, 3))
    far = of_batches(*np.split(features + 1e8, 40))
    np.testing.assert_allclose(far.covariance, np.cov(features, rowvar=False), atol=1e-7)


def test_a_file_gives_back_what_was_written_for_the_same_fingerprint_alone(tmp_path, statistics):
    path = tmp_path / "real.npz"
    assert fid.load_statistics(path, FINGERPRINT) is None
    fid.save_statistics(path, statistics, FINGERPRINT)
    found = fid.load_statistics(path, FINGERPRINT)
    assert found.count == 9
    assert_same(found, statistics)
    assert fid.load_statistics(path, FINGERPRINT + " other") is None
    assert [file.name for file in tmp_path.iterdir()] == ["real.npz"]


def test_a_damaged_file(tmp_path, statistics):
    path = tmp_path / "real.npz"
    fid.save_statistics(path, statistics, FINGERPRINT)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[content.index(statistics.covariance.tobytes()) + 5] ^= 0xFF
    for damaged in (content[: len(content) // 2], b"", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"real\.npz: the statistics of features are damaged \(.*remove the file"):
            fid.load_statistics(path, FINGERPRINT)
    fid.save_statistics(path, fid.FeatureStatistics(np.zeros(3), np.full((3, 3), np.nan), 5), FINGERPRINT)
    with pytest.raises(ValueError, match="not all finite"):
        fid.load_statistics(path, FINGERPRINT)


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
    # Squared, the smallest variance would vanish beside the largest.
    variances = 10.0 ** -np.arange(9)
    wide = within(range(9), variances)
    assert fid.frechet_distance(wide, within(range(9), 4.0 * variances)) == pytest.approx(variances.sum(), rel=1e-10)


def test_statistics_of_images_go_through_any_extractor():
    images, done = np.random.RandomState(0).uniform(size=(20, 6, 5, 3)), []
    extractor = types.SimpleNamespace(features=lambda images: images.mean(axis=(1, 2)))
    found = fid.image_statistics([images[:7], images[7:]], extractor, done.append)
    assert done == [7, 20]
    np.testing.assert_allclose(found.covariance, np.cov(images.mean(axis=(1, 2)), rowvar=False), rtol=1e-9)


def test_what_is_wrong_is_named():
    first, plain = np.zeros((1, 3)), gaussian(np.zeros(2), np.eye(2))
    for features, message in (
        ([], "at least 2 images, there are 1"),
        ([np.zeros((1, 4))], "4 features an image, those before had 3"),
        ([np.zeros(3)], r"shape \(3,\)"),
        ([np.full((1, 3), np.nan)], "from number 1 are not all finite"),
    ):
        with pytest.raises(ValueError, match=message):
            of_batches(first, *features)
    for other, message in (
        (gaussian(np.zeros(2), np.eye(2), count=1), "at least 2 images on each side, one has 1"),
        (gaussian(np.zeros(3), np.eye(3)), "2 and 3 features"),
        (gaussian([0.0, np.inf], np.eye(2)), "not all finite"),
    ):
        with pytest.raises(ValueError, match=message):
            fid.frechet_distance(plain, other)
    for name, message in (
        ("my_features", "name it as MODULE:FUNCTION"),
        ("no_such_module:make", "Python finds no module 'no_such_module'"),
        ("json:Circles", "json has no function 'Circles'"),
        ("json:JSONDecoder", "gives an object of type JSONDecoder; it must have a `name`"),
    ):
        with pytest.raises(ValueError, match=message):
            fid.named_extractor(name)
