"""Models of noisy images: what their likelihood is, what they take and refuse, and how much of the noise passes."""

import types

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from nvae_tf.config import ModelConfig
from nvae_tf.distributions.image_likelihood import ImageLikelihood
from nvae_tf.models import denoising
from nvae_tf.models.latents import image_seeds
from nvae_tf.models.passes import inference_pass
from nvae_tf.models.restoration import Mask
from nvae_tf.optimization import NVAEAdamax
from nvae_tf.serving.signatures import Signatures
from tests import refuses
from tests.tiny_model import shaken, tiny_model, with_distinct_classes

pytestmark = pytest.mark.usefixtures("few_power_iterations")
NOISY = dict(likelihood="noisy_signal", noise_variance=(0.05, 0.01), image_height=8, image_width=8, num_bits=8)
NOISY |= dict(num_latent_scales=1, num_groups_per_scale=2)
IMAGES = np.random.default_rng(0).normal(0.5, 1.0, [4, 8, 8, 1]).astype(np.float32)


@pytest.mark.parametrize("noise", [(0.0, 0.04), (0.5, 0.01)])
def test_the_likelihood_is_of_the_measured_pixel_given_the_signal(noise):
    config = ModelConfig(likelihood="noisy_signal", noise_variance=noise, image_channels=2)
    likelihood, signal = ImageLikelihood.for_model(config), np.random.default_rng(1).normal(0.5, 1, [3, 4, 6, 2])
    parameters, measured = tf.constant(2 * signal - 1, tf.float32), signal + np.linspace(-1, 1, 2)
    variance = noise[0] * np.maximum(signal, 0) + noise[1]
    assert likelihood.num_parameters == 2 and not config.has_masses
    distribution = likelihood.distribution(parameters)
    expected = scipy.stats.norm(signal, np.sqrt(variance)).logpdf(measured).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(distribution.log_prob(tf.constant(measured, tf.float32)), expected, rtol=1e-4)
    np.testing.assert_allclose(distribution.mean(), signal, atol=1e-6)
    np.testing.assert_allclose(distribution.variance(), variance, rtol=1e-5)
    drawn = tf.function(likelihood.sample)(tf.repeat(parameters[:1], 500, axis=0), image_seeds(0, 500))
    np.testing.assert_allclose(np.var(drawn, axis=0), variance[0], rtol=0.35)
    assert np.min(drawn) < 0.0 and np.max(drawn) > 1.0


def test_images_beyond_0_and_1_are_taken_but_none_that_are_not_finite():
    model = tiny_model(NVAEAdamax(1e-3, l2=0.0), **NOISY)
    assert np.isfinite(model.train_step(tf.constant(IMAGES))["loss"])
    assert np.isfinite(model.score(IMAGES)).all() and np.isfinite(model.outlier_score(IMAGES).kl).all()
    assert model(IMAGES).shape == IMAGES.shape
    refuses("images have infinite values", model.score, np.where(IMAGES > 1, np.inf, IMAGES))
    refuses(r"type uint8; .*\(HIGH - LOW\) with data.range = LOW,HIGH", model.denoise, IMAGES.astype(np.uint8))
    broken = tf.data.Dataset.from_tensors(np.where(IMAGES > 1, np.inf, IMAGES))
    refuses("images have infinite values", model.evaluate, broken, verbose=0)
    refuses("restore: this model, of data.noise, is not for", model.restore, IMAGES, Mask(), 0.1)
    refuses("model.likelihood = noisy_signal: lossless files are of bernoulli and", model.compress, IMAGES)


def test_exported_signatures_take_noisy_images_as_arrays_alone():
    signatures = Signatures(tiny_model(**NOISY))
    assert "score" in signatures.names and "score_png" not in signatures.names
    images = np.where(np.arange(4).reshape(-1, 1, 1, 1) == 2, np.nan, IMAGES)
    scored = signatures.function("score")(images, tf.range(4, dtype=tf.int64))
    assert scored["valid"].numpy().tolist() == [True, True, False, True] and "bits_per_dim" not in scored


@pytest.mark.parametrize("noise", [(0.0, 0.04), (0.5, 0.01)])
def test_the_part_of_the_noise_that_passes_is_the_trace_of_the_derivative(noise, monkeypatch):
    config = ModelConfig(likelihood="noisy_signal", noise_variance=noise, image_channels=1)
    likelihood = ImageLikelihood.for_model(config)
    weights = np.random.default_rng(2).uniform(0, 0.6, [8, 8, 1]).astype(np.float32)

    def passed(model, images, *_):
        signal = weights * images + 0.3 * tf.reverse(images, [1])
        return types.SimpleNamespace(likelihood=likelihood.distribution(2.0 * signal - 1.0))

    monkeypatch.setattr(denoising, "inference_pass", passed)
    model = types.SimpleNamespace(plan=types.SimpleNamespace(num_groups=2))
    images = tf.constant(np.tile(IMAGES, [100, 1, 1, 1]))
    signal, part = denoising.passing_noise(model, images, image_seeds(0, 400))
    np.testing.assert_allclose(signal[:4], weights * IMAGES + 0.3 * IMAGES[:, ::-1], rtol=1e-5)
    assert np.mean(part) == pytest.approx(weights.mean(), abs=0.01)


