"""The mass of the mixture of logistics: against float64 formulas, its sum, its quirks, its stability."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.distributions import DiscretizedLogisticMixture
from nvae_tf.distributions.mixture_layout import num_mixture_parameters


def log_sigmoid(value):
    return -np.logaddexp(0, -value)


def logistic_log_mass(value, mean, log_scale, num_bits, exact_edges):
    """One logistic's log-mass in one bin, from the textbook formulas in float64."""
    half_width, scale = 1 / (2**num_bits - 1), np.exp(log_scale)
    center, half = (value - mean) / scale, half_width / scale
    if value < (-1 + half_width if exact_edges else -0.999):
        return log_sigmoid(center + half)
    if value > (1 - half_width if exact_edges else 0.99):
        return log_sigmoid(half - center)
    upper, lower = log_sigmoid(half - abs(center)), log_sigmoid(-half - abs(center))
    log_mass = upper + np.log1p(-np.exp(lower - upper))
    if log_mass < np.log(1e-5) and not exact_edges:
        return log_sigmoid(center) + log_sigmoid(-center) - log_scale + np.log(2 * half_width)
    return log_mass


def rgb_log_prob(image, parameters, num_mixtures, num_bits, exact_edges):
    """Log-mass of one RGB pixel, reading the published layout number by number."""
    r, g, b = 2 * np.float64(image) - 1
    logits, parameters = parameters[:num_mixtures], parameters[num_mixtures:].reshape(3, 3, num_mixtures)
    log_masses = logits - np.log(np.sum(np.exp(logits)))
    for m in range(num_mixtures):
        (mu_r, s_r, c0), (mu_g, s_g, c1), (mu_b, s_b, c2) = parameters[:, :, m]
        c0, c1, c2 = np.tanh([c0, c1, c2])
        log_masses[m] += logistic_log_mass(r, mu_r, max(s_r, -7), num_bits, exact_edges)
        log_masses[m] += logistic_log_mass(g, mu_g + c0 * r, max(s_g, -7), num_bits, exact_edges)
        log_masses[m] += logistic_log_mass(b, mu_b + c1 * r + c2 * g, max(s_b, -7), num_bits, exact_edges)
    return np.logaddexp.reduce(log_masses)


def random_parameters(shape, channels, num_mixtures, seed=0, log_scale_range=(-7.5, 4)):
    """Network outputs whose means leave [-1, 1] and whose log-scales fall below their floor now and then."""
    generator = np.random.default_rng(seed)
    parameters = generator.normal(0, 1, [*shape, num_mixture_parameters(channels, num_mixtures)])
    blocks = parameters[..., num_mixtures:].reshape(*shape, -1, num_mixtures)
    rows = slice(1, None, 3) if channels == 3 else slice(1, 2 * channels, 2)
    blocks[..., rows, :] = generator.uniform(*log_scale_range, blocks[..., rows, :].shape)
    return parameters.astype(np.float32)


def all_pixels(channels, num_bits):
    levels = np.arange(2**num_bits) / (2**num_bits - 1)
    return np.array(list(itertools.product(levels, repeat=channels)), np.float32)


@pytest.mark.parametrize("exact_edges", [False, True])
@pytest.mark.parametrize("num_bits", [5, 8])
def test_rgb_matches_the_formula_in_float64(num_bits, exact_edges):
    parameters = random_parameters([400], 3, 4)
    generator = np.random.default_rng(1)
    images = (generator.integers(0, 2**num_bits, [400, 3]) / (2**num_bits - 1)).astype(np.float32)
    images[:60] = np.array([0, 2**num_bits - 2, 2**num_bits - 1])[generator.integers(0, 3, [60, 3])] / (2**num_bits - 1)
    mixture = DiscretizedLogisticMixture.from_parameters(parameters, 3, 4, num_bits=num_bits, exact_edges=exact_edges)
    expected = [
        rgb_log_prob(*pair, 4, num_bits, exact_edges)
        for pair in zip(images, parameters.astype(np.float64), strict=True)
    ]
    np.testing.assert_allclose(mixture.log_prob(images), expected, rtol=2e-5, atol=5e-4)


