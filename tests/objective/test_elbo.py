import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.config import ModelConfig, ObjectiveConfig
from nvae_tf.distributions.soft_clamped_normal import soft_clamped_normal
from nvae_tf.latent_plan import latent_plan
from nvae_tf.objective import elbo as bound

SHAPE = (2, 3, 2, 4)
SCHEDULE = ObjectiveConfig(total_steps=100_000)
RECONSTRUCTION = np.float32([10.0, 20.0])
KL = np.float32([[3.0, 0.0, -1.0], [5.0, 0.0, 3.0]])
ALPHA = (1.0, 2.0, 4.0)


class Latent(NamedTuple):
    z: tf.Tensor
    z_before_flows: tf.Tensor
    prior: object
    posterior: object
    has_flows: bool
    groups: int = 1


def random_normal(generator):
    return soft_clamped_normal(np.concatenate([generator.normal(size=SHAPE), 0.5 * generator.normal(size=SHAPE)], -1))


def latent(seed=0):
    generator = np.random.default_rng(seed)
    posterior, prior = random_normal(generator), random_normal(generator)
    z = tf.constant(generator.normal(size=SHAPE), tf.float32)
    return Latent(z, z, prior, posterior, has_flows=False)


def parameters(group):
    return [x.numpy() for p in (group.posterior, group.prior) for x in (p.loc, p.scale)]


def kl_by_formula(mean_q, scale_q, mean_p, scale_p):
    return np.log(scale_p / scale_q) + (scale_q**2 + (mean_q - mean_p) ** 2) / (2.0 * scale_p**2) - 0.5


def test_the_analytic_kl():
    group = latent()
    expected = kl_by_formula(*parameters(group)).sum(axis=(1, 2))
    found = bound.kl_per_channel([group])
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4)
    np.testing.assert_array_equal(bound.kl_per_channel([group._replace(z=group.z + 1.0)]), found)


def test_the_weight_of_the_kl():
    # (13 - 10) / 30000 is just the smallest weight
    for step, beta in {0: 1e-4, 13: 1e-4, 3_010: 0.1, 30_009: 29_999 / 30_000, 30_010: 1.0, 99_999: 1.0}.items():
        assert float(bound.kl_weight(tf.constant(np.int64(step)), SCHEDULE)) == pytest.approx(beta, rel=1e-4)
    at_once = dataclasses.replace(SCHEDULE, kl_anneal_portion=0.0, kl_constant_portion=0.0)
    assert float(bound.kl_weight(tf.constant(1), at_once)) == 1.0


def test_regularization_is_constant_or_annealed_on_a_log_scale():
    assert float(bound.regularization_weight(tf.constant(0.0), ObjectiveConfig(regularization=0.3))) == np.float32(0.3)
    config = ObjectiveConfig(regularization=0.01, anneal_regularization=True, regularization_initial=10.0)
    found = [float(bound.regularization_weight(tf.constant(beta), config)) for beta in (0.0, 0.3, 1.0)]
    expected = math.exp(0.7 * math.log(10.0) + 0.3 * math.log(0.01))
    assert found == pytest.approx([10.0, expected, 0.01], rel=1e-5)


@pytest.mark.parametrize("final", [(), (0.7, 0.35, 2.0)], ids=["plain", "final weights"])
@pytest.mark.parametrize("beta", [1e-4, 0.5, 0.9999, 1.0])
def test_the_training_loss_and_its_gradient(beta, final):
    """Balancing ends with the warm-up, whatever the final weights; no gradient goes through the weights."""
    reconstruction, kl = tf.constant(RECONSTRUCTION), tf.constant(KL)
    with tf.GradientTape() as tape:
        tape.watch([reconstruction, kl])
        elbo = bound.Elbo(reconstruction, kl)
        found = bound.training_loss(elbo, tf.constant(beta), ALPHA, tf.constant(7.0), tf.constant(0.1), final)
    coefficients = (np.abs(KL).mean(axis=0) + 0.01) / np.array(ALPHA) if beta < 1.0 else np.ones(3)
    weights = beta * coefficients / coefficients.mean() * (final or 1.0)
    np.testing.assert_allclose(found.group_weights, weights, rtol=1e-5)
    weights = found.group_weights.numpy()
    np.testing.assert_allclose(found.balanced_kl, KL @ weights, rtol=1e-6)
    assert float(found.loss) == pytest.approx(np.mean(RECONSTRUCTION + KL @ weights) + 0.1 * 7.0)
    gradients = tape.gradient(found.loss, [reconstruction, kl])
    np.testing.assert_allclose(gradients[0], [0.5, 0.5])
    np.testing.assert_allclose(gradients[1], np.tile(weights / 2.0, (2, 1)), rtol=1e-6)


def test_the_weights_after_the_warm_up():
    plan = latent_plan(ModelConfig(num_latent_scales=2, num_groups_per_scale=2))
    assert bound.final_kl_weights(ObjectiveConfig(), plan) == (1.0,) * 4
    assert bound.balancing_scales(plan) == (1.0, 1.0, 4.0, 4.0)
    objective = ObjectiveConfig(kl_final_weight=0.5, kl_scale_weights=(2, 0.5))
    assert bound.final_kl_weights(objective, plan) == (1.0, 1.0, 0.25, 0.25)


def test_free_nats_replace_what_is_below_and_its_gradient():
    """Means over the images are 4, 0 and 1; the second image's KL of the last group is above 2, its mean is not."""
    kl = tf.constant(KL)
    with tf.GradientTape() as tape:
        tape.watch(kl)
        elbo, weights = bound.Elbo(tf.constant(RECONSTRUCTION), kl), (1.0, 0.5, 0.25)
        arguments = tf.constant(1.0), ALPHA, tf.constant(0.0), tf.constant(0.0), weights
        loss = bound.training_loss(elbo, *arguments, free_nats=2.0).loss
    assert float(loss) == pytest.approx(15.0 + 4.0 + 0.5 * 2.0 + 0.25 * 2.0)
    np.testing.assert_allclose(tape.gradient(loss, kl), [[0.5, 0.0, 0.0]] * 2)
