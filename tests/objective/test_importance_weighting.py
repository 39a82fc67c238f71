"""The streaming importance-weighted bound against a direct log-sum-exp."""

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from nvae_tf.objective import ImportanceWeighting, add_samples, check_importance_samples


def weighted(log_weights, numbers, samples_at_once=1):
    """All samples of a table `[samples, batch]`."""
    table = tf.constant(log_weights, tf.float32)
    count, batch_size = table.shape
    padded = tf.pad(table, [(0, samples_at_once), (0, 0)], constant_values=1e6)
    begun = ImportanceWeighting.begun(batch_size, len(numbers))

    def log_weights_of(indices):
        return tf.transpose(tf.gather(padded, indices))

    return add_samples(log_weights_of, begun, numbers, 0, count, samples_at_once)


def bound_of(log_weights, samples_at_once=1):
    return weighted(log_weights, [len(log_weights)], samples_at_once).bounds[:, 0]


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("offset", [0.0, -20_000.0, 300.0])
@pytest.mark.parametrize("samples_at_once", [1, 7])
def test_against_log_sum_exp(count, offset, samples_at_once):
    log_weights = 5.0 * np.random.default_rng(0).normal(size=(count, 3)) + offset
    found = bound_of(log_weights, samples_at_once)
    expected = -(scipy.special.logsumexp(np.float32(log_weights), axis=0) - np.log(count))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4)
    assert np.all(found <= -np.mean(log_weights, axis=0) + 1e-3)


@pytest.mark.parametrize("samples_at_once", [1, 4, 30])
def test_bounds_on_the_way_are_those_of_fewer_samples(samples_at_once):
    log_weights = 5.0 * np.random.default_rng(1).normal(size=(23, 3))
    numbers = [1, 4, 10, 23]
    found = weighted(log_weights, numbers, samples_at_once).bounds
    expected = [bound_of(log_weights[:number]) for number in numbers]
    np.testing.assert_allclose(found, np.transpose(expected), rtol=1e-5, atol=1e-5)


def test_samples_may_be_added_in_parts():
    log_weights = np.float32(5.0 * np.random.default_rng(2).normal(size=(23, 3)))
    weighting = ImportanceWeighting.begun(3, 2)
    for first, last in [(0, 5), (5, 6), (6, 23)]:
        indices = tf.range(23 + 4)
        table = tf.pad(tf.constant(log_weights), [(0, 4), (0, 0)])
        weighting = add_samples(
            lambda numbers: tf.transpose(tf.gather(table, tf.gather(indices, numbers))),  # noqa: B023
            weighting,
            [6, 23],
            first,
            last,
            samples_at_once=4,
        )
        assert np.all(np.isnan(weighting.bounds[:, 1])) == (last < 23)
    whole = weighted(log_weights, [6, 23])
    np.testing.assert_allclose(weighting.bounds, whole.bounds, rtol=1e-5)
    np.testing.assert_allclose(weighting.sums.effective_samples, whole.sums.effective_samples, rtol=1e-5)


def test_effective_samples():
    equal = weighted(np.full([20, 2], -3.0), [20], samples_at_once=3)
    np.testing.assert_allclose(equal.sums.effective_samples, [20.0, 20.0], rtol=1e-6)
    one_outweighs = weighted([[0.0], [-100.0], [-200.0]], [3])
    np.testing.assert_allclose(one_outweighs.sums.effective_samples, [1.0], rtol=1e-6)
    weights = np.exp(np.random.default_rng(3).normal(size=(50, 1)))
    some = weighted(np.log(weights), [50], samples_at_once=8)
    np.testing.assert_allclose(some.sums.effective_samples, [weights.sum() ** 2 / (weights**2).sum()], rtol=1e-5)


def test_one_sample_is_the_plain_bound():
    np.testing.assert_allclose(bound_of([[-3.0, 5.0]]), [3.0, -5.0])


def test_weights_of_very_different_size_in_any_order():
    for order in ([-500.0, 0.0, 500.0], [500.0, 0.0, -500.0], [0.0, 500.0, -500.0]):
        found = bound_of([[weight] for weight in order])
        np.testing.assert_allclose(found, [-(500.0 - np.log(3.0))], rtol=1e-6)


def test_each_sample_is_asked_for_once():
    asked = []

    def log_weights(indices):
        asked.extend(indices.numpy())
        return tf.zeros([2, 2])

    add_samples(log_weights, ImportanceWeighting.begun(2, 0), [], 0, 4, samples_at_once=2)
    assert asked == [0, 1, 2, 3]


def test_in_a_graph_with_any_number_of_images():
    @tf.function(input_signature=[tf.TensorSpec([4, None])])
    def bound(table):
        begun = ImportanceWeighting.begun(tf.shape(table)[1], 1)
        return add_samples(lambda indices: tf.transpose(tf.gather(table, indices)), begun, [4], 0, 4).bounds[:, 0]

    for size in (1, 3):
        table = np.random.default_rng(size).normal(size=(4, size)).astype(np.float32)
        expected = np.log(4.0) - scipy.special.logsumexp(table, axis=0)
        np.testing.assert_allclose(bound(table), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [0, -1])
def test_no_samples_are_refused(count):
    with pytest.raises(ValueError, match=f"importance_samples = {count}: at least 1"):
        check_importance_samples(count)
