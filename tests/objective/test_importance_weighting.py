import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from nvae_tf.objective import ImportanceWeighting, add_samples


def weighted(log_weights, numbers, samples_at_once=1, ends=()):
    """All samples of a table `[samples, batch]`; `ends` are where some are added before the others."""
    table = tf.constant(log_weights, tf.float32)
    count, batch_size = table.shape
    padded = tf.pad(table, [(0, samples_at_once), (0, 0)], constant_values=1e6)
    weighting, first = ImportanceWeighting.begun(batch_size, len(numbers)), 0
    rows = lambda indices: tf.transpose(tf.gather(padded, indices))  # noqa: E731
    for end in (*ends, count):
        not_reached = np.isnan(weighting.bounds[0])
        assert np.array_equal(not_reached, np.array(numbers) > first)
        weighting = add_samples(rows, weighting, numbers, first, end, samples_at_once)
        first = end
    return weighting


def bound_of(log_weights):
    return -(scipy.special.logsumexp(np.float32(log_weights), axis=0) - np.log(len(log_weights)))


@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize("offset", [-20_000.0, 300.0])
@pytest.mark.parametrize("samples_at_once", [1, 7])
def test_against_log_sum_exp(count, offset, samples_at_once):
    log_weights = 5.0 * np.random.default_rng(0).normal(size=(count, 3)) + offset
    log_weights[:3, 0] = [0.0, -500.0, 500.0][:count]  # of very different size
    found = weighted(log_weights, [count], samples_at_once).bounds[:, 0]
    np.testing.assert_allclose(found, bound_of(log_weights), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("ends", [(), (5, 6)], ids=["at once", "in parts"])
@pytest.mark.parametrize("samples_at_once", [1, 4, 30])
def test_bounds_on_the_way_are_those_of_fewer_samples(samples_at_once, ends):
    log_weights = 5.0 * np.random.default_rng(1).normal(size=(23, 3))
    numbers = [1, 4, 6, 10, 23]
    found = weighted(log_weights, numbers, samples_at_once, ends)
    expected = [bound_of(log_weights[:number]) for number in numbers]
    np.testing.assert_allclose(found.bounds, np.transpose(expected), rtol=1e-5, atol=1e-5)
    weights = np.exp(log_weights)
    np.testing.assert_allclose(found.effective_samples, weights.sum(axis=0) ** 2 / (weights**2).sum(axis=0), rtol=1e-4)
