"""The draws as a function of their seeds alone."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from nvae_tf.models.latents import batch_noise, image_seeds, noise_of_samples, noise_per_image

SHAPES = ((2, 3, 4), (4, 6, 4), (4, 6, 4))


def assert_same(first, second):
    for mine, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def flat(noise):
    return np.concatenate([np.reshape(draw, (len(draw), -1)) for draw in noise], axis=1)


def test_seeds_of_images():
    np.testing.assert_array_equal(image_seeds(7, 3), [[7, 0], [7, 1], [7, 2]])
    np.testing.assert_array_equal(image_seeds(7, 2, first=4), [[7, 4], [7, 5]])


def test_the_draw_of_an_image_does_not_depend_on_its_batch():
    many = noise_per_image(SHAPES, image_seeds(3, 6))
    few = noise_per_image(SHAPES, image_seeds(3, 2, first=4))
    assert_same([draw[4:] for draw in many], few)
    backwards = noise_per_image(SHAPES, image_seeds(3, 6)[::-1])
    assert_same([draw[::-1] for draw in backwards], many)


@pytest.mark.parametrize(
    "draw",
    [lambda: batch_noise(SHAPES, 4, (1, 2)), lambda: noise_per_image(SHAPES, image_seeds(1, 4))],
    ids=["batch", "per image"],
)
def test_the_same_in_eager_mode_and_in_a_graph(draw):
    assert_same(draw(), draw())
    assert_same(tf.function(draw)(), draw())


@pytest.mark.parametrize("kind", ["batch", "per image"])
def test_standard_normal_and_independent_between_images_and_groups(kind):
    seeds = image_seeds(2, 300)
    noise = batch_noise(SHAPES, 300, (2, 0)) if kind == "batch" else noise_per_image(SHAPES, seeds)
    values = flat(noise)
    assert scipy.stats.kstest(values.ravel(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(values.T) - np.eye(values.shape[1])
    assert np.max(np.abs(correlation)) < 6.0 / np.sqrt(300)
    between_images = np.corrcoef(values) - np.eye(300)
    assert np.max(np.abs(between_images)) < 6.0 / np.sqrt(values.shape[1])


@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: batch_noise(SHAPES, 2, (seed, 0)),
        lambda step: batch_noise(SHAPES, 2, (0, step)),
        lambda seed: noise_per_image(SHAPES, image_seeds(seed, 2)),
    ],
    ids=["seed", "step", "seed of images"],
)
def test_another_seed_or_step_is_another_draw(draw):
    draws = [flat(draw(number)).ravel() for number in (0, 1, -1, 2**31 - 1)]
    for index, one in enumerate(draws):
        assert not any(np.any(one == other) for other in draws[:index])


def test_samples_of_an_image_are_a_function_of_its_seed_and_their_number():
    seeds = image_seeds(4, 3)
    whole = flat(noise_of_samples(SHAPES, seeds, 0, 8)).reshape(3, 8, -1)
    for first, count in [(0, 3), (tf.constant(3), 4), (7, 1)]:
        part = flat(noise_of_samples(SHAPES, seeds, first, count)).reshape(3, count, -1)
        np.testing.assert_array_equal(part, whole[:, int(first) : int(first) + count])
    alone = flat(noise_of_samples(SHAPES, seeds[1:2], 0, 8))
    np.testing.assert_array_equal(alone, whole[1])
