"""Samples and mean of the mixture of logistics: frequencies, the chain over channels, temperature, seeds."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.distributions import DiscretizedLogisticMixture

NUM_SAMPLES = 100_000


def one_channel(temperature=1.0):
    """Two well separated logistics, one of them past the upper edge of the range."""
    return DiscretizedLogisticMixture(
        mixture_logits=tf.constant([0.5, -0.3]),
        means=tf.constant([[-0.4, 1.1]]),
        log_scales=tf.constant([[-1.5, -1.2]]),
        coefficients=tf.zeros([0, 2]),
        temperature=temperature,
        num_bits=3,
        exact_edges=True,
    )


def sharp_rgb():
    """Almost deterministic given the component, which red's mean tells: -0.5 or 0.5."""
    return DiscretizedLogisticMixture(
        mixture_logits=tf.constant([0.0, 1.0]),
        means=tf.constant([[-0.5, 0.5], [0.1, 0.7], [-0.2, 0.2]]),
        log_scales=tf.fill([3, 2], -7.0),
        coefficients=tf.constant([[0.8, 0.9], [-0.5, 0.3], [0.4, -0.6]]),
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_rounded_samples_have_the_frequencies_of_the_mass(temperature):
    """The only test that ties `sample` to `log_prob` at any temperature: both must narrow alike."""
    mixture = one_channel(temperature)
    levels = np.rint(mixture.sample(NUM_SAMPLES, seed=(1, 2)).numpy()[:, 0] * 7).astype(int)
    frequencies = np.bincount(levels, minlength=8) / NUM_SAMPLES
    masses = mixture.prob(np.arange(8, dtype=np.float32)[:, np.newaxis] / 7).numpy()
    deviations = np.sqrt(masses * (1 - masses) / NUM_SAMPLES)
    assert np.all(np.abs(frequencies - masses) < 4.5 * deviations + 1e-5)


def test_samples_follow_the_chain_over_channels():
    samples = 2 * sharp_rgb().sample(4000, seed=(3, 4)).numpy() - 1
    second = samples[:, 0] > 0
    np.testing.assert_allclose(second.mean(), np.exp(1) / (1 + np.exp(1)), atol=0.03)
    mu_r, mu_g, mu_b = (np.where(second, high, low) for low, high in [(-0.5, 0.5), (0.1, 0.7), (-0.2, 0.2)])
    c0, c1, c2 = (np.where(second, high, low) for low, high in [(0.8, 0.9), (-0.5, 0.3), (0.4, -0.6)])
    expected_g = np.clip(mu_g + c0 * samples[:, 0], -1, 1)
    assert np.any(mu_g + c0 * samples[:, 0] > 1)
    np.testing.assert_allclose(samples[:, 0], mu_r, atol=0.02)
    np.testing.assert_allclose(samples[:, 1], expected_g, atol=0.02)
    np.testing.assert_allclose(samples[:, 2], mu_b + c1 * samples[:, 0] + c2 * samples[:, 1], atol=0.02)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_mean_is_the_clamped_chain_of_weighted_parameters(temperature):
    mixture = sharp_rgb().copy(temperature=temperature)
    weights = np.exp(np.array([0.0, 1.0]) / temperature)
    weights /= weights.sum()
    mu_r, mu_g, mu_b = np.array([[-0.5, 0.5], [0.1, 0.7], [-0.2, 0.2]]) @ weights
    c0, c1, c2 = np.array([[0.8, 0.9], [-0.5, 0.3], [0.4, -0.6]]) @ weights
    r = np.clip(mu_r, -1, 1)
    g = np.clip(mu_g + c0 * r, -1, 1)
    b = np.clip(mu_b + c1 * r + c2 * g, -1, 1)
    np.testing.assert_allclose(mixture.mean(), [(r + 1) / 2, (g + 1) / 2, (b + 1) / 2], rtol=1e-5)


def test_temperature_narrows_one_logistic_in_proportion():
    def spread(temperature):
        mixture = DiscretizedLogisticMixture(
            tf.zeros([1]), tf.zeros([1, 1]), tf.fill([1, 1], -4.0), tf.zeros([0, 1]), temperature
        )
        return np.std(mixture.sample(20_000, seed=(5, 6)))

    # A logistic of scale s has standard deviation pi s / sqrt 3; pixel values halve it.
    np.testing.assert_allclose(spread(1.0), np.pi * np.exp(-4) / np.sqrt(3) / 2, rtol=0.03)
    np.testing.assert_allclose(spread(0.25) / spread(1.0), 0.25, rtol=1e-4)


def test_temperature_may_be_a_tensor_and_one_a_pixel():
    parameters = np.random.default_rng(0).normal(size=[2, 4, 4, 20]).astype(np.float32)
    temperatures = tf.constant([0.5, 2.0])[:, tf.newaxis, tf.newaxis]
    both = DiscretizedLogisticMixture.from_parameters(parameters, 3, 2, temperatures)
    assert both.batch_shape == [2, 4, 4]
    image = np.full([2, 4, 4, 3], 0.2, np.float32)
    for index, temperature in enumerate([0.5, 2.0]):
        single = DiscretizedLogisticMixture.from_parameters(parameters[index], 3, 2, temperature)
        np.testing.assert_allclose(both.log_prob(image)[index], single.log_prob(image[index]), rtol=1e-6)
        np.testing.assert_allclose(both.mean()[index], single.mean(), rtol=1e-6)


def test_extreme_parameters_give_samples_in_range():
    extremes = np.array([-1e4, -1.0, 1.0, 1e4], np.float32)
    means = tf.constant(np.tile(extremes[:, np.newaxis, np.newaxis], [1, 3, 2]))
    for log_scale in (-7.0, 20.0):
        mixture = DiscretizedLogisticMixture(
            tf.constant([-100.0, 100.0]), means, tf.fill([4, 3, 2], log_scale), tf.ones([4, 3, 2])
        )
        for images in (mixture.sample(50, seed=(1, 1)), mixture.mean()):
            assert np.all(np.isfinite(images)) and np.min(images) >= 0 and np.max(images) <= 1


def test_seeds_reproduce_in_eager_mode_and_graphs():
    parameters = tf.constant(np.random.default_rng(0).normal(size=[2, 4, 4, 20]), tf.float32)

    def draw(seed):
        return DiscretizedLogisticMixture.from_parameters(parameters, 3, 2).sample(3, seed=seed)

    images = draw((1, 2))
    assert images.shape == [3, 2, 4, 4, 3]
    np.testing.assert_array_equal(images, draw((1, 2)))
    assert np.mean(images != draw((1, 3))) > 0.5
    assert np.mean(images[0] != images[1]) > 0.5

    @tf.function
    def draw_twice(seed):
        return draw(seed), draw(seed)

    for drawn in draw_twice(tf.constant([1, 2])):
        np.testing.assert_allclose(images, drawn, rtol=1e-4, atol=1e-5)


def test_works_under_xla():
    """XLA draws other numbers from a seed, but compiles everything, and agrees on what is not random."""
    parameters = tf.constant(np.random.default_rng(0).normal(size=[2, 4, 4, 20]), tf.float32)
    image = tf.random.stateless_uniform([2, 4, 4, 3], seed=(1, 2))

    def evaluate(seed):
        mixture = DiscretizedLogisticMixture.from_parameters(parameters, 3, 2)
        return mixture.log_prob(image), mixture.mean(), mixture.sample(seed=seed)

    compiled, eager = tf.function(evaluate, jit_compile=True)(tf.constant([1, 2])), evaluate((1, 2))
    np.testing.assert_allclose(compiled[0], eager[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(compiled[1], eager[1], rtol=1e-5, atol=1e-6)
    assert np.all(np.isfinite(compiled[2])) and np.min(compiled[2]) >= 0 and np.max(compiled[2]) <= 1
