import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.config import ObjectiveConfig
from nvae_tf.layers.normalization import moments, normalize_batch
from nvae_tf.models.training_step import initialize_scales
from nvae_tf.optimization import NVAEAdamax
from tests.tiny_model import images_of, state_of, tiny_model, values

pytestmark = pytest.mark.usefixtures("few_power_iterations")
HALF = {"mixed_bfloat16": tf.bfloat16, "mixed_float16": tf.float16}
SETTINGS = dict(num_latent_scales=1, num_groups_per_scale=2, num_flows=1, num_latent_per_group=4)


def batch_of(model, count=16):
    return tf.constant(images_of(model.config, count))


def model_of(policy, optimizer=None, objective=None, **changes):
    return tiny_model(optimizer or NVAEAdamax(0.01), objective, seed=0, dtype=policy, **SETTINGS | changes)


def changed(before, after):
    return {name for name, value in after.items() if not np.array_equal(value, before[name])}


def test_the_networks_of_a_step_compute_in_half_precision_and_their_statistics_in_float32():
    model = model_of("mixed_bfloat16")
    step = tf.function(model.train_step, autograph=False)
    graph = step.get_concrete_function(tf.TensorSpec((4, 4, 4, 1))).graph
    types = collections.defaultdict(set)
    for each in (graph, *(called.graph for called in graph._functions.values())):
        for operation in each.get_operations():
            if operation.outputs:
                types[operation.type].add(operation.outputs[0].dtype.name)
    half = "Conv2D", "MatMul", "FusedBatchNormV3", "SoftplusGrad", "Elu"
    assert [types[kind] for kind in half] == [{"bfloat16"}] * 5
    assert [types[kind] for kind in ("Exp", "Log", "Tanh", "Rsqrt", "L2Loss")] == [{"float32"}] * 5


@pytest.mark.parametrize("policy", HALF)
def test_statistics_of_half_precision_images_are_as_good_as_those_of_float32(policy):
    """Added up in half precision, or squared, they would be wrong in the second figure."""
    images = tf.cast(tf.random.stateless_normal((64, 16, 16, 3), (0, 0), 20.0, 0.5), HALF[policy])
    exact = np.float64(tf.cast(images, tf.float32))
    batch = normalize_batch(images, tf.ones(3), tf.zeros(3))
    for mean, variance in (moments(images), (batch.mean, batch.divisors()[1])):
        np.testing.assert_allclose(mean, exact.mean((0, 1, 2)), rtol=1e-5)
        np.testing.assert_allclose(variance, exact.var((0, 1, 2)), rtol=1e-4)


def test_batch_norm_in_half_precision_is_the_same_by_the_kernel_and_written_out(monkeypatch):
    """CPUs have the one, GPUs and several replicas the other."""
    inputs, upstream = (tf.cast(tf.random.stateless_normal((8, 6, 6, 3), (0, seed)), tf.float16) for seed in (0, 1))
    gamma, beta = tf.constant([0.5, 1.0, 2.0]), tf.constant([0.0, -1.0, 1.0])
    found = []
    for on_one_cpu in (True, False):
        monkeypatch.setattr("nvae_tf.layers.normalization.on_one_cpu", lambda value=on_one_cpu: value)
        batch = normalize_batch(inputs, gamma, beta)
        found.append([batch.outputs, batch.mean, batch.variance, batch.divisors()[1], *batch.gradient(upstream)])
    for kernel, written_out in zip(*found, strict=True):
        assert kernel.dtype == written_out.dtype
        np.testing.assert_allclose(np.float32(kernel), np.float32(written_out), rtol=2**-10, atol=1e-4)


def gradients_of(model, images):
    """What a step with rate 1 takes from the weights, as one vector, and what the step reports."""
    before = values(model.trainable_weights)
    report = model.train_step(images)
    taken = [old - new.numpy() for old, new in zip(before, model.trainable_weights, strict=True)]
    return np.concatenate([each.ravel() for each in taken]), {name: float(value) for name, value in report.items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "cells", "scales"),
    [("mixed_bfloat16", "res_mbconv", 2), ("mixed_float16", "res_elu", 1), ("mixed_float16", "mbconv_den", 1)],
)
def test_a_step_goes_the_way_of_one_in_float32(policy, cells, scales):
    changes = dict(num_channels_encoder=8, num_channels_decoder=8, cell_set=cells)
    changes |= dict(num_latent_scales=scales, num_groups_per_scale=3 - scales)
    objective = ObjectiveConfig(total_steps=10, kl_constant_weight=0.3)
    models = [model_of(each, keras.optimizers.SGD(1.0), objective, **changes) for each in ("float32", policy)]
    images = batch_of(models[0])
    if models[0].is_data_dependent:
        initialize_scales(models[0], images)
        for mine, theirs in zip(models[1].weights, models[0].weights, strict=True):
            mine.assign(theirs)
    (exact, expected), (found, report) = (gradients_of(model, images) for model in models)
    assert report["loss"] == pytest.approx(expected["loss"], rel=0.01)
    assert exact @ found / np.linalg.norm(exact) / np.linalg.norm(found) > 0.99
    # Neither is it scaled with the loss.
    for gradients, reported in ((exact, expected), (found, report)):
        assert reported["gradient_norm"] == pytest.approx(np.linalg.norm(gradients), rel=1e-3)


@pytest.mark.slow
def test_a_step_that_overflows_changes_nothing_but_the_scale_and_a_file_keeps_the_policy(tmp_path):
    model = model_of("mixed_float16")
    step, images, scale = model.train_step, batch_of(model), model.optimizer.dynamic_scale
    step(images)
    assert int(model.optimizer.iterations) == 1
    # The gradients of weights are finite in float32, the gradients of activations are not in float16.
    scale.assign(2.0**40)
    before = state_of(model)
    report = step(images)
    assert np.isfinite(report["loss"]) and np.isfinite(report["gradient_norm"])
    assert float(report["skipped_steps"]) == 1.0
    assert changed(before, state_of(model)) == {scale.path, model.optimizer.step_counter.path}
    assert float(scale) == 2.0**39
    assert int(model.optimizer.step_counter) == 0
    # A loss that is not finite has nothing to do with the scale, which after some of these would be 0.
    scale.assign(64.0)
    before, bad = state_of(model), np.where(np.arange(16)[:, None, None, None] == 3, np.inf, images)
    step(tf.constant(bad, tf.float32))
    assert not changed(before, state_of(model))
    step(images)
    assert int(model.optimizer.iterations) == 2
    assert float(scale) == 64.0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for mine, theirs in zip(*([*each._flatten_layers()] for each in (model, loaded)), strict=True):
        assert mine.dtype_policy.name == theirs.dtype_policy.name, mine.path
    assert float(loaded.train_step(batch_of(model))["skipped_steps"]) == 0.0
