"""The importance-weighted bound against the integral itself, for a model with two latents."""

import keras
import numpy as np
import pytest
import scipy.special
import tensorflow as tf

import nvae_tf
from nvae_tf.evaluation.likelihood import LikelihoodEvaluator
from nvae_tf.models.noise import image_seeds, noise_of_samples
from nvae_tf.objective import bits_per_dimension, kl_per_group
from tests.tiny_model import tiny_config

# One position, two latent channels.
CONFIG = tiny_config(
    image_height=2, image_width=2, num_latent_scales=1, num_preprocess_blocks=1, num_postprocess_blocks=1
)
IMAGES = tf.reshape(tf.constant([[0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1]], tf.float32), [4, 2, 2, 1])
PRIOR_SCALE = 1.01


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(4)
    model = nvae_tf.NVAE(CONFIG)
    assert model.plan.latent_shapes() == ((1, 1, 2),)
    # Decided by the latents, and the latents by the image: an untrained model hardly heeds them.
    (scale,) = model.top_down.scales
    for stack in (scale.posteriors, scale.combiners, model.top_down.image):
        stack.log_norm.assign(stack.log_norm + 1.5)
    return model


def log_likelihood(model):
    """log p(x) of every image by summing p(x | z) p(z) over a grid of z, `[images]`."""
    axis = np.linspace(-7.0, 7.0, 281)
    step = axis[1] - axis[0]
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 1, 1, 2)
    log_prior = np.sum(-0.5 * (z / PRIOR_SCALE) ** 2 - np.log(PRIOR_SCALE * np.sqrt(2 * np.pi)), axis=(1, 2, 3))
    mean = np.float64(model.decode([z]))
    log_p = [scipy.special.xlogy(x, mean) + scipy.special.xlog1py(1 - x, -mean) for x in IMAGES.numpy()]
    joint = np.stack(log_p).sum(axis=(2, 3, 4)) + log_prior + 2 * np.log(step)
    return scipy.special.logsumexp(joint, axis=1)


def test_the_bound_is_the_likelihood_in_the_limit(model):
    exact = -log_likelihood(model)
    found = LikelihoodEvaluator(model, 4, importance_samples=20_000).evaluate([IMAGES], seed=1)
    assert exact.max() - exact.min() > 0.1
    np.testing.assert_allclose(found.importance_weighted[:, -1], exact, atol=0.01)
    # Fewer samples, a looser bound: there is a gap to close.
    assert found.nelbo_nats > exact.mean() + 0.02


def test_the_bound_rises_with_the_number_of_samples(model):
    evaluator = LikelihoodEvaluator(model, 4, importance_samples=100)
    bounds = [evaluator.evaluate([IMAGES], seed).importance_weighted for seed in range(60)]
    means = np.mean(bounds, axis=(0, 1))
    assert np.all(np.diff(means) < 0.0)


def test_all_images_together_have_probability_1(model):
    images = np.array([[int(bit) for bit in f"{number:04b}"] for number in range(16)], np.float32)
    found = LikelihoodEvaluator(model, 16, importance_samples=2000).evaluate([images.reshape(16, 2, 2, 1)], seed=2)
    assert np.exp(-np.float64(found.importance_weighted[:, -1])).sum() == pytest.approx(1.0, abs=0.01)


def test_the_kl_is_that_of_monte_carlo(model):
    count = 20_000
    noise = noise_of_samples(model.plan.latent_shapes(), image_seeds(0, 4), 0, count)
    latents = model.infer(tf.repeat(IMAGES, count, axis=0), noise).latents
    (latent,) = latents
    ratios = latent.posterior.log_prob(latent.z) - latent.prior.log_prob(latent.z)
    ratios = tf.reduce_sum(ratios, axis=(1, 2, 3)).numpy().reshape(4, count)
    analytic = kl_per_group(latents).numpy().reshape(4, count)[:, 0]
    errors = ratios.std(axis=1) / np.sqrt(count)
    assert analytic.max() > 0.05
    assert np.all(np.abs(ratios.mean(axis=1) - analytic) < 4 * errors + 1e-6)


@pytest.mark.parametrize("size", [2, 4])
def test_a_uniform_model_takes_one_bit_a_binary_pixel(size):
    model = nvae_tf.NVAE(tiny_config(image_height=size, image_width=size, num_latent_scales=1))
    # No latent tells anything, and every pixel is as likely 0 as 1.
    for stack in (model.top_down.image, *(scale.posteriors for scale in model.top_down.scales)):
        stack.bias.assign(tf.zeros_like(stack.bias))
        stack.log_norm.assign(tf.fill(stack.log_norm.shape, -100.0))
    images = tf.constant(np.random.default_rng(0).integers(0, 2, (8, size, size, 1)), tf.float32)
    found = LikelihoodEvaluator(model, 8, importance_samples=10).evaluate([images], seed=0)
    for nats in (found.nelbo_nats, found.importance_weighted_nats):
        assert bits_per_dimension(nats, size * size) == pytest.approx(1.0, abs=1e-6)
