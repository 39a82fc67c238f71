"""Recomputed cells: the same step bit by bit or nearly so, with less memory."""

import keras
import tensorflow as tf

from nvae_tf.training.graph_memory import memory_timeline
from tests.tiny_model import assert_near, images_of, tiny_model, values

BATCH = 32
# Deep enough that what cells keep is most of it.
SETTINGS = dict(
    image_height=8,
    image_width=8,
    num_latent_scales=1,
    num_groups_per_scale=3,
    num_cells_per_group_decoder=3,
    num_channels_encoder=4,
    num_channels_decoder=4,
    num_flows=1,
)


def steps_of(*recompute):
    """A model and its traced step for each choice."""
    found = []
    for choice in recompute:
        # At rate 1 weights show the gradients themselves, and the slots the means that Adamax would follow.
        model = tiny_model(keras.optimizers.SGD(1.0, momentum=0.9), recompute=choice, **SETTINGS)
        step = tf.function(model.train_step, autograph=False)
        found.append((model, step.get_concrete_function(tf.TensorSpec((BATCH, 8, 8, 1)))))
    return found


def after(model, step):
    """All that a step changes, and its metrics."""
    assert step(tf.constant(images_of(model.config, BATCH)))["skipped_steps"] == 0.0
    recent = model.recent.read()
    return [*values([*model.variables, *model.optimizer.variables]), recent.kl_per_group, recent.spectral_norms]


def peak(step):
    """What the step makes and has not yet freed, at most."""
    timeline = memory_timeline(step)
    assert not timeline.unknown
    return timeline.peak_bytes


def test_a_step_is_the_same_with_less_memory(without_rewriting):
    kept, recomputed = steps_of("none", "all")
    assert peak(recomputed[1]) < 0.6 * peak(kept[1])
    assert_near(after(*recomputed), after(*kept), floor=1e-3)
