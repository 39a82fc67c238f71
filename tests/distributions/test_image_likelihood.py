"""The likelihoods of whole images: recorded numbers of the published model, and the common interface."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.distributions.image_likelihood import IMAGE_LIKELIHOODS, image_likelihood

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures"
RECORDED = {
    "mnist_tiny": image_likelihood("bernoulli"),
    "cifar10_tiny": image_likelihood("logistic_mixture", num_mixtures=5, num_bits=8),
    "celeba64_tiny": image_likelihood("logistic_mixture", num_mixtures=3, num_bits=5),
    "normal_decoder_tiny": image_likelihood("normal"),
}


def load_channels_last(name, *keys):
    with np.load(FIXTURES / f"{name}.npz") as file:
        return [np.moveaxis(file[key], 1, -1) if file[key].ndim == 4 else file[key] for key in keys]


@pytest.mark.parametrize("phase", ["eval", "train"])
@pytest.mark.parametrize("name", RECORDED)
def test_log_prob_matches_recorded_numbers(name, phase):
    images, logits, recon_loss = load_channels_last(name, "x", f"{phase}/logits", f"{phase}/recon_loss")
    if name == "mnist_tiny":  # the likelihood counts the inner 28x28 only
        images, logits = images[:, 2:-2, 2:-2], logits[:, 2:-2, 2:-2]
    log_prob = RECORDED[name].distribution(logits).log_prob(images)
    np.testing.assert_allclose(-log_prob, recon_loss, rtol=2e-6)


@pytest.mark.parametrize("phase", ["eval", "sample"])
@pytest.mark.parametrize("name", ["mnist_tiny", "cifar10_tiny", "celeba64_tiny"])
def test_mean_matches_recorded_numbers(name, phase):
    logits, mean = load_channels_last(name, f"{phase}/logits", f"{phase}/mean")
    np.testing.assert_allclose(RECORDED[name].distribution(logits).mean(), mean, rtol=1e-5, atol=1e-6)


@pytest.fixture(params=[(name, channels) for name in IMAGE_LIKELIHOODS for channels in (1, 2, 3, 4)])
def named(request):
    """A likelihood with random parameters for two images of 4x6 pixels."""
    name, channels = request.param
    likelihood = image_likelihood(name, num_mixtures=3, num_bits=5)
    shape = [2, 4, 6, likelihood.num_parameters(channels)]
    return likelihood, channels, np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_events_are_whole_images(named):
    likelihood, channels, parameters = named
    distribution = likelihood.distribution(parameters)
    assert (distribution.batch_shape, distribution.event_shape) == ([2], [4, 6, channels])
    images = distribution.sample(seed=(1, 2))
    assert distribution.log_prob(images).shape == [2]
    for values in (images, distribution.sample(5, seed=1), distribution.mean()):
        assert values.shape[-4:] == [2, 4, 6, channels] and values.dtype == tf.float32
        assert np.min(values) >= 0 and np.max(values) <= 1
    np.testing.assert_array_equal(images, distribution.sample(seed=(1, 2)))


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_half_precision_is_computed_in_float32(named, dtype):
    likelihood, channels, parameters = named
    images = tf.round(tf.random.stateless_uniform([2, 4, 6, channels], seed=(1, 1)))
    half = tf.cast(parameters, dtype)
    log_prob = likelihood.distribution(half).log_prob(tf.cast(images, dtype))
    expected = likelihood.distribution(tf.cast(half, tf.float32)).log_prob(images)
    assert log_prob.dtype == tf.float32
    np.testing.assert_array_equal(log_prob, expected)


def test_low_temperature_narrows_samples(named):
    likelihood, _, parameters = named

    def spread(temperature):
        images = likelihood.distribution(parameters, temperature).sample(400, seed=(1, 2))
        return np.mean(np.std(images, axis=0))

    cold = spread(0.2)
    assert cold < 0.9 * spread(1.0)
    np.testing.assert_allclose(spread(tf.constant(0.2)), cold, rtol=1e-5)


def test_extreme_parameters_are_finite_in_value_and_gradient(named):
    likelihood, channels, parameters = named
    for scale in (100.0, 1e4):
        variables, levels = tf.constant(parameters * scale), tf.linspace(0.0, 31.0, 48 * channels)
        images = tf.reshape(tf.round(levels) / 31, [2, 4, 6, channels])
        with tf.GradientTape() as tape:
            tape.watch(variables)
            log_prob = likelihood.distribution(variables).log_prob(images)
        assert np.all(np.isfinite(log_prob))
        assert np.all(np.isfinite(tape.gradient(log_prob, variables)))


def test_bernoulli_mean_is_the_sigmoid_of_tempered_logits():
    logits = np.array([-100.0, -1.0, 0.0, 2.0], np.float32).reshape(1, 2, 2, 1)
    mean = image_likelihood("bernoulli").distribution(logits, 0.5).mean()
    np.testing.assert_allclose(mean, 1 / (1 + np.exp(-logits.astype(np.float64) / 0.5)), rtol=1e-6, atol=1e-30)


def test_normal_is_a_density_on_the_signed_scale():
    """One gray-alpha pixel: two means, then two log-sigmas; no factor for the change of scale."""
    parameters = np.array([0.5, 7.0, -1.0, -2.0]).reshape(1, 1, 1, 4)
    images = np.array([0.6, 0.9]).reshape(1, 1, 1, 2)
    location, scale = (
        5 * np.tanh(parameters[..., :2] / 5),
        np.exp(5 * np.tanh(parameters[..., 2:] / 5)) + 0.01,
    )
    deviation = (2 * images - 1 - location) / scale
    expected = np.sum(-0.5 * deviation**2 - np.log(scale * np.sqrt(2 * np.pi)))
    distribution = image_likelihood("normal").distribution(tf.constant(parameters, tf.float32))
    np.testing.assert_allclose(distribution.log_prob(tf.constant(images, tf.float32)), [expected], rtol=1e-5)
    np.testing.assert_allclose(np.ravel(distribution.mean()), [(1 + location[0, 0, 0, 0]) / 2, 1.0], rtol=1e-6)


def test_exact_edges_reach_the_distribution():
    parameters, image = tf.constant([[[[0.0, 0.99, -3.0]]]]), tf.fill([1, 1, 1, 1], 254 / 255)
    published, exact = (
        image_likelihood("logistic_mixture", 1, exact_edges=exact_edges).distribution(parameters).prob(image)
        for exact_edges in (False, True)
    )
    assert published > 5 * exact


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="'logistic'; did you mean 'logistic_mixture'"):
        image_likelihood("logistic")


@pytest.mark.parametrize("name", IMAGE_LIKELIHOODS)
@pytest.mark.parametrize("temperature", [0, -1.0, float("nan")])
def test_temperature_must_be_positive(name, temperature):
    likelihood = image_likelihood(name)
    with pytest.raises(ValueError, match="temperature of an image likelihood must be above 0"):
        likelihood.distribution(tf.zeros([1, 2, 2, likelihood.num_parameters(3)]), temperature)


def test_parameters_that_fit_no_image_are_refused():
    with pytest.raises(ValueError, match="C means and C log-scales"):
        image_likelihood("normal").distribution(tf.zeros([1, 2, 2, 3]))
    with pytest.raises(ValueError, match="10 logistics has 99 parameters"):
        image_likelihood("logistic_mixture").distribution(tf.zeros([1, 2, 2, 99]))
