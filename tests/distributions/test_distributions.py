import itertools

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf.config import LIKELIHOODS
from nvae_tf.distributions import discretized_logistic_mixture as module
from nvae_tf.distributions.discretized_logistic_mixture import DiscretizedLogisticMixture
from nvae_tf.distributions.image_likelihood import ImageLikelihood
from nvae_tf.distributions.soft_clamped_normal import soft_clamped_normal

NUM_SAMPLES = 100_000


@pytest.mark.parametrize(
    ("channels", "mixtures", "means", "log_scales", "coefficients"),
    [
        (1, 1, [[1]], [[2]], np.zeros([0, 1])),
        (4, 1, [[1], [3], [5], [7]], [[2], [4], [6], [8]], [[9], [10], [11], [12], [13], [14]]),
        (5, 1, [[1], [3], [5], [7], [9]], [[2], [4], [6], [8], [10]], np.arange(11, 21)[:, np.newaxis]),
    ],
)
def test_the_layout_of_the_parameters(channels, mixtures, means, log_scales, coefficients):
    width = mixtures * {1: 3, 2: 6, 3: 10, 4: 15, 5: 21}[channels]
    assert module.num_mixture_parameters(channels, mixtures) == width
    parameters = np.arange(width, dtype=np.float32) / 20
    *split, tanh = module.split_mixture_parameters(parameters, channels, mixtures)
    for found, expected in zip(split, (np.arange(mixtures), means, log_scales), strict=True):
        np.testing.assert_allclose(found * 20, expected, rtol=1e-5)
    np.testing.assert_allclose(np.arctanh(tanh) * 20, coefficients, rtol=1e-5)


def mixture_of(parameters, channels, mixtures, **settings):
    return DiscretizedLogisticMixture(*module.split_mixture_parameters(parameters, channels, mixtures), **settings)


def log_sigmoid(value):
    return -np.logaddexp(0, -value)


def logistic_log_mass(value, mean, log_scale, num_bits, exact_edges):
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
    parameters = generator.normal(0, 1, [*shape, module.num_mixture_parameters(channels, num_mixtures)])
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
    mixture = mixture_of(parameters, 3, 4, num_bits=num_bits, exact_edges=exact_edges)
    pairs = zip(images, parameters.astype(np.float64), strict=True)
    expected = [rgb_log_prob(*pair, 4, num_bits, exact_edges) for pair in pairs]
    np.testing.assert_allclose(mixture.log_prob(images), expected, rtol=2e-5, atol=5e-4)


