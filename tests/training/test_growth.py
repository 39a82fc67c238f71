"""What grew first: found where one group or layer was made to grow, and told in words."""

import numpy as np
import tensorflow as tf

from nvae_tf.models import NVAE
from nvae_tf.models.metrics import RecentMetrics, RecentSteps, StepMetrics
from nvae_tf.training.recovery import growth_sentence, layer_names
from tests.tiny_model import tiny_config

GROUPS = ["group 0 (2x2)", "group 1 (4x4)"]
LAYERS = ["stem[0]", "cells[0]", "cells[1]"]


def steps(count=20):
    """Even figures of steps that were all taken."""
    noise = np.random.default_rng(3).uniform(1.0, 1.02, (count, 5))
    return RecentSteps(np.full(count, True), 4.0 * noise[:, :2], 2.0 * noise[:, 2:])


def test_the_first_that_triples_is_named_and_not_the_largest():
    recent = steps()
    recent.kl_per_group[15:, 1] = 13.0
    recent.kl_per_group[17:, 0] = 1e6
    recent.spectral_norms[12:, 2] = 7.0
    recent.spectral_norms[14:, 0] = 1e4
    told = growth_sentence(recent, GROUPS, LAYERS)
    assert "In the last 20 steps: the KL of group 1 (4x4) grew first, from 4" in told
    assert "to 13 nats 4 steps before the last" in told
    assert "the spectral norm of cells[1] grew first, from 2" in told and "to 7 7 steps before the last" in told


def test_what_is_not_finite_has_grown():
    recent = steps()
    recent.kl_per_group[-1, 0] = np.nan
    told = growth_sentence(recent, GROUPS, LAYERS)
    assert "the KL of group 0 (2x2) grew first" in told and "to nan nats at the last step" in told
    assert "no spectral norm has tripled, that of" in told


def test_what_was_never_finite_has_not_grown_from_nan_to_nan():
    recent = steps()
    recent.accepted[:] = False
    recent.kl_per_group[:, 1] = np.nan
    # Finite once, and usual is NaN.
    recent.spectral_norms[0, 1] = np.nan
    told = growth_sentence(recent, GROUPS, LAYERS)
    assert told == (
        "In the last 20 steps: the KL of group 1 (4x4) was nan 19 steps before the last; the spectral norm of cells[0] "
        "was nan 19 steps before the last"
    )


def test_refused_steps_do_not_say_what_is_usual():
    recent = steps()
    recent.accepted[4:] = False
    recent.kl_per_group[4:, 1] = 50.0
    assert "the KL of group 1 (4x4) grew first, from 4" in growth_sentence(recent, GROUPS, LAYERS)


def test_without_a_step_there_is_nothing_to_tell():
    assert growth_sentence(RecentSteps(np.zeros(0, bool), np.zeros((0, 2)), np.zeros((0, 3))), GROUPS, LAYERS)


def test_the_model_remembers_its_last_steps_in_order():
    recent = RecentMetrics(2, 1)
    for step in range(recent.STEPS + 7):
        value = tf.constant(float(step))
        figures = StepMetrics(value, value, tf.stack([value, -value]), tf.reshape(value, [1]), value)
        recent.keep(figures, tf.constant(step % 2 == 0))
    read = recent.read()
    expected = np.arange(7, recent.STEPS + 7)
    np.testing.assert_array_equal(read.kl_per_group, np.stack([expected, -expected], axis=1))
    np.testing.assert_array_equal(read.spectral_norms[:, 0], expected)
    np.testing.assert_array_equal(read.accepted, expected % 2 == 0)
    recent.forget()
    assert len(recent.read().accepted) == 0


def test_every_layer_has_a_name_of_its_own():
    model = NVAE(tiny_config())
    names = layer_names(model)
    forward_norms = sum(stack.count for stack in model.convolutions)
    assert len(names) == len(set(names)) == forward_norms
    assert "bottom_up/stem[0]" in names
