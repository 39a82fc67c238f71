"""Batch normalization against numpy, its gradient against autodiff, and when running statistics change."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.layers import ForwardPass, StackedBatchNormalization

SHAPE = (4, 3, 5, 6)


def normalized(images, gamma, beta, mean, variance):
    return (images - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def of_batch(images):
    return images.mean(axis=(0, 1, 2), dtype=np.float64), images.var(axis=(0, 1, 2), dtype=np.float64)


def test_training_normalizes_with_the_biased_variance(normal, shaken):
    layer = shaken(StackedBatchNormalization(1, 6))
    images = 3.0 * normal(*SHAPE) + 2.0
    expected = normalized(images, layer.gamma.numpy()[0], layer.beta.numpy()[0], *of_batch(images))
    outputs = layer.single(images, ForwardPass(training=True))
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


def test_running_statistics_follow_the_unbiased_variance_after_the_commit(normal, shaken):
    layer = shaken(StackedBatchNormalization(1, 6))
    mean_before, variance_before = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    images = 3.0 * normal(*SHAPE) + 2.0
    forward = ForwardPass(training=True)
    layer.single(images, forward)
    np.testing.assert_array_equal(layer.moving_mean, mean_before)
    np.testing.assert_array_equal(layer.moving_variance, variance_before)
    forward.commit()
    mean, biased = of_batch(images)
    unbiased = biased * 60 / 59
    np.testing.assert_allclose(layer.moving_mean, 0.95 * mean_before + 0.05 * mean, rtol=1e-4)
    np.testing.assert_allclose(layer.moving_variance, 0.95 * variance_before + 0.05 * unbiased, rtol=1e-4)


def test_inference_uses_the_running_statistics_and_leaves_them(normal, shaken):
    layer = shaken(StackedBatchNormalization(1, 6))
    images = normal(*SHAPE)
    variables = (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
    expected = normalized(images, *(variable.numpy()[0] for variable in variables))
    forward = ForwardPass()
    np.testing.assert_allclose(layer.single(images, forward), expected, rtol=1e-4, atol=1e-5)
    assert forward.updates == []


def plain_composition(images, gamma, beta):
    """Written with the differentiable primitives of textbooks."""
    mean = tf.reduce_mean(images, axis=(0, 1, 2))
    variance = tf.reduce_mean(tf.square(images - mean), axis=(0, 1, 2))
    return gamma * (images - mean) / tf.sqrt(variance + 1e-5) + beta


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_the_gradient_in_training(compiled, normal, shaken):
    layer = shaken(StackedBatchNormalization(1, 6))
    images, upstream = tf.constant(3.0 * normal(*SHAPE) + 2.0), tf.constant(normal(*SHAPE))
    gamma, beta = layer.gamma.value, layer.beta.value

    def gradients(normalize):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = normalize()
        return tape.gradient(outputs, [images, gamma, beta], output_gradients=upstream)

    def fused():
        return gradients(lambda: layer.single(images, ForwardPass(training=True)))

    found = tf.function(fused)() if compiled else fused()
    expected = gradients(lambda: plain_composition(images, gamma[0], beta[0]))
    for value, target in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, target, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_a_stack_equals_separate_layers(training, normal, shaken):
    stack = shaken(StackedBatchNormalization(3, 6))
    images = [normal(*SHAPE) for _ in range(3)]
    forward = ForwardPass(training)
    with stack.unstacked(forward) as layers:
        outputs = [layer(image) for layer, image in zip(layers, images, strict=True)]
    singles = [StackedBatchNormalization(1, 6) for _ in range(3)]
    for index, single in enumerate(singles):
        for mine, theirs in zip(single.weights, stack.weights, strict=True):
            mine.assign(theirs[index : index + 1])
        own = ForwardPass(training)
        np.testing.assert_array_equal(outputs[index], single.single(images[index], own))
        own.commit()
    forward.commit()
    for name in ("moving_mean", "moving_variance"):
        separate = np.concatenate([getattr(single, name).numpy() for single in singles])
        np.testing.assert_allclose(getattr(stack, name), separate, rtol=1e-6)


def test_where_the_weights_start():
    layer = StackedBatchNormalization(2, 6)
    starts = {weight.name: weight.numpy() for weight in layer.weights}
    assert {name: value.min() for name, value in starts.items()} == {
        "gamma": 1.0,
        "beta": 0.0,
        "moving_mean": 0.0,
        "moving_variance": 1.0,
    }
    assert all(value.min() == value.max() and value.shape == (2, 6) for value in starts.values())
    assert [weight.name for weight in layer.trainable_weights] == ["gamma", "beta"]


def test_statistics_stay_exact_in_half_precision(normal):
    layer = StackedBatchNormalization(1, 6, dtype="mixed_bfloat16")
    images = tf.cast(normal(*SHAPE), tf.bfloat16)
    forward = ForwardPass(training=True)
    outputs = layer.single(images, forward)
    forward.commit()
    mean, _ = of_batch(tf.cast(images, tf.float32).numpy())
    assert outputs.dtype == tf.bfloat16
    np.testing.assert_allclose(layer.moving_mean.numpy()[0], 0.05 * mean, rtol=1e-3, atol=1e-6)
