"""Batch normalization against numpy, its gradient against autodiff, and when running statistics change."""

import numpy as np
import pytest

from nvae_tf.layers import ForwardPass, StackedBatchNormalization

SHAPE = (4, 3, 5, 6)


@pytest.fixture
def layer(shaken):
    return shaken(StackedBatchNormalization(1, 6))


@pytest.fixture
def images(normal):
    return 3.0 * normal(*SHAPE) + 2.0


def normalized(images, gamma, beta, mean, variance):
    return (images - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def test_training_uses_the_biased_variance_and_running_statistics_follow_the_unbiased_one(layer, images):
    gamma, beta, mean_before, variance_before = (weight.numpy()[0] for weight in layer.weights)
    mean, biased = (of(images, axis=(0, 1, 2), dtype=np.float64) for of in (np.mean, np.var))
    forward = ForwardPass(training=True)
    outputs = layer.single(images, forward)
    np.testing.assert_allclose(outputs, normalized(images, gamma, beta, mean, biased), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(layer.moving_mean[0], mean_before)
    np.testing.assert_array_equal(layer.moving_variance[0], variance_before)
    forward.commit()
    np.testing.assert_allclose(layer.moving_mean[0], 0.95 * mean_before + 0.05 * mean, rtol=1e-4)
    unbiased = biased * 60 / 59
    np.testing.assert_allclose(layer.moving_variance[0], 0.95 * variance_before + 0.05 * unbiased, rtol=1e-4)


def test_inference_uses_the_running_statistics_and_leaves_them(layer, images):
    expected = normalized(images, *(weight.numpy()[0] for weight in layer.weights))
    forward = ForwardPass()
    np.testing.assert_allclose(layer.single(images, forward), expected, rtol=1e-4, atol=1e-5)
    assert forward.updates == []


def test_where_the_weights_start():
    layer = StackedBatchNormalization(2, 6)
    starts = {"gamma": 1.0, "beta": 0.0, "moving_mean": 0.0, "moving_variance": 1.0}
    assert [weight.name for weight in layer.weights] == list(starts)
    assert [weight.name for weight in layer.trainable_weights] == ["gamma", "beta"]
    for weight, start in zip(layer.weights, starts.values(), strict=True):
        np.testing.assert_array_equal(weight, np.full((2, 6), start))
