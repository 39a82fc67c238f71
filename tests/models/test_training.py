"""Training through Keras: fit, evaluate, learning, equal runs, and the first batch of self-normalizing models."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.config import ObjectiveConfig
from nvae_tf.layers.convolution import DataDependentConvolution
from nvae_tf.optimization import NVAEAdamax

STEPS = 40


def stripes(count=32):
    """Images of one bright row or column: something that can be learned in some steps."""
    images = np.zeros((count, 6, 6, 1), np.float32)
    generator = np.random.default_rng(0)
    for image in images:
        place = generator.integers(6)
        image[place] = 1.0
        if generator.uniform() < 0.5:
            image[:] = image.transpose(1, 0, 2).copy()
    return images


@pytest.fixture(scope="module")
def trained(tiny):
    """A model after some steps of `fit` on labeled batches, and its history."""
    objective = ObjectiveConfig(total_steps=STEPS)
    model = tiny.model(3, objective, num_latent_scales=1, num_groups_per_scale=2)
    model.compile(optimizer=NVAEAdamax(0.01))
    images = stripes()
    dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(32))).batch(16, drop_remainder=True)
    history = model.fit(dataset.repeat(2), epochs=STEPS // 4, shuffle=False, verbose=0).history
    return model, history


def test_the_bound_falls(trained):
    _, history = trained
    assert set(history) == {"loss", "reconstruction", "kl", "gradient_norm", "skipped_steps"}
    assert all(np.all(np.isfinite(values)) for values in history.values())
    bound = np.add(history["reconstruction"], history["kl"])
    assert np.mean(bound[-3:]) < 0.8 * bound[0]
    assert min(history["kl"]) > 0.0


def test_the_state_after_training(trained):
    model, _ = trained
    assert int(model.optimizer.iterations) == STEPS
    assert float(model.spectral_regularizer.warmed_up) == 1.0
    for vectors in model.spectral_regularizer.vectors:
        np.testing.assert_allclose(np.linalg.norm(vectors.numpy(), axis=1), 1.0, rtol=1e-3)
    for norm in model.batch_norms:
        assert np.any(norm.moving_mean.numpy()) and np.all(norm.moving_variance.numpy() > 0.0)


def test_evaluation_gives_the_bound_and_changes_nothing(trained):
    model, _ = trained
    before = [weight.numpy() for weight in model.weights]
    images = stripes()
    results = [model.evaluate(images, batch_size=16, verbose=0, return_dict=True) for _ in range(2)]
    assert results[0] == results[1]
    assert results[0]["loss"] == pytest.approx(results[0]["reconstruction"] + results[0]["kl"], rel=1e-5)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_the_importance_weighted_bound_lies_below_the_plain_one(trained):
    model, _ = trained
    images = stripes(16)
    plain = model.evaluate(images, batch_size=16, verbose=0, return_dict=True)["loss"]
    assert float(np.mean(model.score(images, importance_samples=10))) < plain


def history_of(tiny, seed):
    """What two eager steps report, and the weights after them."""
    keras.utils.set_random_seed(1)
    model = tiny.model(seed)
    model.compile(optimizer=NVAEAdamax(0.01))
    images = tf.constant(stripes(8))
    reports = [{name: float(value) for name, value in model.train_step(images).items()} for _ in range(2)]
    return reports, [weight.numpy() for weight in model.weights]


@pytest.mark.slow
def test_the_same_seeds_give_the_same_run(tiny):
    reports, weights = history_of(tiny, seed=3)
    again, weights_again = history_of(tiny, seed=3)
    for first, second in zip(reports, again, strict=True):
        assert first == pytest.approx(second, rel=1e-5)
    for first, second in zip(weights, weights_again, strict=True):
        # Sums over threads are not always added in the same order.
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-6)
    other, _ = history_of(tiny, seed=4)
    assert all(mine["kl"] != theirs["kl"] for mine, theirs in zip(reports, other, strict=True))


def test_the_draws_depend_on_the_step(tiny):
    """A step at rate 0 changes no weight, but the next one has new draws."""
    model = tiny.model()
    model.compile(optimizer=NVAEAdamax(0.0))
    images = tf.constant(stripes(8))
    reconstructions = []
    for _ in range(2):
        model.reset_metrics()
        reconstructions.append(float(model.train_step(images)["reconstruction"]))
    assert len(set(reconstructions)) == 2


def test_self_normalizing_layers_are_set_by_the_first_batch_only(tiny):
    model = tiny.model(cell_set="res_elu")
    layers = [layer for layer in model.convolutions if isinstance(layer, DataDependentConvolution)]
    assert len(layers) > 0
    model.compile(optimizer=NVAEAdamax(0.0))  # so that nothing else moves a weight
    images = tf.constant(stripes(8))

    def state():
        return [variable.numpy() for layer in layers for variable in (layer.log_norm, layer.bias)]

    start = state()
    model.train_step(images)
    first = state()
    assert float(model.data_initialised) == 1.0
    assert all(np.all(before != after) for before, after in zip(start, first, strict=True))
    model.train_step(1.0 - images)
    for before, after in zip(first, state(), strict=True):
        np.testing.assert_array_equal(before, after)
