import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats
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
    mean, log_scale = generator.normal(size=SHAPE), 0.5 * generator.normal(size=SHAPE)
    return soft_clamped_normal(tf.constant(mean, tf.float32), tf.constant(log_scale, tf.float32))


def latent(seed=0, shift=None):
    """A posterior sample and, as flows, a shift, which keeps the volume."""
    generator = np.random.default_rng(seed)
    posterior, prior = random_normal(generator), random_normal(generator)
    before = posterior.loc + posterior.scale * tf.constant(generator.normal(size=SHAPE), tf.float32)
    after = before if shift is None else before + shift
    return Latent(after, before, prior, posterior, shift is not None)


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
    # Groups of one shape are computed as one.
    several = [group, latent(1), latent(2)]
    alone = [bound.kl_per_channel([each])[:, 0] for each in several]
    np.testing.assert_allclose(bound.kl_per_channel(several), np.stack(alone, axis=1), rtol=1e-6)


def test_the_kl_with_flows_is_estimated_from_the_sample():
    """Its mean is the KL of the pushed-forward posterior, which is known here: a Normal with a shifted mean."""
    shift, count = 0.7, 20_000
    group = latent(shift=shift)
    mean_q, scale_q, mean_p, scale_p = parameters(group)
    expected = kl_by_formula(mean_q + shift, scale_q, mean_p, scale_p)[0].sum(axis=(0, 1))
    before = mean_q[0] + scale_q[0] * np.random.default_rng(1).normal(size=(count, *SHAPE[1:]))
    log_ratio = scipy.stats.norm.logpdf(before, mean_q[0], scale_q[0])
    log_ratio -= scipy.stats.norm.logpdf(before + shift, mean_p[0], scale_p[0])
    of_first_image = [type(normal)(normal.loc[:1], normal.scale[:1]) for normal in (group.prior, group.posterior)]
    drawn = [tf.constant(values, tf.float32) for values in (before + shift, before)]
    estimates = bound.kl_per_channel([Latent(*drawn, *of_first_image, has_flows=True)])[:, 0].numpy()
    np.testing.assert_allclose(estimates, log_ratio.sum(axis=(1, 2)), rtol=1e-3, atol=1e-2)
    assert np.all(np.abs(estimates.mean(axis=0) - expected) < 5.0 * estimates.std(axis=0) / math.sqrt(count))


def test_the_negative_bound_in_nats_and_bits():
    elbo = bound.Elbo(tf.constant([1.0, 2.0]), tf.constant([[3.0, 4.0], [5.0, 6.5]]))
    np.testing.assert_allclose(elbo.nelbo, [8.0, 13.5])
    np.testing.assert_allclose(bound.bits_per_dimension(elbo.nelbo, 10), [0.8 / math.log(2.0), 1.35 / math.log(2.0)])
    assert bound.bits_per_dimension(3072 * math.log(2.0), 32 * 32 * 3) == pytest.approx(1.0)


def test_the_weight_of_the_kl():
    for step, beta in (
        (0, 1e-4),
        (13, 1e-4),  # (13 - 10) / 30000 is just the smallest weight
        (3_010, 0.1),
        (15_010, 0.5),
        (30_009, 29_999 / 30_000),
        (30_010, 1.0),
        (99_999, 1.0),
    ):
        for kind in (np.int64, np.int32):
            assert float(bound.kl_weight(tf.constant(kind(step)), SCHEDULE)) == pytest.approx(beta, rel=1e-4)
    at_once = dataclasses.replace(SCHEDULE, kl_anneal_portion=0.0, kl_constant_portion=0.0)
    assert [float(bound.kl_weight(tf.constant(step), at_once)) for step in (1, 2)] == [1.0, 1.0]
    constant = dataclasses.replace(SCHEDULE, kl_constant_weight=1.0)
    assert float(bound.kl_weight(tf.constant(0), constant)) == 1.0


def test_how_much_a_group_is_meant_to_carry():
    for scales, groups, adaptive, minimum, expected in (
        (1, 3, False, 1, [1.0] * 3),
        # Top first: 1 / 5 and 4 / 10 of each group.
        (2, 10, True, 1, [1.0] * 5 + [2.0] * 10),
        (3, 4, True, 1, [1.0] + [2.0] * 2 + [4.0] * 4),
        (2, 2, True, 4, [1.0] * 4 + [8.0] * 2),
    ):
        settings = dict(num_latent_scales=scales, num_groups_per_scale=groups, adaptive_groups=adaptive)
        plan = latent_plan(ModelConfig(**settings, min_groups_per_scale=minimum))
        assert bound.balancing_scales(plan) == pytest.approx(expected)
    plan = latent_plan(ModelConfig(num_latent_scales=2, num_groups_per_scale=9))
    many = dataclasses.replace(plan, scales=(dataclasses.replace(plan.scales[0], groups=(0,)), plan.scales[1]))
    # 1 / 1 at the top and 4 / 9 below it.
    assert bound.balancing_scales(many) == pytest.approx([9.0 / 4.0] + [1.0] * 9)


