"""The streaming importance-weighted bound against a direct log-sum-exp."""

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from nvae_tf.objective import importance_weighted_bound


def bound_of(log_weights):
    table = tf.constant(log_weights, tf.float32)
    return importance_weighted_bound(lambda index: table[index], len(log_weights), table.shape[1])


@pytest.mark.parametrize("count", [1, 2, 50])
@pytest.mark.parametrize("offset", [0.0, -20_000.0, 300.0])
def test_against_log_sum_exp(count, offset):
    log_weights = 5.0 * np.random.default_rng(0).normal(size=(count, 3)) + offset
    found = bound_of(log_weights)
    expected = -(scipy.special.logsumexp(np.float32(log_weights), axis=0) - np.log(count))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-4)
    assert np.all(found <= -np.mean(log_weights, axis=0) + 1e-3)


def test_one_sample_is_the_plain_bound():
    found = bound_of([[-3.0, 5.0]])
    np.testing.assert_allclose(found, [3.0, -5.0])


def test_weights_of_very_different_size_in_any_order():
    for order in ([-500.0, 0.0, 500.0], [500.0, 0.0, -500.0], [0.0, 500.0, -500.0]):
        found = bound_of([[weight] for weight in order])
        np.testing.assert_allclose(found, [-(500.0 - np.log(3.0))], rtol=1e-6)


def test_each_sample_is_asked_for_once():
    asked = []

    def log_weight(index):
        asked.append(int(index))
        return tf.zeros([2])

    importance_weighted_bound(log_weight, 4, 2)
    assert asked == [0, 1, 2, 3]


def test_in_a_graph_with_any_number_of_images():
    @tf.function(input_signature=[tf.TensorSpec([4, None])])
    def bound(table):
        return importance_weighted_bound(lambda index: table[index], 4, tf.shape(table)[1])

    for size in (1, 3):
        table = np.random.default_rng(size).normal(size=(4, size)).astype(np.float32)
        expected = np.log(4.0) - scipy.special.logsumexp(table, axis=0)
        np.testing.assert_allclose(bound(table), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [0, -1])
def test_no_samples_are_refused(count):
    with pytest.raises(ValueError, match=f"importance_samples = {count}: at least 1"):
        importance_weighted_bound(lambda index: tf.zeros([2]), count, 2)
