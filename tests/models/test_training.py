import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.config import ObjectiveConfig
from nvae_tf.layers.convolution import DataDependentConvolution
from nvae_tf.optimization import NVAEAdamax
from tests.tiny_model import PADDED, assert_same, images_of, state_of, tiny_model, values

STEPS = 40


def stripes(count=32):
    """Images of one bright row or column: something that can be learned in some steps."""
    images = np.zeros((count, 6, 6, 1), np.float32)
    generator = np.random.default_rng(0)
    for image in images:
        image[generator.integers(6)] = 1.0
        if generator.uniform() < 0.5:
            image[:] = image.transpose(1, 0, 2).copy()
    return images


def compiled(rate=0.01, **changes):
    model = tiny_model(NVAEAdamax(rate), **PADDED | changes)
    return model, tf.function(model.train_step, autograph=False)


@pytest.fixture(scope="module")
def trained():
    objective = ObjectiveConfig(total_steps=STEPS)
    model, _ = compiled(objective=objective, num_latent_scales=1, num_groups_per_scale=2)
    dataset = tf.data.Dataset.from_tensor_slices((stripes(), np.arange(32))).batch(16, drop_remainder=True)
    history = model.fit(dataset.repeat(2), epochs=STEPS // 4, shuffle=False, verbose=0).history
    return model, history


@pytest.mark.slow
def test_the_bound_falls(trained):
    model, history = trained
    assert set(history) == {"loss", "reconstruction", "kl", "gradient_norm", "skipped_steps"}
    assert all(np.all(np.isfinite(metric)) for metric in history.values())
    bound = np.add(history["reconstruction"], history["kl"])
    assert np.mean(bound[-3:]) < 0.8 * bound[0]
    assert min(history["kl"]) > 0.0
    assert int(model.optimizer.iterations) == STEPS
    for norm in model.batch_norms:
        assert np.any(norm.moving_mean.numpy()) and np.all(norm.moving_variance.numpy() > 0.0)


def test_evaluation_gives_the_bound_and_changes_nothing(trained):
    model, _ = trained
    before, images = values(model.weights), stripes()
    results = [model.evaluate(images, batch_size=16, verbose=0, return_dict=True) for _ in range(2)]
    assert results[0] == results[1]
    assert results[0]["loss"] == pytest.approx(results[0]["reconstruction"] + results[0]["kl"], rel=1e-5)
    assert_same(model.weights, before)
    assert float(np.mean(model.score(images, importance_samples=10))) < results[0]["loss"]


def test_self_normalizing_layers_are_set_by_the_first_batch_only_and_draws_depend_on_the_step():
    model, _ = compiled(rate=0.0, cell_set="res_elu")  # so that nothing else moves a weight
    layers = [layer for layer in model.convolutions if isinstance(layer, DataDependentConvolution)]
    variables = [variable for layer in layers for variable in (layer.log_norm, layer.bias)]
    start = values(variables)
    model.train_step(stripes(8))
    first = values(variables)
    assert layers and float(model.data_initialised) == 1.0
    assert all(np.all(before != after) for before, after in zip(start, first, strict=True))
    losses = set()
    for _ in range(2):
        model.reset_metrics()
        losses.add(float(model.train_step(1.0 - stripes(8))["reconstruction"]))
    assert_same(variables, first)
    assert len(losses) == 2


@pytest.mark.slow
def test_the_steps_after_a_bad_one_are_as_if_it_had_not_been():
    """Self-normalizing layers, of res_elu, take their scales from the first batch that is sound."""
    model, step = compiled(cell_set="res_elu")
    variables, images = [*model.variables, *model.optimizer.variables], images_of(model.config)
    begun, bad = values(variables), np.full_like(images, np.nan)
    for batch in (bad, images, bad, images[::-1]):
        step(batch)
    with_bad = state_of(model)
    assert int(model.optimizer.iterations) == 2
    for variable, value in zip(variables, begun, strict=True):
        variable.assign(value)
    for batch in (images, images[::-1]):
        step(batch)
    assert_same(state_of(model), with_bad)


@pytest.mark.slow
def test_the_objective_is_that_of_the_settings():
    objective = ObjectiveConfig(total_steps=10, kl_anneal_portion=0.0, kl_constant_portion=0.0, regularization=0.0)
    changes, reports = dict(kl_final_weight=0.5, kl_scale_weights=(1, 4), free_nats=100.0), []
    for settings in (objective, dataclasses.replace(objective, **changes)):
        model = tiny_model(NVAEAdamax(), settings)
        model.optimizer.iterations.assign(5)
        reports.append({name: float(x) for name, x in model.train_step(tf.constant(images_of(model.config))).items()})
    plain, changed = reports
    assert plain["loss"] == pytest.approx(plain["reconstruction"] + plain["kl"], rel=1e-5)
    # Both groups' KL is below 100 nats; what is reported is the bound's.
    assert changed["loss"] == pytest.approx(plain["reconstruction"] + 0.5 * 100 + 2.0 * 100, rel=1e-5)
    assert changed["kl"] == pytest.approx(plain["kl"], rel=1e-5)
    with pytest.raises(ValueError, match=r"kl_scale_weights = \(1,\): 1 weights, and the model has 2 scales"):
        tiny_model(objective=ObjectiveConfig(kl_scale_weights=(1,)))