def test_one_pass_one_draw_and_the_mean_of_draws():
    model = shaken(tiny_model(**NOISY, num_classes=2))
    labels = [0, 1, 1, 0]
    encoded = model.encode(IMAGES, mean=True, labels=labels)
    one_pass, nothing = model.denoise(IMAGES, labels=labels)
    np.testing.assert_allclose(one_pass, model.decode(encoded, labels=labels), atol=1e-5)
    assert nothing is None
    draw = model.denoise(IMAGES, samples=1, seed=3, labels=labels).images
    np.testing.assert_allclose(draw, model(IMAGES, seed=3, labels=labels), atol=1e-5)
    mean, deviation = model.denoise(IMAGES, samples=3, seed=3, labels=labels)
    alone = model.denoise(IMAGES[:1], samples=3, seed=3, labels=0, batch_size=1)
    np.testing.assert_allclose(alone.images, mean[:1], atol=1e-5)
    noise = [denoising.noise_per_image(model.plan.latent_shapes(), image_seeds(3, 4), number) for number in range(3)]
    forward = denoising.pass_of_loop(model, tf.constant(labels))
    draws = [inference_pass(model, tf.constant(IMAGES), each, forward).likelihood.mean() for each in noise]
    np.testing.assert_allclose(mean, np.mean(draws, axis=0), atol=1e-5)
    np.testing.assert_allclose(deviation, np.std(draws, axis=0, ddof=1), atol=1e-5)
    refuses(r"shape \(4, 7, 9, 1\); this model takes \[batch, 8, 8, 1\]", model.denoise, np.zeros([4, 7, 9, 1], "f"))
    refuses("denoise: this model was not trained with data.noise", tiny_model().denoise, IMAGES)


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (8, 30), (29, 23)])
def test_tiles_have_no_seams(size):
    images = np.random.default_rng(0).random([4, *size, 3], np.float32)
    same, constant = denoising.in_tiles(lambda tiles, *_: [tiles, np.full_like(tiles, 0.3)], images, (8, 8), 40)
    np.testing.assert_allclose(same, images, atol=1e-6)
    np.testing.assert_allclose(constant, 0.3, atol=1e-6)
    # Where tiles contradict each other, the image goes from one to the next in steps.
    parity = lambda tiles, *_: [tiles * 0 + np.arange(len(tiles)).reshape(-1, 1, 1, 1) % 2]  # noqa: E731
    (mixed,) = denoising.in_tiles(parity, images, (8, 8), 64)
    assert max(np.abs(np.diff(mixed, axis=axis)).max(initial=0.0) for axis in (1, 2)) < 0.45


def test_images_larger_than_the_models_are_denoised_in_tiles():
    model = shaken(tiny_model(**NOISY))
    wide = np.random.default_rng(0).normal(0.5, 1.0, [2, 8, 14, 1]).astype(np.float32)
    made, tiles = model.denoise(wide, samples=2), model.denoise(wide[:, :, :8]).images
    assert made.images.shape == made.deviation.shape == wide.shape
    np.testing.assert_allclose(model.denoise(wide).images[:, :, :6], tiles[:, :, :6], atol=1e-5)
    # Each tile has draws of its own, numbered after the tiles of all images before it.
    draws = model.denoise(np.concatenate([wide[:1, :, :8], wide[:1, :, 6:]] * 2), samples=1).images
    np.testing.assert_allclose(model.denoise(wide[[0, 0]], samples=1).images[1, :, :6], draws[2, :, :6], atol=1e-5)
    classes, labels = with_distinct_classes(tiny_model(num_classes=3, **NOISY)), np.arange(40) % 3
    first = [classes.denoise(wide[:1, :, :8], labels=[label]).images[0, :, :6] for label in range(3)]
    assert np.abs(np.diff(first, axis=0)).max(axis=(1, 2, 3)).min() > 1e-3
    joined = classes.denoise(np.repeat(wide[:1], 40, axis=0), labels=labels).images
    np.testing.assert_allclose(joined[:, :, :6], np.stack(first)[labels], atol=1e-5)
    refuses("images have NaN", model.denoise, np.where(np.arange(2).reshape(-1, 1, 1, 1) == 1, np.nan, wide))
    refuses("there are no images", model.denoise, wide[:0])
