"""KL warm-up, the balance of the groups and annealed regularisation, number by number."""

import dataclasses
import math

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.config import ModelConfig, ObjectiveConfig
from nvae_tf.latent_plan import latent_plan
from nvae_tf.objective import balancing_scales, group_weights, kl_weight, regularization_weight

SCHEDULE = ObjectiveConfig(total_steps=100_000)


@pytest.mark.parametrize(
    ("step", "beta"),
    [
        (0, 1e-4),
        (10, 1e-4),
        (13, 1e-4),  # (13 - 10) / 30000 is just the smallest weight
        (3_010, 0.1),
        (15_010, 0.5),
        (30_009, 29_999 / 30_000),
        (30_010, 1.0),
        (99_999, 1.0),
    ],
)
@pytest.mark.parametrize("kind", [np.int64, np.int32])
def test_the_weight_of_the_kl(step, beta, kind):
    assert float(kl_weight(tf.constant(kind(step)), SCHEDULE)) == pytest.approx(beta, rel=1e-4)


def test_no_warm_up():
    at_once = dataclasses.replace(SCHEDULE, kl_anneal_portion=0.0, kl_constant_portion=0.0)
    assert [float(kl_weight(tf.constant(step), at_once)) for step in (1, 2)] == [1.0, 1.0]
    constant = dataclasses.replace(SCHEDULE, kl_constant_weight=1.0)
    assert float(kl_weight(tf.constant(0), constant)) == 1.0


@pytest.mark.parametrize(
    ("scales", "groups", "adaptive", "minimum", "expected"),
    [
        (1, 3, False, 1, [1.0] * 3),
        # Top first: 1 / 5 and 4 / 10 of each group.
        (2, 10, True, 1, [1.0] * 5 + [2.0] * 10),
        (3, 4, True, 1, [1.0] + [2.0] * 2 + [4.0] * 4),
        (2, 2, True, 4, [1.0] * 4 + [8.0] * 2),
    ],
)
def test_how_much_a_group_is_meant_to_carry(scales, groups, adaptive, minimum, expected):
    plan = latent_plan(
        ModelConfig(
            num_latent_scales=scales,
            num_groups_per_scale=groups,
            adaptive_groups=adaptive,
            min_groups_per_scale=minimum,
        )
    )
    assert balancing_scales(plan) == pytest.approx(expected)


def test_the_smallest_alpha_is_one_wherever_it_stands():
    plan = latent_plan(ModelConfig(num_latent_scales=2, num_groups_per_scale=9))
    many = dataclasses.replace(plan, scales=(dataclasses.replace(plan.scales[0], groups=(0,)), plan.scales[1]))
    # 1 / 1 at the top and 4 / 9 below it.
    assert balancing_scales(many) == pytest.approx([9.0 / 4.0] + [1.0] * 9)


KL = np.float32([[3.0, 0.0, -1.0], [5.0, 0.0, 3.0]])
ALPHA = (1.0, 2.0, 4.0)


@pytest.mark.parametrize("beta", [1e-4, 0.3, 0.9999])
def test_balanced_weights(beta):
    sizes = np.abs(KL).mean(axis=0) + 0.01
    coefficients = sizes / np.array(ALPHA)
    expected = beta * coefficients / coefficients.mean()
    found = group_weights(tf.constant(KL), tf.constant(beta), ALPHA)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert np.mean(found) == pytest.approx(beta, rel=1e-5)


def test_weights_are_one_after_the_warm_up():
    np.testing.assert_array_equal(group_weights(tf.constant(KL), tf.constant(1.0), ALPHA), np.ones(3))


def test_no_gradient_goes_through_the_weights():
    kl = tf.constant(KL)
    with tf.GradientTape() as tape:
        tape.watch(kl)
        weights = group_weights(kl, tf.constant(0.5), ALPHA)
    assert tape.gradient(weights, kl) is None


def test_constant_regularization():
    config = ObjectiveConfig(regularisation=0.3)
    assert [float(regularization_weight(tf.constant(beta), config)) for beta in (0.0, 1.0)] == pytest.approx([0.3, 0.3])


def test_regularization_is_annealed_on_a_log_scale():
    config = ObjectiveConfig(regularisation=0.01, anneal_regularisation=True, regularisation_initial=1.0)
    found = [float(regularization_weight(tf.constant(beta), config)) for beta in (0.0, 0.25, 0.5, 1.0)]
    assert found == pytest.approx([1.0, 10.0**-0.5, 0.1, 0.01], rel=1e-5)
    other = dataclasses.replace(config, regularisation_initial=10.0)
    expected = math.exp(0.7 * math.log(10.0) + 0.3 * math.log(0.01))
    assert float(regularization_weight(tf.constant(0.3), other)) == pytest.approx(expected, rel=1e-5)
