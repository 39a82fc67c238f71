import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf.distributions.soft_clamped_normal import soft_clamped_normal

RAW = np.random.default_rng(0).normal(0, 4, [3, 2, 3, 3, 5]).astype(np.float32)


def location_and_scale(mean, log_scale, temperature=1.0):
    mean, log_scale = mean.astype(np.float64), log_scale.astype(np.float64)
    return 5 * np.tanh(mean / 5), (np.exp(5 * np.tanh(log_scale / 5)) + 0.01) * temperature


@pytest.mark.parametrize("temperature", [0.0, 1, tf.constant(0.6)])
@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float32, tf.float64])
def test_any_type_is_computed_in_float32_and_the_temperature_multiplies_the_scale_only(dtype, temperature):
    mean, log_scale = tf.cast(RAW[0], dtype), tf.cast(RAW[1], dtype)
    normal = soft_clamped_normal(tf.concat([mean, log_scale], axis=-1), temperature)
    location, scale = location_and_scale(mean.numpy(), log_scale.numpy(), float(temperature))
    assert normal.dtype == tf.float32
    np.testing.assert_allclose(normal.mean(), location, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(normal.stddev(), scale, rtol=1e-5)


def test_log_prob_matches_the_formula():
    mean, log_scale, value = RAW
    location, scale = location_and_scale(mean, log_scale)
    expected = -0.5 * ((value - location) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    normal = soft_clamped_normal(np.concatenate([mean, log_scale], axis=-1))
    np.testing.assert_allclose(normal.log_prob(value), expected, rtol=2e-5, atol=2e-5)


def test_extreme_parameters_have_finite_kl_and_gradients():
    extremes = tf.constant(np.array(np.meshgrid(*[[-1e30, -20.0, 0.0, 20.0, 1e30]] * 4)).reshape(4, -1).T, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(extremes)
        q, p = (soft_clamped_normal(parameters) for parameters in tf.split(extremes, 2, axis=-1))
        divergence = tfp.distributions.kl_divergence(q, p)
    assert np.all(np.isfinite(divergence)) and np.all(divergence >= 0)
    assert np.all(np.isfinite(tape.gradient(divergence, extremes)))
