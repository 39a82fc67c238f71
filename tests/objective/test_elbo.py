"""The bound's parts against samples, against scipy, and in bits."""

import math
from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from nvae_tf.distributions import soft_clamped_normal
from nvae_tf.objective import (
    Elbo,
    bits_per_dimension,
    kl_per_channel,
    kl_per_group,
    log_posterior_and_prior,
)

SHAPE = (2, 3, 2, 4)


class Latent(NamedTuple):
    """What the bound needs to know of a group."""

    z: tf.Tensor
    z_before_flows: tf.Tensor
    prior: object
    posterior: object
    has_flows: bool


def random_normal(generator, batch=SHAPE):
    return soft_clamped_normal(
        tf.constant(generator.normal(size=batch), tf.float32),
        tf.constant(0.5 * generator.normal(size=batch), tf.float32),
    )


def latent(seed=0, shift=None):
    """A posterior sample and, as flows, a shift, which keeps the volume."""
    generator = np.random.default_rng(seed)
    posterior, prior = random_normal(generator), random_normal(generator)
    before = posterior.loc + posterior.scale * tf.constant(generator.normal(size=SHAPE), tf.float32)
    after = before if shift is None else before + shift
    return Latent(after, before, prior, posterior, shift is not None)


def kl_by_formula(mean_q, scale_q, mean_p, scale_p):
    variances = (scale_q**2 + (mean_q - mean_p) ** 2) / (2.0 * scale_p**2)
    return np.log(scale_p / scale_q) + variances - 0.5


def parameters(group):
    return [x.numpy() for p in (group.posterior, group.prior) for x in (p.loc, p.scale)]


def test_the_analytic_kl():
    group = latent()
    expected = kl_by_formula(*parameters(group)).sum(axis=(1, 2))
    np.testing.assert_allclose(kl_per_channel(group), expected, rtol=1e-4)
    # It does not depend on the draw.
    np.testing.assert_array_equal(kl_per_channel(group._replace(z=group.z + 1.0)), kl_per_channel(group))


@pytest.mark.parametrize("shift", [None, 0.7], ids=["no flows", "flows"])
def test_the_kl_against_samples(shift):
    """With flows the pushed-forward posterior is known here: a Normal with a shifted mean."""
    count = 20_000
    group = latent(shift=shift)
    mean_q, scale_q, mean_p, scale_p = parameters(group)
    expected = kl_by_formula(mean_q + (shift or 0.0), scale_q, mean_p, scale_p)[0].sum(axis=(0, 1))
    noise = np.random.default_rng(1).normal(size=(count, *SHAPE[1:]))
    before = mean_q[0] + scale_q[0] * noise
    after = before + (shift or 0.0)
    log_ratio = scipy.stats.norm.logpdf(before, mean_q[0], scale_q[0])
    log_ratio -= scipy.stats.norm.logpdf(after, mean_p[0], scale_p[0])
    by_samples = log_ratio.sum(axis=(1, 2))
    error = by_samples.std(axis=0) / math.sqrt(count)
    assert np.all(np.abs(by_samples.mean(axis=0) - expected) < 5.0 * error)
    if shift is None:
        np.testing.assert_allclose(kl_per_channel(group)[0], expected, rtol=1e-4)
    else:
        one = group._replace(z=tf.constant(after, tf.float32), z_before_flows=tf.constant(before, tf.float32))
        estimates = kl_per_channel(one._replace(prior=first(group.prior), posterior=first(group.posterior)))
        np.testing.assert_allclose(estimates, by_samples, rtol=1e-3, atol=1e-2)
        assert np.all(np.abs(np.mean(estimates, axis=0) - expected) < 5.0 * error)


def first(normal):
    """The distribution of the first image alone, for any number of samples."""
    return type(normal)(normal.loc[:1], normal.scale[:1])


def test_groups_are_summed_over_all_but_the_batch():
    groups = [latent(0), latent(1, shift=0.3), latent(2)]
    found = kl_per_group(groups)
    assert found.shape == (2, 3)
    for index, group in enumerate(groups):
        np.testing.assert_allclose(found[:, index], np.sum(kl_per_channel(group), axis=1), rtol=1e-5)


def test_log_posterior_and_prior():
    groups = [latent(0), latent(1, shift=0.3)]
    log_q, log_p = log_posterior_and_prior(groups)
    expected_q, expected_p = np.zeros(2), np.zeros(2)
    for group in groups:
        mean_q, scale_q, mean_p, scale_p = parameters(group)
        # The posterior's density where it was drawn, the prior's after the flows.
        expected_q += scipy.stats.norm.logpdf(group.z_before_flows, mean_q, scale_q).sum(axis=(1, 2, 3))
        expected_p += scipy.stats.norm.logpdf(group.z, mean_p, scale_p).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(log_q, expected_q, rtol=1e-4)
    np.testing.assert_allclose(log_p, expected_p, rtol=1e-4)


def test_the_negative_bound():
    elbo = Elbo(tf.constant([1.0, 2.0]), tf.constant([[3.0, 4.0], [5.0, 6.5]]))
    np.testing.assert_allclose(elbo.nelbo, [8.0, 13.5])


def test_bits_per_dimension():
    assert bits_per_dimension(3072 * math.log(2.0), 32 * 32 * 3) == pytest.approx(1.0)
    assert bits_per_dimension(78.01, 28 * 28) == pytest.approx(78.01 * math.log2(math.e) / 784)
    np.testing.assert_allclose(bits_per_dimension(tf.constant([0.0, 7.0]), 10), [0.0, 0.7 / math.log(2.0)])
