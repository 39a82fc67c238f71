import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

import nvae_tf
from nvae_tf.evaluation.likelihood import LikelihoodEvaluator, samples_at_once
from nvae_tf.evaluation.table import active_units, interval
from nvae_tf.models.latents import active_channels, image_seeds, noise_per_image
from nvae_tf.models.passes import inference_pass
from nvae_tf.objective import kl_per_channel
from nvae_tf.reports.evaluate import half_width_95
from tests.tiny_model import tiny_config


@pytest.fixture(scope="module")
def model():
    return nvae_tf.NVAE(tiny_config(num_groups_per_scale=2))


@pytest.fixture(scope="module")
def images():
    return tf.constant(np.random.RandomState(0).randint(0, 2, (10, 4, 4, 1)), tf.float32)


@pytest.mark.slow
def test_the_parts_are_those_of_the_model_whatever_the_batches(model, images):
    seen = []
    evaluator = LikelihoodEvaluator(model, 4, importance_samples=3)
    actual = evaluator.evaluate([images[:4], images[4:8], images[8:]], seed=4, progress=seen.append)
    assert seen == [4, 8, 10] and len(actual.nelbo) == 10
    decoded = inference_pass(model, images, noise_per_image(model.plan.latent_shapes(), image_seeds(4, 10)))
    reconstruction = -decoded.likelihood.log_prob(images).numpy().mean()
    per_channel = kl_per_channel(decoded.latents).numpy().mean(axis=0)
    assert actual.reconstruction_nats == pytest.approx(reconstruction, rel=1e-5)
    np.testing.assert_allclose(actual.kl_per_channel_nats, per_channel, rtol=1e-4)
    np.testing.assert_allclose(actual.kl_per_group_nats, per_channel.sum(axis=1), rtol=1e-4)
    assert actual.nelbo_nats == pytest.approx(reconstruction + per_channel.sum(), rel=1e-5)
    expected = model.score(images, importance_samples=3, seed=4)
    np.testing.assert_allclose(actual.importance_weighted[:, -1], expected, rtol=1e-5)
    for fraction, are_same in ((1.0, True), (0.1, False)):
        kept = active_channels(actual.kl_per_channel_nats, fraction)
        reconstructed = LikelihoodEvaluator(model, 4, kept_channels=kept).evaluate([images[:4]], seed=4).reconstruction
        assert np.allclose(reconstructed, actual.reconstruction[:4], rtol=1e-5) == are_same
    # New weights are seen without a new evaluator.
    bias = model.top_down.image.bias.numpy()
    model.top_down.image.bias.assign(np.full_like(bias, 20.0))
    assert evaluator.evaluate([images[:4]], seed=4).nelbo_nats > actual.nelbo_nats + 50.0
    model.top_down.image.bias.assign(bias)


@pytest.mark.slow
@pytest.mark.parametrize(("free", "expected"), [(10**12, 25), (10**3, 1)])
def test_as_many_samples_at_once_as_fit(model, images, free_memory, free, expected):
    free_memory(free)
    assert samples_at_once(model, batch_size=10, importance_samples=100) == expected
    assert samples_at_once(model, batch_size=10, importance_samples=3) == min(expected, 3)
    assert samples_at_once(model, batch_size=200, importance_samples=100) == 1
    actual = LikelihoodEvaluator(model, 10, importance_samples=30).evaluate([images], seed=2)
    np.testing.assert_allclose(actual.importance_weighted[:, -1], model.score(images, 30, seed=2), rtol=1e-5)


def test_active_units_are_those_of_enough_nats_in_the_mean_over_positions():
    kl = np.array([[0.08, 0.05], [0.15, 0.09]])
    for factor, expected in ((1.0, [2, 0]), (1.5, [2, 1]), (0.1, [0, 0])):
        assert active_units(factor * kl, [(2, 2, 2), (4, 4, 2)]).tolist() == expected


@pytest.mark.slow
def test_the_bound_is_the_likelihood_in_the_limit():
    """The importance-weighted bound against the integral, for a model with one position and two latent channels."""
    blocks = dict(num_latent_scales=1, num_preprocess_blocks=1, num_postprocess_blocks=1)
    model = nvae_tf.NVAE(tiny_config(image_height=2, image_width=2, **blocks), seed=4)
    assert model.plan.latent_shapes() == ((1, 1, 2),)
    # Decided by the latents, and the latents by the image: an untrained model hardly depends on them.
    (scale,) = model.top_down.scales
    for stack in (scale.posteriors, scale.combiners, model.top_down.image):
        stack.log_norm.assign(stack.log_norm + 1.5)
    images = np.float32([[0, 0, 0, 0], [1, 0, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1]]).reshape(4, 2, 2, 1)
    # log p(x) of every image by summing p(x | z) p(z) over a grid of z.
    axis = np.linspace(-7.0, 7.0, 281)
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 1, 1, 2)
    log_prior = scipy.stats.norm.logpdf(z, scale=1.01).sum(axis=(1, 2, 3))
    mean = np.float64(model.decode([z]))
    log_p = [scipy.special.xlogy(x, mean) + scipy.special.xlog1py(1 - x, -mean) for x in images]
    joint = np.stack(log_p).sum(axis=(2, 3, 4)) + log_prior + 2 * np.log(axis[1] - axis[0])
    exact = -scipy.special.logsumexp(joint, axis=1)
    actual = LikelihoodEvaluator(model, 4, importance_samples=20_000).evaluate([tf.constant(images)], seed=1)
    assert exact.max() - exact.min() > 0.1
    np.testing.assert_allclose(actual.importance_weighted[:, -1], exact, atol=0.01)
    # Fewer samples, a looser bound: there is a gap to close.
    assert actual.nelbo_nats > exact.mean() + 0.02


def test_the_interval_holds_the_mean_in_95_of_100_cases_and_its_text_has_two_digits():
    random = np.random.default_rng(0)
    samples = random.normal(3.0, 2.0, (2000, 100))
    hits = [abs(sample.mean() - 3.0) < half_width_95(sample) for sample in samples]
    assert np.mean(hits) == pytest.approx(0.945, abs=0.015)
    assert half_width_95(np.array([1.0])) is None
    assert interval(32.9000903, 0.6931) == "32.90 ± 0.69" and interval(1234.56, 98.7) == "1,235 ± 99"
    assert interval(0.1854, 0.00390621) == "0.1854 ± 0.0039" and interval(5.25, 1.04) == "5.2 ± 1.0"
    assert interval(35.94871, None) == "35.95" and interval(10_400.4, None) == "10,400"
