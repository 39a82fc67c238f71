"""The bounds of a set of images: the same numbers in whatever batches they come, and what they are made
of."""

import types

import numpy as np
import psutil
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.evaluation.likelihood import LikelihoodEvaluator, samples_at_once
from nvae_tf.memory import memory_timeline
from nvae_tf.models.noise import image_seeds, noise_per_image
from nvae_tf.objective import kl_per_channel, kl_per_group
from tests.tiny_model import tiny_config

CONFIG = tiny_config(num_groups_per_scale=2)


@pytest.fixture(scope="module")
def model():
    return nvae_tf.NVAE(CONFIG)


@pytest.fixture(scope="module")
def images():
    return tf.constant(np.random.RandomState(0).randint(0, 2, (10, 4, 4, 1)), tf.float32)


def batches(images, size):
    return [images[start : start + size] for start in range(0, len(images), size)]


def test_the_parts_are_those_of_the_model(model, images):
    found = LikelihoodEvaluator(model, 10).evaluate([images], seed=4)
    decoded = model.infer(images, noise_per_image(model.plan.latent_shapes(), image_seeds(4, 10)))
    reconstruction = -decoded.likelihood.log_prob(images).numpy().mean()
    kl = kl_per_group(decoded.latents).numpy().mean(axis=0)
    assert found.reconstruction_nats == pytest.approx(reconstruction, rel=1e-5)
    np.testing.assert_allclose(found.kl_per_group_nats, kl, rtol=1e-4)
    per_channel = [kl_per_channel(latent).numpy().mean(axis=0) for latent in decoded.latents]
    np.testing.assert_allclose(found.kl_per_channel_nats, per_channel, rtol=1e-4)
    assert found.kl_nats == pytest.approx(kl.sum(), rel=1e-4)
    assert found.nelbo_nats == pytest.approx(reconstruction + kl.sum(), rel=1e-5)
    assert found.num_images == 10
    assert found.importance_weighted_nats is None


def test_neither_the_batch_size_nor_a_partial_batch_matters(model, images):
    whole = LikelihoodEvaluator(model, 10, importance_samples=3).evaluate([images], seed=1)
    parts = LikelihoodEvaluator(model, 4, importance_samples=3).evaluate(batches(images, 4), seed=1)
    assert parts.num_images == 10
    assert parts.importance_weighted_nats == pytest.approx(whole.importance_weighted_nats, rel=1e-5)
    assert parts.nelbo_nats == pytest.approx(whole.nelbo_nats, rel=1e-5)
    np.testing.assert_allclose(parts.kl_per_group_nats, whole.kl_per_group_nats, rtol=1e-4)


def test_the_importance_weighted_bound_is_that_of_the_model_and_tighter(model, images):
    found = LikelihoodEvaluator(model, 10, importance_samples=50).evaluate([images], seed=2)
    expected = model.score(images, importance_samples=50, seed=2).numpy().mean()
    assert found.importance_weighted_nats == pytest.approx(expected, rel=1e-5)
    assert found.importance_weighted_nats < found.nelbo_nats


@pytest.mark.slow
@pytest.mark.parametrize(("free", "expected"), [(10**12, 25), (10**3, 1)])
def test_as_many_samples_at_once_as_fit(model, images, monkeypatch, free, expected):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=free))
    assert samples_at_once(model, batch_size=10, importance_samples=100) == expected
    assert samples_at_once(model, batch_size=10, importance_samples=3) == min(expected, 3)
    assert samples_at_once(model, batch_size=200, importance_samples=100) == 1
    found = LikelihoodEvaluator(model, 10, importance_samples=30).evaluate([images], seed=2)
    np.testing.assert_allclose(found.importance_weighted[:, -1], model.score(images, 30, seed=2), rtol=1e-5)


def test_memory_does_not_grow_with_the_number_of_samples(model):
    def peak(count):
        @tf.function(input_signature=[tf.TensorSpec([4, 4, 4, 1]), tf.TensorSpec([4, 2], tf.int32)], autograph=False)
        def bound(images, seeds):
            return model.importance_weighted(images, count, seeds)

        return memory_timeline(bound.get_concrete_function()).peak_bytes

    assert peak(1000) == peak(10) > 0


def test_new_weights_are_seen_without_a_new_evaluator(images):
    model = nvae_tf.NVAE(CONFIG)
    evaluator = LikelihoodEvaluator(model, 10)
    before = evaluator.evaluate([images])
    model.top_down.image.bias.assign(tf.fill(model.top_down.image.bias.shape, 20.0))
    after = evaluator.evaluate([images])
    assert after.nelbo_nats > before.nelbo_nats + 50.0


def test_progress_counts_images(model, images):
    seen = []
    LikelihoodEvaluator(model, 4).evaluate(batches(images, 4), progress=seen.append)
    assert seen == [4, 8, 10]


def test_what_can_not_be_evaluated_is_told(model, images):
    with pytest.raises(ValueError, match="no images"):
        LikelihoodEvaluator(model, 4).evaluate([])
    with pytest.raises(ValueError, match="a batch of 10 images is larger than batch_size = 4"):
        LikelihoodEvaluator(model, 4).evaluate([images])
    with pytest.raises(ValueError, match="batch_size = 0"):
        LikelihoodEvaluator(model, 0)