@pytest.mark.parametrize("beta", [1e-4, 0.3, 0.9999])
def test_balanced_weights(beta):
    coefficients = (np.abs(KL).mean(axis=0) + 0.01) / np.array(ALPHA)
    found = bound.group_weights(tf.constant(KL), tf.constant(beta), ALPHA)
    np.testing.assert_allclose(found, beta * coefficients / coefficients.mean(), rtol=1e-5)


def test_regularization_is_constant_or_annealed_on_a_log_scale():
    constant = ObjectiveConfig(regularization=0.3)
    found = [float(bound.regularization_weight(tf.constant(beta), constant)) for beta in (0.0, 1.0)]
    assert found == pytest.approx([0.3, 0.3])
    config = ObjectiveConfig(regularization=0.01, anneal_regularization=True, regularization_initial=10.0)
    found = [float(bound.regularization_weight(tf.constant(beta), config)) for beta in (0.0, 0.3, 1.0)]
    expected = math.exp(0.7 * math.log(10.0) + 0.3 * math.log(0.01))
    assert found == pytest.approx([10.0, expected, 0.01], rel=1e-5)


@pytest.mark.parametrize("beta", [0.5, 1.0], ids=["warm-up", "after it"])
def test_the_training_loss_and_its_gradient(beta):
    """After the warm-up it is the bound and the regularizers; no gradient goes through the weights."""
    reconstruction, kl = tf.constant(RECONSTRUCTION), tf.constant(KL)
    with tf.GradientTape() as tape:
        tape.watch([reconstruction, kl])
        elbo = bound.Elbo(reconstruction, kl)
        found = bound.training_loss(elbo, tf.constant(beta), ALPHA, tf.constant(7.0), tf.constant(0.1))
    weights = bound.group_weights(kl, tf.constant(beta), ALPHA).numpy() if beta < 1.0 else np.ones(3)
    np.testing.assert_allclose(found.group_weights, weights)
    np.testing.assert_allclose(found.balanced_kl, KL @ weights, rtol=1e-6)
    assert float(found.loss) == pytest.approx(np.mean(RECONSTRUCTION + KL @ weights) + 0.1 * 7.0)
    gradients = tape.gradient(found.loss, [reconstruction, kl])
    np.testing.assert_allclose(gradients[0], [0.5, 0.5])
    np.testing.assert_allclose(gradients[1], np.tile(weights / 2.0, (2, 1)), rtol=1e-6)


def test_the_weights_after_the_warm_up():
    plan = latent_plan(ModelConfig(num_latent_scales=2, num_groups_per_scale=2))
    assert bound.final_kl_weights(ObjectiveConfig(), plan) == (1.0,) * 4
    objective = ObjectiveConfig(kl_final_weight=0.5, kl_scale_weights=(2, 0.5))
    assert bound.final_kl_weights(objective, plan) == (1.0, 1.0, 0.25, 0.25)


@pytest.mark.parametrize("beta", [0.5, 1.0], ids=["warm-up", "after it"])
def test_final_weights_multiply_those_of_the_warm_up(beta):
    """Balancing ends with the warm-up, whatever the final weight."""
    final = np.array([0.7, 0.35, 2.0])
    arguments = tf.constant(beta), ALPHA, tf.constant(0.0), tf.constant(0.0)
    elbo = bound.Elbo(tf.constant(RECONSTRUCTION), tf.constant(KL))
    plain = bound.training_loss(elbo, *arguments).group_weights.numpy()
    found = bound.training_loss(elbo, *arguments, final_weights=tuple(final))
    np.testing.assert_allclose(found.group_weights, final * plain, rtol=1e-6)
    assert float(found.loss) == pytest.approx(np.mean(RECONSTRUCTION + KL @ (final * plain)))


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


def test_at_their_defaults_they_add_no_operation():
    def operations(**settings):
        def loss(reconstruction, kl, beta):
            elbo = bound.Elbo(reconstruction, kl)
            return bound.training_loss(elbo, beta, ALPHA, tf.constant(7.0), tf.constant(0.1), **settings).loss

        graph = tf.function(loss).get_concrete_function(RECONSTRUCTION, KL, tf.constant(0.5)).graph
        return [operation.type for operation in graph.get_operations()]

    plan = latent_plan(ModelConfig(num_latent_scales=3, num_groups_per_scale=1))
    defaults = bound.final_kl_weights(ObjectiveConfig(), plan)
    assert operations(final_weights=defaults, free_nats=0.0) == operations()
