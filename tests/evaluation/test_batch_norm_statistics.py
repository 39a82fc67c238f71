import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.evaluation.batch_norm_statistics import readjusted
from nvae_tf.layers import ForwardPass
from nvae_tf.models.latents import batch_noise
from tests import refuses
from tests.tiny_model import assert_same, tiny_config, values

ITERATIONS, BATCH_SIZE = 4, 8


def generator_norms(model):
    layers = model.top_down._flatten_layers(include_self=False)
    return [layer for layer in layers if isinstance(layer, nvae_tf.layers.StackedBatchNormalization)]


@pytest.fixture(scope="module")
def result(model):
    return readjusted(model, 0.7, ITERATIONS, BATCH_SIZE, seed=3)


@pytest.fixture(scope="module")
def model():
    """Below its top group, and in post-processing, it has batch norms, with running statistics of their own."""
    changes = {"num_groups_per_scale": 2, "num_latent_scales": 1, "num_postprocess_blocks": 1}
    model = nvae_tf.NVAE(tiny_config(num_preprocess_blocks=1, image_height=8, image_width=8, **changes))
    random = np.random.RandomState(0)
    for norm in model.batch_norms:
        norm.moving_mean.assign(random.normal(size=norm.moving_mean.shape))
        norm.moving_variance.assign(random.uniform(0.5, 2.0, norm.moving_variance.shape))
    return model


@pytest.mark.slow
def test_the_copy_differs_in_the_statistics_of_its_generator_alone(model):
    weights = values(model.weights)
    copy = readjusted(model, 0.7, iterations=1, batch_size=BATCH_SIZE).model
    assert_same(model.weights, weights)
    running = {id(variable) for norm in generator_norms(copy) for variable in norm.statistics}
    assert len(running) == 2 * len(generator_norms(model)) > 0
    for variable, value, before in zip(copy.weights, values(copy.weights), weights, strict=True):
        assert np.array_equal(value, before) == (id(variable) not in running), variable.path
    assert copy.config == model.config and copy is not model


def test_statistics_are_the_moving_average_of_those_of_the_batches(model, result):
    # The first norm sees the state below the top group, which has no batch norm.
    before, after = (each.top_down.scales[0].cells.recorders()[0] for each in (model, result.model))
    mean, variance = (value.numpy()[0].astype(np.float64) for value in before.statistics)
    scale = model.top_down.scales[0]
    start = tf.broadcast_to(model.top_down.start, (BATCH_SIZE, *model.top_down.start.shape))
    for number in range(ITERATIONS):
        noise = batch_noise(model.plan.latent_shapes(), BATCH_SIZE, (3, -1), number * BATCH_SIZE)[0]
        latent = 0.7 * (1.0 + 0.01) * noise  # the top prior's sigma at the temperature
        combiner, *_ = scale.combiners.layers(ForwardPass())
        state = combiner(tf.concat([start, latent], -1)).numpy().astype(np.float64)
        rows = state.reshape(-1, state.shape[-1])
        mean = 0.95 * mean + 0.05 * rows.mean(axis=0)
        variance = 0.95 * variance + 0.05 * rows.var(axis=0, ddof=1)
    actual = [value.numpy()[0] for value in after.statistics]
    np.testing.assert_allclose(actual[0], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(actual[1], variance, rtol=1e-4)


@pytest.mark.slow
def test_what_is_not_finite_stops_it():
    model = nvae_tf.NVAE(tiny_config(num_groups_per_scale=3, num_cells_per_group_decoder=2))
    kernel = model.top_down.scales[0].cells.branch.parts[1].kernel
    poisoned = kernel.numpy()
    poisoned[2, 0, 0, 0, 0] = np.nan
    kernel.assign(poisoned)
    refuses("not finite in iteration 1 of 5", readjusted, model, 0.7, iterations=5, batch_size=4)


@pytest.mark.slow
def test_what_can_not_be_readjusted(model):
    without = readjusted(nvae_tf.NVAE(tiny_config(cell_set="res_elu")), 0.7, iterations=1)
    assert "nothing to readjust" in without.text
    for name, value in {"temperature": 0.0, "iterations": 0, "batch_size": 1}.items():
        refuses(f"{name} = {value:g}", readjusted, model, **{"temperature": 0.7} | {name: value})