@pytest.mark.parametrize(("channels", "num_bits"), [(1, 1), (1, 8), (1, 5), (2, 5), (3, 5), (4, 3), (9, 1)])
def test_exact_masses_sum_to_one(channels, num_bits):
    pixels = all_pixels(channels, num_bits)[:, np.newaxis]
    count = min(60, max(2, 2**19 // len(pixels)))
    parameters = random_parameters([count], channels, 3, seed=channels)
    mixture = mixture_of(parameters, channels, 3, num_bits=num_bits, exact_edges=True)
    masses = np.exp(mixture.log_prob(pixels).numpy().astype(np.float64))
    np.testing.assert_allclose(masses.sum(axis=0), np.ones(count), atol=2e-5)


@pytest.mark.parametrize("num_bits", [8, 10, 12, 16])
def test_the_masses_of_all_levels_sum_to_one_where_scales_are_at_their_floor_too(num_bits):
    generator, levels = np.random.default_rng(0), 2**num_bits
    parameters = generator.uniform([-1, -1, -1.02, -1.02, -14, -14], [1, 1, 1.02, 1.02, 2, 2], [24, 1, 1, 6])
    # On the edge between two levels, as narrow as can be.
    parameters[:8, ..., 2:4] = (2 * generator.integers(0, levels - 1, [8, 1, 1, 2]) + 1) / (levels - 1) - 1
    parameters[:8, ..., 4:] = -20
    images = (np.arange(levels) / (levels - 1)).astype(np.float32)[:, None, None, None, None]
    mixture = ImageLikelihood("logistic_mixture", 1, 2, num_bits, exact_edges=True)
    log_masses = mixture.distribution(tf.constant(parameters, tf.float32)).log_prob(images).numpy()
    np.testing.assert_allclose(np.exp(log_masses.astype(np.float64)).sum(axis=0), np.ones(24), atol=1e-5)


@pytest.mark.parametrize("num_bits", [10, 12, 16])
def test_many_bits_match_the_formula_in_float64(num_bits):
    highest, floor = 2**num_bits - 1, -7 - np.log((2**num_bits - 1) / 255)
    levels = np.array([0, 1, 2, highest // 3, highest - 2, highest - 1, highest])
    images = tf.constant(levels / highest, tf.float32, [7, 1, 1, 1])
    for mean, scale in itertools.product(np.float32([-1.5, -1, -0.3, 0.9999, 1, 2]), np.float32([-20, -7, -5, 0, 6])):
        parameters, narrow = tf.constant([0.0, mean, scale], tf.float32, [1, 1, 3]), max(scale, floor)
        found = ImageLikelihood("logistic_mixture", 1, 1, num_bits).distribution(parameters).log_prob(images)
        expected = [logistic_log_mass(2 * k / highest - 1, np.float64(mean), narrow, num_bits, True) for k in levels]
        # The mean itself has no more digits.
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6 + 1.2e-7 * np.exp(-narrow))


@pytest.mark.parametrize(("channels", "operations"), [(1, 113), (3, 220), (4, 290)])
def test_the_graph_of_eight_bits_is_as_it_was(channels, operations):
    mixture = ImageLikelihood("logistic_mixture", channels, 3)
    parameters, images = tf.TensorSpec([2, 4, 6, mixture.num_parameters]), tf.TensorSpec([2, 4, 6, channels])
    log_prob = tf.function(lambda *given: mixture.distribution(given[0]).log_prob(given[1]), autograph=False)
    assert len(log_prob.get_concrete_function(parameters, images).graph.get_operations()) == operations


@pytest.mark.parametrize("exact_edges", [False, True])
@pytest.mark.parametrize(("channels", "num_bits"), [(1, 1), (2, 5), (3, 8), (2, 12)])
def test_extreme_parameters_stay_finite(channels, num_bits, exact_edges):
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
        log_prob, variance = mixture.log_prob(variables[4]), mixture.variance()
    assert log_prob.shape == [2**num_bits, 80]
    assert np.all(np.isfinite(log_prob)) and np.min(variance) >= 0.0 and np.max(variance) <= 1.0
    for gradient in tape.gradient([log_prob, variance], variables, unconnected_gradients="zero"):
        assert np.all(np.isfinite(gradient))


def test_rounded_samples_have_the_frequencies_of_the_mass():
    # Two well separated logistics, one of them past the upper edge of the range.
    logits, means, log_scales = tf.constant([0.5, -0.3]), tf.constant([[-0.4, 1.1]]), tf.constant([[-1.5, -1.2]])
    mixture = DiscretizedLogisticMixture(logits, means, log_scales, tf.zeros([0, 2]), num_bits=3, exact_edges=True)
    levels = np.rint(mixture.sample(NUM_SAMPLES, seed=(1, 2)).numpy()[:, 0] * 7).astype(int)
    frequencies = np.bincount(levels, minlength=8) / NUM_SAMPLES
    masses = mixture.prob(np.arange(8, dtype=np.float32)[:, np.newaxis] / 7).numpy()
    deviations = np.sqrt(masses * (1 - masses) / NUM_SAMPLES)
    assert np.all(np.abs(frequencies - masses) < 4.5 * deviations + 1e-5)


# Of the last channel the means and the log-scale of two components: wide (as alpha is), narrow, at an edge and beyond.
LAST = [([0.2, 0.9], -2.0), ([-1.0, 0.3], -3.0), ([-5.0, -4.0], 4.0), ([-5.0, 4.0], 1.5), ([1.3, -50.0], -7.0)]


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 9])
def test_mean_and_variance_are_those_of_samples(channels):
    generator = np.random.default_rng(0)
    coefficients = generator.uniform(-0.5, 0.5, [module.num_coefficients(channels), 2]).astype(np.float32)
    for last_means, last_scale in LAST:
        means, log_scales = np.tile(np.float32([0.3, -0.2]), (channels, 1)), np.full([channels, 2], -3.5, np.float32)
        means[-1], log_scales[-1] = last_means, last_scale
        mixture = DiscretizedLogisticMixture(tf.constant([0.0, 0.4]), means, log_scales, coefficients)
        samples = mixture.sample(NUM_SAMPLES, seed=(1, 2)).numpy()
        np.testing.assert_allclose(mixture.variance(), samples.var(axis=0), rtol=0.03, atol=1e-6)
        if channels == 1:  # of several, the mean is that given the means of the channels before
            np.testing.assert_allclose(mixture.mean(), samples.mean(axis=0), atol=0.012)


@pytest.fixture(params=[(name, channels) for name in LIKELIHOODS for channels in (1, 2, 3, 4, 6)])
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


RAW = np.random.default_rng(0).normal(0, 4, [3, 2, 3, 3, 5]).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.0, 1, tf.constant(0.6)])
@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float32, tf.float64])
def test_any_type_is_computed_in_float32_and_the_temperature_multiplies_the_scale_only(dtype, temperature):
    mean, log_scale = tf.cast(RAW[0], dtype), tf.cast(RAW[1], dtype)
    normal = soft_clamped_normal(tf.concat([mean, log_scale], axis=-1), temperature)
    assert normal.dtype == tf.float32
    np.testing.assert_allclose(normal.mean(), 5 * np.tanh(np.float64(mean) / 5), rtol=1e-5, atol=1e-6)
    scale = (np.exp(5 * np.tanh(np.float64(log_scale) / 5)) + 0.01) * float(temperature)
    np.testing.assert_allclose(normal.stddev(), scale, rtol=1e-5)


