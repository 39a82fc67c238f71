"""Where a latent comes from: posterior, prior or outside, with layers that are plain formulas."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.models.latents import GivenSource, GroupLayers, PosteriorSource, PriorSource
from nvae_tf.models.top_down import standard_prior

SHAPE = (2, 3, 3, 4)


def layers(flows=()):
    return GroupLayers(
        cells=[],
        prior=lambda state: (state, 0.5 * state),
        posterior=lambda state, feature: (state + feature, feature),
        flows=list(flows),
        combine=None,
    )


@pytest.fixture
def tensors():
    generator = np.random.default_rng(0)
    return [2.0 * generator.normal(size=SHAPE).astype(np.float32) for _ in range(3)]


def clamped(mean, log_scale):
    return 5.0 * np.tanh(mean / 5.0), np.exp(5.0 * np.tanh(log_scale / 5.0)) + 0.01


def near(value, expected):
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("residual", [True, False])
def test_the_posterior_is_relative_to_the_prior_or_absolute(residual, tensors):
    state, feature, noise = tensors
    sample = PosteriorSource(feature, noise, residual).draw(layers(), state)
    added = (state, 0.5 * state) if residual else (0.0, 0.0)
    mean, scale = clamped(added[0] + state + feature, added[1] + feature)  # clamped after the addition
    near(sample.posterior.loc, mean)
    near(sample.posterior.scale, scale)
    near(sample.z, mean + scale * noise)
    near(sample.prior.loc, clamped(state, 0.5 * state)[0])
    near(sample.prior.scale, clamped(state, 0.5 * state)[1])
    assert sample.z_before_flows is sample.z
    assert not sample.has_flows


def test_flows_act_on_the_posterior_one_after_another(tensors):
    state, feature, noise = tensors
    flows = [lambda z: 2.0 * z, lambda z: z + 1.0]
    plain = PosteriorSource(feature, noise).draw(layers(), state)
    sample = PosteriorSource(feature, noise).draw(layers(flows), state)
    near(sample.z_before_flows, plain.z)
    near(sample.z, 2.0 * plain.z + 1.0)
    assert sample.has_flows


@pytest.mark.parametrize("temperature", [1.0, 0.5, 1e-3])
def test_the_temperature_scales_the_prior_and_no_flow_acts(temperature, tensors):
    state, _, noise = tensors
    flows = [lambda z: 100.0 * z]
    sample = PriorSource(noise, temperature).draw(layers(flows), state)
    mean, scale = clamped(state, 0.5 * state)
    near(sample.z, mean + temperature * scale * noise)
    near(PriorSource(noise, tf.constant(temperature)).draw(layers(flows), state).z, sample.z)
    assert sample.posterior is None and not sample.has_flows


def test_given_latents_are_taken_as_they_are(tensors):
    state, latent, _ = tensors
    sample = GivenSource(latent.astype(np.float64)).draw(layers([lambda z: 100.0 * z]), state)
    assert sample.z.dtype == tf.float32
    near(sample.z, latent)
    near(sample.prior.loc, clamped(state, 0.5 * state)[0])


def test_the_prior_of_the_top_group():
    mean, log_scale = standard_prior(tf.zeros((2, 3, 5, 8)), 4)
    np.testing.assert_array_equal(mean, np.zeros((2, 3, 5, 4)))
    np.testing.assert_array_equal(log_scale, np.zeros((2, 3, 5, 4)))
    top = layers()._replace(prior=lambda state: standard_prior(state, 4))
    sample = PriorSource(tf.ones((2, 3, 5, 4))).draw(top, tf.zeros((2, 3, 5, 8)))
    near(sample.z, np.full((2, 3, 5, 4), 1.01))
