"""Streaming mean and covariance against numpy's, and their file."""

import numpy as np
import pytest

from nvae_tf.evaluation.fid import (
    FeatureStatistics,
    RunningFeatureStatistics,
    load_statistics,
    save_statistics,
)

FINGERPRINT = "digits train 8x8 1,437 images inception-2015-12-05"


def of_batches(*batches):
    running = RunningFeatureStatistics()
    for batch in batches:
        running.add(batch)
    return running.statistics()


@pytest.fixture
def statistics():
    return of_batches(np.random.RandomState(1).normal(size=(9, 4)))


def test_uneven_batches_give_what_numpy_gives_for_all():
    features = np.random.RandomState(0).normal(size=(50, 6)) * [1, 2, 3, 4, 5, 6] + np.arange(6)
    features = features.astype(np.float32)
    found = of_batches(features[:1], features[1:20], features[20:20], features[20:49], features[49:])
    np.testing.assert_allclose(found.mean, features.astype(np.float64).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-12)
    assert found.count == 50
    assert found.mean.dtype == found.covariance.dtype == np.float64


def test_a_mean_far_from_zero_costs_no_accuracy():
    features = np.random.RandomState(0).normal(size=(4000, 3))
    shifted = features + 1e8  # sums of squares would lose all digits of a variance of 1
    found = of_batches(*np.split(shifted, 40))
    np.testing.assert_allclose(found.covariance, np.cov(features, rowvar=False), atol=1e-7)


def test_what_is_gathered_does_not_grow():
    running = RunningFeatureStatistics()
    sizes = set()
    for batch in np.random.RandomState(0).normal(size=(5, 10, 3)):
        running.add(batch)
        sizes.add(sum(np.size(value) for value in vars(running).values()))
    assert running.count == 50
    assert sizes == {1 + 3 + 9}


def test_what_is_no_feature_is_told():
    running = RunningFeatureStatistics()
    running.add(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="at least 2 images, there are 1"):
        running.statistics()
    with pytest.raises(ValueError, match="4 features an image, those before had 3"):
        running.add(np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        running.add(np.zeros(3))
    with pytest.raises(ValueError, match="from number 1 are not all finite"):
        running.add(np.full((1, 3), np.nan))


def test_a_file_gives_back_what_was_written_for_the_same_fingerprint_alone(tmp_path, statistics):
    path = tmp_path / "real.npz"
    assert load_statistics(path, FINGERPRINT) is None
    save_statistics(path, statistics, FINGERPRINT)
    found = load_statistics(path, FINGERPRINT)
    assert found.count == 9
    np.testing.assert_array_equal(found.mean, statistics.mean)
    np.testing.assert_array_equal(found.covariance, statistics.covariance)
    assert load_statistics(path, FINGERPRINT + " other") is None
    assert [file.name for file in tmp_path.iterdir()] == ["real.npz"]


def test_a_damaged_file_is_told_of(tmp_path, statistics):
    path = tmp_path / "real.npz"
    save_statistics(path, statistics, FINGERPRINT)
    content = path.read_bytes()
    flipped = bytearray(content)
    place = content.index(statistics.covariance.tobytes()) + 5
    flipped[place] ^= 0xFF
    for damaged in (content[: len(content) // 2], b"", b"no archive at all", bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"real\.npz: the statistics of features are damaged \(.*remove the file"):
            load_statistics(path, FINGERPRINT)
    save_statistics(path, FeatureStatistics(np.zeros(3), np.full((3, 3), np.nan), 5), FINGERPRINT)
    with pytest.raises(ValueError, match="not all finite"):
        load_statistics(path, FINGERPRINT)
