import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.config import LIKELIHOODS
from nvae_tf.distributions.image_likelihood import ImageLikelihood


@pytest.fixture(params=[(name, channels) for name in LIKELIHOODS for channels in (1, 2, 3, 4)])
def named(request):
    likelihood = ImageLikelihood(*request.param, num_mixtures=3, num_bits=5)
    shape = [2, 4, 6, likelihood.num_parameters]
    return likelihood, np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_events_are_whole_images(named):
    likelihood, parameters = named
    shape = [4, 6, likelihood.channels]
    distribution = likelihood.distribution(parameters)
    assert (distribution.batch_shape, distribution.event_shape) == ([2], shape)
    images = distribution.sample(seed=(1, 2))
    assert distribution.log_prob(images).shape == [2]
    for values in (images, distribution.sample(5, seed=1), distribution.mean()):
        assert values.shape[-4:] == [2, *shape] and values.dtype == tf.float32
        assert np.min(values) >= 0 and np.max(values) <= 1
    assert distribution.variance().shape == images.shape and np.min(distribution.variance()) > 0.0
    np.testing.assert_array_equal(images, distribution.sample(seed=(1, 2)))


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_half_precision_is_computed_in_float32(named, dtype):
    likelihood, parameters = named
    images = tf.round(tf.random.stateless_uniform([2, 4, 6, likelihood.channels], seed=(1, 1)))
    half = tf.cast(parameters, dtype)
    log_prob = likelihood.distribution(half).log_prob(tf.cast(images, dtype))
    assert log_prob.dtype == tf.float32
    np.testing.assert_array_equal(log_prob, likelihood.distribution(tf.cast(half, tf.float32)).log_prob(images))


def test_bernoulli_mean_is_the_sigmoid_of_logits_and_normal_a_density_on_the_signed_scale():
    logits = np.array([-100.0, -1.0, 0.0, 2.0], np.float32).reshape(1, 2, 2, 1)
    mean = ImageLikelihood("bernoulli", 1).distribution(logits).mean()
    np.testing.assert_allclose(mean, 1 / (1 + np.exp(-logits.astype(np.float64))), rtol=1e-6, atol=1e-30)
    # One gray-alpha pixel: two means, then two log-sigmas; no factor for the change of scale.
    parameters = np.array([0.5, 7.0, -1.0, -2.0]).reshape(1, 1, 1, 4)
    images = np.array([0.6, 0.9]).reshape(1, 1, 1, 2)
    location, scale = 5 * np.tanh(parameters[..., :2] / 5), np.exp(5 * np.tanh(parameters[..., 2:] / 5)) + 0.01
    deviation = (2 * images - 1 - location) / scale
    expected = np.sum(-0.5 * deviation**2 - np.log(scale * np.sqrt(2 * np.pi)))
    distribution = ImageLikelihood("normal", 2).distribution(tf.constant(parameters, tf.float32))
    np.testing.assert_allclose(distribution.log_prob(tf.constant(images, tf.float32)), [expected], rtol=1e-5)
    np.testing.assert_allclose(np.ravel(distribution.mean()), [(1 + location[0, 0, 0, 0]) / 2, 1.0], rtol=1e-6)
    np.testing.assert_allclose(distribution.variance(), np.square(scale / 2), rtol=1e-5)