def test_extreme_parameters_have_finite_kl_and_gradients():
    extremes = tf.constant(np.array(np.meshgrid(*[[-1e30, -20.0, 0.0, 20.0, 1e30]] * 4)).reshape(4, -1).T, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(extremes)
        q, p = (soft_clamped_normal(parameters) for parameters in tf.split(extremes, 2, axis=-1))
        divergence = tfp.distributions.kl_divergence(q, p)
    assert np.all(np.isfinite(divergence)) and np.all(divergence >= 0)
    assert np.all(np.isfinite(tape.gradient(divergence, extremes)))


class OfPixels:
    """A density of the pixels' own count of channels, or of one too many."""

    def __init__(self, channels):
        self.num_parameters = channels

    def distribution(self, parameters):
        return tfp.distributions.Independent(tfp.distributions.Laplace(parameters, 1.0), 1)


def test_a_registered_likelihood_is_of_whole_images():
    images = ImageLikelihood("mine", 2, own=OfPixels(2)).distribution(tf.zeros([3, 4, 5, 2]))
    assert images.event_shape == [4, 5, 2] and images.log_prob(tf.ones([3, 4, 5, 2])).shape == [3]
    drawn = ImageLikelihood("mine", 2, own=OfPixels(2)).sample(tf.zeros([3, 4, 5, 2]), tf.zeros([3, 2], tf.int32))
    assert 0.0 == tf.reduce_min(drawn) < tf.reduce_max(drawn) == 1.0
    with pytest.raises(ValueError, match=r"likelihood mine: .* of images \[4, 5, 2\]; its values are \(3, 4, 5, 3\)"):
        ImageLikelihood("mine", 2, own=OfPixels(3)).distribution(tf.zeros([3, 4, 5, 3]))
