import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from nvae_tf.models import latents
from nvae_tf.models.latents import image_seeds as seeds
from nvae_tf.models.top_down import standard_prior

SHAPES = ((2, 3, 4), (4, 6, 4), (4, 6, 4))


def layers(flows=()):
    return latents.GroupLayers(
        cells=[],
        prior=lambda state: tf.concat([state, 0.5 * state], -1),
        posterior=lambda state, feature, prior: prior + tf.concat([state + feature, feature], -1),
        flows=list(flows),
        combine=None,
    )


@pytest.fixture
def tensors():
    generator = np.random.default_rng(0)
    return [2.0 * generator.normal(size=(2, 3, 3, 4)).astype(np.float32) for _ in range(3)]


def clamped(mean, log_scale):
    return 5.0 * np.tanh(mean / 5.0), np.exp(5.0 * np.tanh(log_scale / 5.0)) + 0.01


def near(value, expected):
    np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)


def test_the_posterior_is_clamped_after_the_addition_and_drawn_from_before_the_flows(tensors):
    state, feature, noise = tensors
    sample = latents.PosteriorSource(feature, noise).draw(layers(), state)
    mean, scale = clamped(2.0 * state + feature, 0.5 * state + feature)
    near(sample.posterior.loc, mean)
    near(sample.posterior.scale, scale)
    near(sample.z, mean + scale * noise)
    near((sample.prior.loc, sample.prior.scale), clamped(state, 0.5 * state))
    assert sample.z_before_flows is sample.z and not sample.has_flows
    flows = layers([lambda z: 2.0 * z, lambda z: z + 1.0])
    flowed = latents.PosteriorSource(feature, noise).draw(flows, state)
    near(flowed.z_before_flows, sample.z)
    near(flowed.z, 2.0 * sample.z + 1.0)
    assert flowed.has_flows


def test_given_latents_are_taken_as_they_are_and_the_prior_of_the_top_group_is_standard_with_scale_1_01(tensors):
    state, latent, noise = tensors
    sample = latents.GivenSource(latent.astype(np.float64)).draw(layers([lambda z: 100.0 * z]), state)
    assert sample.z.dtype == tf.float32
    near(sample.z, latent)
    mean, scale = clamped(state, 0.5 * state)
    near(sample.prior.loc, mean)
    # No flow acts on draws of the prior either, whose scale the temperature multiplies.
    sample = latents.PriorSource(noise, 0.5).draw(layers([lambda z: 100.0 * z]), state)
    near(sample.z, mean + 0.5 * scale * noise)
    top = layers()._replace(prior=lambda state: standard_prior(state, 4))
    sample = latents.PriorSource(tf.ones((2, 3, 5, 4))).draw(top, tf.zeros((2, 3, 5, 8)))
    near(sample.prior.loc, np.zeros((2, 3, 5, 4)))
    near(sample.z, np.full((2, 3, 5, 4), 1.01))


# The draws of a number of images, or samples, for a seed and a step.
DRAWS = {
    "batch": lambda count, seed=2, step=0: latents.batch_noise(SHAPES, count, (seed, step)),
    "per image": lambda count, seed=2, step=0: latents.noise_per_image(SHAPES, seeds(seed, count, first=step)),
    "samples": lambda count, seed=2, step=0: latents.noise_per_image(SHAPES, seeds(seed, 1), step, count),
}


def flat(noise):
    return np.concatenate([np.reshape(draw, (len(draw), -1)) for draw in noise], axis=1)


@pytest.mark.parametrize("kind", DRAWS)
def test_draws_are_standard_normal_independent_and_a_function_of_seed_and_step(kind):
    draw = DRAWS[kind]
    noise = draw(300)
    assert [tuple(each.shape) for each in noise] == [(300, *shape) for shape in SHAPES]
    drawn = flat(noise)
    assert scipy.stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
    for rows in (drawn.T, drawn):
        assert np.max(np.abs(np.corrcoef(rows) - np.eye(len(rows)))) < 6.0 / np.sqrt(rows.shape[1])
    drawn = flat(draw(4))
    np.testing.assert_array_equal(flat(draw(4)), drawn)
    np.testing.assert_array_equal(flat(tf.function(draw)(4)), drawn)
    for settings in (dict(seed=0), dict(seed=-1), dict(seed=2**31 - 1), dict(step=7)):
        assert np.all(np.any(flat(draw(4, **settings)) != drawn, axis=1))


def test_the_draw_of_an_image_does_not_depend_on_its_batch():
    np.testing.assert_array_equal(latents.image_seeds(7, 2, first=4), [[7, 4], [7, 5]])
    many, seeds = flat(latents.noise_per_image(SHAPES, latents.image_seeds(3, 6))), latents.image_seeds(3, 6)
    np.testing.assert_array_equal(flat(latents.noise_per_image(SHAPES, latents.image_seeds(3, 2, first=4))), many[4:])
    np.testing.assert_array_equal(flat(latents.noise_per_image(SHAPES, seeds[::-1]))[::-1], many)
    # The numbers that older exports and scores were made with.
    seeds = [[3, 0], [-1, 5], [2**31 - 1, -7]]
    plain = [tf.random.stateless_normal([many.shape[1]], seed, alg="philox") for seed in seeds]
    np.testing.assert_array_equal(flat(latents.noise_per_image(SHAPES, tf.constant(seeds))), plain)
    # Of a batch it depends on the place.
    whole, last = flat(latents.batch_noise(SHAPES, 6, (3, 0))), flat(latents.batch_noise(SHAPES, 2, (3, 0), first=4))
    np.testing.assert_array_equal(last, whole[4:])