def test_coefficients_of_four_channels_are_the_lower_triangle():
    triangle = np.array([[0, 0, 0, 0], [0.9, 0, 0, 0], [-0.5, 0.4, 0, 0], [0.3, -0.8, 0.6, 0]])
    rows = triangle[np.tril_indices(4, -1)][:, np.newaxis].astype(np.float32)
    means, log_scales = np.array([0.1, -0.2, 0.3, -0.4]), np.array([-2.0, -1.5, -1.0, -0.5])
    mixture = DiscretizedLogisticMixture(
        tf.zeros([1]), means[:, np.newaxis], log_scales[:, np.newaxis], rows, num_bits=2, exact_edges=True
    )
    pixels = all_pixels(4, 2)
    signed = 2 * pixels.astype(np.float64) - 1
    conditional_means = means + signed @ triangle.T
    expected = [
        sum(logistic_log_mass(*channel, 2, True) for channel in zip(value, mean, log_scales, strict=True))
        for value, mean in zip(signed, conditional_means, strict=True)
    ]
    np.testing.assert_allclose(mixture.log_prob(pixels), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("exact_edges", [False, True])
def test_gradient_matches_finite_differences(exact_edges):
    parameters = random_parameters([20], 3, 2, seed=3, log_scale_range=(-5, 3))
    images = all_pixels(3, 5)[np.random.default_rng(4).integers(0, 32**3, 20)]
    with tf.GradientTape() as tape:
        variables = tf.constant(parameters)
        tape.watch(variables)
        mixture = DiscretizedLogisticMixture.from_parameters(variables, 3, 2, num_bits=5, exact_edges=exact_edges)
        log_prob = mixture.log_prob(images)
    gradient = tape.gradient(log_prob, variables).numpy()
    expected = np.zeros_like(gradient)
    for pixel, column in np.ndindex(parameters.shape):
        step = np.eye(parameters.shape[1])[column] * 1e-5
        up, down = (
            rgb_log_prob(images[pixel], parameters[pixel].astype(np.float64) + sign * step, 2, 5, exact_edges)
            for sign in (1, -1)
        )
        expected[pixel, column] = (up - down) / 2e-5
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("channels", "num_bits"), [(1, 1), (1, 8), *itertools.product((1, 2, 3, 4), (3, 5))])
def test_exact_masses_sum_to_one(channels, num_bits):
    pixels = all_pixels(channels, num_bits)[:, np.newaxis]
    # Four channels of five bits have a million values.
    count = min(60, max(2, 2**19 // len(pixels)))
    parameters = random_parameters([count], channels, 3, seed=channels)
    mixture = DiscretizedLogisticMixture.from_parameters(parameters, channels, 3, num_bits=num_bits, exact_edges=True)
    masses = np.exp(mixture.log_prob(pixels).numpy().astype(np.float64))
    np.testing.assert_allclose(masses.sum(axis=0), np.ones(count), atol=2e-5)


@pytest.mark.parametrize(("exact_edges", "total"), [(False, 1.47), (True, 1.0)])
def test_published_eight_bit_mass_exceeds_one(exact_edges, total):
    """Level 254 lies past the published edge and takes the whole upper tail as well."""
    mixture = DiscretizedLogisticMixture.from_parameters(tf.constant([0.0, 0.99, -3.0]), 1, 1, exact_edges=exact_edges)
    masses = np.exp(mixture.log_prob(all_pixels(1, 8)))
    np.testing.assert_allclose(masses.sum(), total, atol=5e-3)


def test_published_edges_are_exact_below_eight_bits():
    parameters = random_parameters([50], 1, 3, log_scale_range=(-3, 1))
    published, exact = (
        DiscretizedLogisticMixture.from_parameters(parameters, 1, 3, num_bits=5, exact_edges=exact_edges)
        for exact_edges in (False, True)
    )
    pixels = all_pixels(1, 5)[:, np.newaxis]
    np.testing.assert_allclose(published.prob(pixels), exact.prob(pixels), atol=2e-6)


@pytest.mark.parametrize("exact_edges", [False, True])
@pytest.mark.parametrize("num_bits", [1, 5, 8])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_extreme_parameters_stay_finite(channels, num_bits, exact_edges):
    """Every level against every pairing of extremes, values and all gradients."""
    extremes = [[-100.0, 100.0], [-1e4, -1.0, 0.0, 0.99, 1e4], [-7.0, 0.0, 20.0, 200.0], [-1.0, 1.0]]
    logit, mean, log_scale, coefficient = np.array(list(itertools.product(*extremes)), np.float32).T[..., np.newaxis]
    variables = [
        tf.constant(np.stack([logit, -logit], axis=-1)[:, 0]),
        tf.constant(np.stack([mean, mean * 0 + 0.5], axis=-1).repeat(channels, axis=1)),
        tf.constant(np.stack([log_scale, log_scale], axis=-1).repeat(channels, axis=1)),
        tf.constant(np.stack([coefficient] * 2, axis=-1).repeat(channels * (channels - 1) // 2, axis=1)),
        tf.constant(all_pixels(1, num_bits)[:, np.newaxis].repeat(channels, axis=-1)),
    ]
    with tf.GradientTape() as tape:
        tape.watch(variables)
        mixture = DiscretizedLogisticMixture(*variables[:4], num_bits=num_bits, exact_edges=exact_edges)
        log_prob = mixture.log_prob(variables[4])
    assert log_prob.shape == [2**num_bits, 80]
    assert np.all(np.isfinite(log_prob))
    for gradient in tape.gradient(log_prob, variables, unconnected_gradients="zero"):
        assert np.all(np.isfinite(gradient))


def test_batch_and_event_shapes():
    mixture = DiscretizedLogisticMixture.from_parameters(tf.zeros([5, 8, 4, 30]), 3, 3)
    assert (mixture.batch_shape, mixture.event_shape) == ([5, 8, 4], [3])
    assert mixture[0].batch_shape == [8, 4]
    assert mixture.log_prob(tf.zeros([5, 8, 4, 3])).shape == [5, 8, 4]


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="num_bits must be from 1 to 8, got 9"):
        DiscretizedLogisticMixture.from_parameters(tf.zeros([30]), 3, 3, num_bits=9)
    with pytest.raises(ValueError, match="3 channels need coefficients of shape"):
        DiscretizedLogisticMixture(tf.zeros([2]), tf.zeros([3, 2]), tf.zeros([3, 2]), tf.zeros([1, 2]))
