"""A batch cut into parts: the mean of their gradients, one step, less memory."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.config import ObjectiveConfig
from nvae_tf.layers import ForwardPass
from nvae_tf.models.noise import batch_noise
from nvae_tf.training.graph_memory import memory_timeline
from tests.tiny_model import tiny_config

SEED = 3
BATCH = 8
# Beta is neither 0 nor 1, so that each part balances the groups by itself.
WARMING_UP = ObjectiveConfig(total_steps=10, kl_constant_weight=0.3)
WARM = ObjectiveConfig(total_steps=10, kl_constant_weight=1.0)


def images_of(model, count=BATCH):
    config = model.config
    shape = (count, config.image_height, config.image_width, config.image_channels)
    return tf.constant(np.random.default_rng(0).integers(0, 2, shape), tf.float32)


def model_of(count, objective=WARMING_UP, dtype=None, **changes):
    """A model that cuts batches into so many parts; all have the same weights, and show gradients in their steps."""
    keras.utils.set_random_seed(SEED)
    settings = dict(num_latent_scales=1, num_groups_per_scale=2, num_flows=1) | changes
    model = nvae_tf.NVAE(tiny_config(**settings), objective, SEED, accumulate_steps=count, dtype=dtype)
    model.compile(optimizer=keras.optimizers.SGD(1.0))
    model.optimizer.build(model.trainable_variables)
    if dtype == "mixed_float16":
        # What it finds by itself after some refused steps.
        model.optimizer.dynamic_scale.assign(64.0)
    return model


def values(variables):
    return [variable.numpy() for variable in variables]


def assert_near(found, expected, rtol=1e-4, atol=1e-5):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol, atol * max(1.0, np.max(np.abs(other), initial=0.0)))


def by_hand(model, images, count):
    """Of equal parts of the batch, each by itself: the mean gradients, updates, losses, reconstructions and KL."""
    size = len(images) // count
    found = []
    for part in range(count):
        forward, some = ForwardPass(training=True), images[part * size :][:size]
        # Those of the whole batch, and of it those of these images.
        noise = [draw[part * size :][:size] for draw in batch_noise(model.plan.latent_shapes(), len(images), (SEED, 0))]
        with tf.GradientTape() as tape:
            loss = model.training_loss(some, noise, tf.constant(0), forward)
        gradients = tape.gradient(loss.loss.loss, model.trainable_weights)
        updates = {variable.path: value for variable, value in forward.updates}
        means = [loss.loss.loss, tf.reduce_mean(loss.elbo.reconstruction), tf.reduce_mean(loss.elbo.kl, axis=0)]
        found.append((gradients, updates, means))
    return tf.nest.map_structure(lambda *parts: np.mean([part.numpy() for part in parts], axis=0), *found)


@pytest.fixture(scope="module")
def step_in_parts(without_rewriting):
    """A model, its step of four parts in a graph, and what it should do to the first weights."""
    model = model_of(4)
    expected = by_hand(model, images_of(model), 4)
    before = values(model.trainable_weights)
    report = tf.function(model.train_step, autograph=False)(images_of(model))
    return model, before, report, expected


def test_a_step_is_the_mean_of_those_of_the_parts(step_in_parts):
    model, before, report, (gradients, updates, (loss, reconstruction, kl)) = step_in_parts
    taken = [old - new for old, new in zip(before, values(model.trainable_weights), strict=True)]
    assert_near(taken, gradients)
    assert int(model.optimizer.iterations) == 1
    assert float(report["loss"]) == pytest.approx(loss, rel=1e-5)
    assert float(report["reconstruction"]) == pytest.approx(reconstruction, rel=1e-5)
    assert float(report["kl"]) == pytest.approx(np.sum(kl), rel=1e-4)
    norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients))
    assert float(report["gradient_norm"]) == pytest.approx(norm, rel=1e-4)
    np.testing.assert_allclose(model.recent.read().kl_per_group[0], kl, rtol=1e-3, atol=1e-5)


def test_statistics_are_the_mean_of_those_of_the_parts_and_power_vectors_advance_once(step_in_parts):
    model, _, _, (_, updates, _) = step_in_parts
    variables = {variable.path: variable for variable in model.non_trainable_variables}
    of_regularizer = [*model.spectral_regularizer.vectors, model.spectral_regularizer.warmed_up]
    statistics = [variable for norm in model.batch_norms for variable in norm.statistics]
    assert updates.keys() == {variable.path for variable in (*of_regularizer, *statistics)}
    for path, expected in updates.items():
        np.testing.assert_allclose(variables[path], expected, rtol=1e-3, atol=1e-4, err_msg=path)


@pytest.mark.parametrize("dtype", [None, pytest.param("mixed_float16", marks=pytest.mark.slow)])
def test_without_batch_norm_the_parts_make_up_the_whole(dtype):
    whole, cut = (model_of(count, WARM, dtype, cell_set="res_elu") for count in (1, 4))
    assert not whole.batch_norms
    images = images_of(whole)
    # The first batch sets the scales of the layers.
    whole._initialise_from(images)
    for mine, theirs in zip(cut.weights, whole.weights, strict=True):
        mine.assign(theirs)
    before = values(whole.trainable_weights)
    reports = [model.train_step(images) for model in (whole, cut)]
    assert any(np.any(old != new) for old, new in zip(before, values(whole.trainable_weights), strict=True))
    near = {} if dtype is None else dict(rtol=0.05, atol=5e-3)
    assert_near(values(cut.weights), values(whole.weights), **near)
    assert_near([*reports[1].values()], [*reports[0].values()], **near)


@pytest.mark.slow
def test_the_first_batch_sets_the_scales_as_a_whole():
    whole, cut = (model_of(count, WARM, cell_set="res_elu") for count in (1, 2))
    for model in (whole, cut):
        model.train_step(images_of(model))
        assert float(model.data_initialised) == 1.0
    assert_near(values(cut.weights), values(whole.weights), rtol=1e-3, atol=1e-4)


def test_nan_in_one_part_refuses_the_whole_step(step_in_parts):
    model = step_in_parts[0]
    before = values([*model.weights, *model.optimizer.variables])
    images = images_of(model).numpy()
    images[5, 1, 2] = np.nan
    model.reset_metrics()
    assert float(model.train_step(tf.constant(images))["skipped_steps"]) == 1.0
    for old, new in zip(before, values([*model.weights, *model.optimizer.variables]), strict=True):
        np.testing.assert_array_equal(new, old)


@pytest.mark.parametrize("changes", [{}, pytest.param(dict(cell_set="res_elu"), marks=pytest.mark.slow)])
def test_the_more_parts_the_less_memory_a_step_needs(changes):
    settings = dict(num_flows=0) | changes
    peaks = []
    for count in (1, 4):
        model = model_of(count, **settings)
        step = tf.function(model.train_step, autograph=False)
        function = step.get_concrete_function(tf.TensorSpec(images_of(model, 128).shape))
        peaks.append(memory_timeline(function).peak_bytes)
    assert peaks[1] < 0.35 * peaks[0]


@pytest.mark.slow
def test_fit_takes_one_step_a_batch():
    model = model_of(2)
    model.optimizer.learning_rate = 1e-3
    images = images_of(model, 3 * BATCH)
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(BATCH, drop_remainder=True)
    history = model.fit(dataset, epochs=2, shuffle=False, verbose=0).history
    assert int(model.optimizer.iterations) == 6
    assert history["skipped_steps"] == [0.0, 0.0] and np.all(np.isfinite(history["loss"]))
    # Arrays too, where they divide evenly.
    model.fit(images.numpy(), batch_size=BATCH, verbose=0)
    assert int(model.optimizer.iterations) == 9


def test_a_batch_that_can_not_be_cut_evenly_is_told():
    model = model_of(4, num_flows=0)
    with pytest.raises(ValueError, match="a batch of 6 can't be cut into accumulate_steps = 4 equal parts: give batch"):
        model.train_step(images_of(model, 6))
    step = tf.function(model.train_step, autograph=False, input_signature=[tf.TensorSpec((None, 4, 4, 1))])
    with pytest.raises(ValueError, match=r"a batch of unknown size can't be cut .*drop_remainder=True"):
        step(images_of(model))
    assert int(model.optimizer.iterations) == 0


@pytest.mark.parametrize("count", [0, -1, 2.5, "2", None, True])
def test_a_number_of_parts_that_can_not_be_is_told(count):
    with pytest.raises(ValueError, match=f"accumulate_steps = {count!r}: must be"):
        nvae_tf.NVAE(tiny_config(), accumulate_steps=count)
