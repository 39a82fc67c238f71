import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.config import ObjectiveConfig
from nvae_tf.layers import ForwardPass
from nvae_tf.models.latents import batch_noise
from nvae_tf.models.training_step import training_loss
from tests.tiny_model import assert_near, images_of, tiny_model, values

# Beta is neither 0 nor 1, so that each microbatch balances the groups by itself.
WARMING_UP = ObjectiveConfig(total_steps=10, kl_constant_weight=0.3)


def model_of(count, **changes):
    """A model of so many microbatches, whose steps are its gradients."""
    changes = dict(num_latent_scales=1, num_groups_per_scale=2, num_flows=1) | changes
    return tiny_model(keras.optimizers.SGD(1.0), WARMING_UP, accumulate_steps=count, **changes)


def batch_of(model, count=8):
    return tf.constant(images_of(model.config, count))


def by_hand(model, images, count):
    """Of equal parts of the batch, each by itself: the mean gradients, updates, losses, reconstructions and KL."""
    size = len(images) // count
    draws = batch_noise(model.plan.latent_shapes(), len(images), (model.seed, 0))
    found = []
    for part in range(count):
        forward, rows = ForwardPass(training=True), slice(part * size, (part + 1) * size)
        with tf.GradientTape() as tape:
            terms, _ = training_loss(model, images[rows], [draw[rows] for draw in draws], tf.constant(0), forward)
        updates = {variable.path: value for variable, value in forward.updates()}
        found.append((tape.gradient(terms.loss, model.trainable_weights), updates, terms))
    return tf.nest.map_structure(lambda *parts: np.mean([part.numpy() for part in parts], axis=0), *found)


@pytest.fixture(scope="module")
def step_of_four():
    """A model, its first weights, what its step of four microbatches reports, and what it should."""
    model = model_of(4)
    expected = by_hand(model, batch_of(model), 4)
    before = values(model.trainable_weights)
    report = tf.function(model.train_step, autograph=False)(batch_of(model))
    return model, before, report, expected


@pytest.mark.slow
def test_a_step_is_the_mean_of_those_of_the_microbatches(step_of_four):
    model, before, report, (gradients, updates, (loss, reconstruction, kl)) = step_of_four
    assert_near([old - new for old, new in zip(before, values(model.trainable_weights), strict=True)], gradients)
    assert int(model.optimizer.iterations) == 1
    norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients))
    expected = dict(loss=loss, reconstruction=reconstruction, kl=np.sum(kl), gradient_norm=norm, skipped_steps=0)
    assert {name: float(value) for name, value in report.items()} == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(model.recent.read().kl_per_group[0], kl, rtol=1e-3, atol=1e-5)
    # Statistics are the mean of theirs, and power vectors advance once.
    variables = {variable.path: variable for variable in model.non_trainable_variables}
    regularizer = model.spectral_regularizer
    moved = [*regularizer.vectors, regularizer.warmed_up, *(v for norm in model.batch_norms for v in norm.statistics)]
    assert updates.keys() == {variable.path for variable in moved}
    for path, value in updates.items():
        np.testing.assert_allclose(variables[path], value, rtol=1e-3, atol=1e-4, err_msg=path)


def test_a_batch_that_can_not_be_cut_evenly_is_refused():
    model = model_of(4, num_flows=0)
    with pytest.raises(ValueError, match="a batch of 6 can't be cut into accumulate_steps = 4 equal parts: give batch"):
        model.train_step(batch_of(model, 6))
    step = tf.function(model.train_step, autograph=False, input_signature=[tf.TensorSpec((None, 4, 4, 1))])
    with pytest.raises(ValueError, match=r"a batch of unknown size can't be cut .*drop_remainder=True"):
        step(batch_of(model))
    assert int(model.optimizer.iterations) == 0


# Recomputed cells; deep enough that what cells keep is most of it.
DEEP = dict(num_groups_per_scale=3, num_cells_per_group_decoder=3, num_channels_encoder=4, num_channels_decoder=4)


def changes_of_a_step(recompute):
    """All that a step changes, and its metrics."""
    # At rate 1 weights show the gradients themselves, and the slots the means that Adamax would follow.
    settings = dict(image_height=8, image_width=8, num_latent_scales=1, num_flows=1)
    model = tiny_model(keras.optimizers.SGD(1.0, momentum=0.9), recompute=recompute, **settings, **DEEP)
    assert tf.function(model.train_step, autograph=False)(batch_of(model, 32))["skipped_steps"] == 0.0
    recent = model.recent.read()
    changed = values([*model.variables, *model.optimizer.variables])
    return [*changed, recent.kl_per_group, recent.spectral_norms]


@pytest.mark.slow
def test_a_step_with_recomputed_cells_is_the_same():
    assert_near(changes_of_a_step("all"), changes_of_a_step("none"), floor=1e-3)
