"""A tiny model of two scales with two groups each: its samples, latents, reconstructions, paths and neighbors."""

import gc
import weakref

import numpy as np
import pytest

import nvae_tf
from nvae_tf.generation import sampling
from tests.tiny_model import assert_same, tiny_config

SEED = 3
SHAPE = (2, 2, 3)
same, near = np.testing.assert_array_equal, np.testing.assert_allclose


@pytest.fixture(scope="module")
def model():
    return nvae_tf.NVAE(tiny_config(num_groups_per_scale=2))


@pytest.fixture(scope="module")
def images():
    """More than one batch, the last not full."""
    return np.random.default_rng(0).integers(0, 2, (21, 4, 4, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def latents(model, images):
    return sampling.encode_images(model, images, SEED)


def test_samples_are_those_of_the_model_however_many_there_are(model):
    seen = []
    many = sampling.generate_images(model, 35, [0.5, 0.9], SEED, progress=seen.append)
    assert seen == [16, 32, 35]
    same(many[:5], sampling.generate_images(model, 5, [0.5, 0.9], SEED))
    near(many, model.generate(35, [0.5, 0.5, 0.9, 0.9], SEED), atol=1e-5)
    for other in (([0.5, 0.9], 4), ([0.1, 0.9], SEED)):
        assert np.abs(many[:5] - sampling.generate_images(model, 5, *other)).max() > 1e-4


def test_latents_are_those_of_the_model_however_many_there_are(model, images, latents):
    assert [z.shape for z in latents] == [(21, 2, 2, 2)] * 2 + [(21, 4, 4, 2)] * 2
    means = sampling.encode_images(model, images, mean=True)
    for made, expected in ((latents, model.encode(images, seed=SEED)), (means, model.encode(images, mean=True))):
        for z, other in zip(made, expected, strict=True):
            near(z, other, atol=1e-5)
    assert_same(sampling.encode_images(model, images[:1], SEED), [z[:1] for z in latents])


def test_kept_graphs_see_new_weights_and_do_not_keep_the_model():
    model = nvae_tf.NVAE(tiny_config())
    before = sampling.generate_images(model, 2)
    model.top_down.start.assign(model.top_down.start + 1.0)
    after = sampling.generate_images(model, 2)
    assert np.abs(after - before).max() > 1e-4
    near(after, model.generate(2), atol=1e-5)
    model = weakref.ref(model)
    gc.collect()
    assert model() is None


def test_decoding_latents_is_reconstructing(model, images, latents):
    reconstructions = sampling.reconstruct_images(model, images, seed=SEED)
    same(sampling.generate_images(model, 21, latents=latents), reconstructions)
    same(sampling.generate_images(model, 2, latents=[z[:2] for z in latents]), reconstructions[:2])
    near(reconstructions, model(images, seed=SEED), atol=1e-5)


def test_variants_have_their_images_latents_and_draws_of_their_own(model, images):
    many = sampling.vary_images(model, images[:3], 2, 7, seed=SEED)
    same(many[:, :2], sampling.vary_images(model, images[:3], 2, 2, seed=SEED))
    assert many.shape == (3, 7, 4, 4, 1) and len(np.unique(many.reshape(21, -1), axis=0)) == 21
    all_kept = sampling.vary_images(model, images[:3], 4, 2, seed=SEED)
    same(all_kept, np.stack([sampling.reconstruct_images(model, images[:3], seed=SEED)] * 2, axis=1))


def test_a_quarter_of_a_circle():
    start, end = np.zeros(SHAPE), np.zeros(SHAPE)
    start[0, 0, 0], end[1, 1, 2] = 2.0, 2.0
    way = sampling.latents_between(start, end, [0.25, 1 / 3], "spherical")
    near(way[:, 0, 0, 0], 2 * np.cos([np.pi / 8, np.pi / 6]), rtol=1e-6)
    near(way[:, 1, 1, 2], 2 * np.sin([np.pi / 8, np.pi / 6]), rtol=1e-6)
    same(sampling.latents_between(start, end, [0.0, 1.0], "spherical"), [start, end])
    straight = sampling.latents_between(start, end, [0.25], "linear")
    assert straight[0, 0, 0, 0] == 1.5 and straight[0, 1, 1, 2] == 0.5

    # Parallel, opposite and zero vectors go straight.
    for factor in (0.0, 3.0, -1.0, 1.0 + 1e-6):
        (way,) = sampling.latents_between(end, factor * end, [0.25], "spherical")
        near(way, (0.75 + 0.25 * factor) * end, rtol=1e-5)


def test_a_path_passes_the_reconstructions_of_its_pictures(model, images, latents):
    path = sampling.interpolate_images(model, images[:3], steps=4, seed=SEED)
    assert path.shape == (9, 4, 4, 1)
    same(path[::4], sampling.reconstruct_images(model, images[:3], seed=SEED))
    between = [sampling.latents_between(z[1], z[2], [0.25, 0.5, 0.75], "spherical") for z in latents]
    near(path[5:8], model.decode(between), atol=1e-5)
    same(sampling.interpolate_images(model, images[:3], steps=1, seed=SEED), path[::4])
    # Kept scales stay as in the first picture.
    path = sampling.interpolate_images(model, images[:3], 2, ["keep", "linear"], seed=SEED)
    mixed = [z[:1] for z in latents[:2]] + [z[2:3] for z in latents[2:]]
    near(path[-1:], model.decode(mixed), atol=1e-5)


def test_moving_along_the_difference_of_two_sets(model, images, latents):
    direction = sampling.latent_direction(model, images[:6], images[6:9])
    means = [model.encode(images_of_side, mean=True) for images_of_side in (images[:6], images[6:9])]
    for step, plus, minus in zip(direction, *means, strict=True):
        near(step, np.mean(plus, axis=0) - np.mean(minus, axis=0), atol=1e-5)
    seen = []
    moved = sampling.move_images(model, images[:3], direction, [-1.5, 0.0], seed=SEED, progress=seen.append)
    assert moved.shape == (3, 2, 4, 4, 1) and seen == [6]
    near(moved[:, 1], sampling.reconstruct_images(model, images[:3], seed=SEED), atol=1e-6)
    near(moved[:, 0], model.decode([z[:3] - 1.5 * step for z, step in zip(latents, direction, strict=True)]), atol=1e-5)


def test_what_does_not_fit(model, latents, images):
    for ask, message in (
        (lambda model, z, x: sampling.generate_images(model, 3, latents=z), "of 21 images, but 3 are asked for"),
        (lambda model, z, x: sampling.vary_images(model, x, 5, 1), "kept_groups = 5: must be a whole number from"),
        (lambda model, z, x: sampling.interpolate_images(model, x[:1], 2), "at least two"),
        (lambda model, z, x: sampling.interpolate_images(model, x, 2, ["keep"] * 3), "3 ways to interpolate: give one"),
        (lambda model, z, x: sampling.interpolate_images(model, x, 2, "sphericla"), "did you mean 'spherical'"),
        (lambda model, z, x: sampling.latent_direction(model, x, x[:0]), "at least one positive and one negative"),
    ):
        with pytest.raises(ValueError, match=message):
            ask(model, latents, images)


def test_samples_that_share_groups(model):
    plain = model.generate(5, seed=2).numpy()
    numbers, rows = sampling.rows_sharing_groups(model, 5, seed=2)
    assert numbers == [0, 1, 2, 3] and min(row.std(axis=0).mean() for row in rows) > 1e-6
    near(rows[0], plain, atol=1e-6)
    near(rows[:, 0], np.repeat(plain[:1], 4, axis=0), atol=1e-6)


@pytest.mark.parametrize("count", [6, 23])
def test_the_nearest_images_against_looking_at_every_pair(count):
    images, samples = (np.random.default_rng(0).uniform(size=(n, 3, 5, 2)).astype(np.float32) for n in (23, 7))
    samples, seen = 1 - samples, []
    batches = (images[first : first + 4] for first in range(0, 23, 4))
    numbers, distances, nearest = sampling.nearest_images(samples, batches, count, seen.append)
    every_pair = ((samples[:, None].astype(float) - images) ** 2).mean(axis=(2, 3, 4))
    expected = np.argsort(every_pair, axis=1)[:, :count]
    same(numbers, expected)
    near(distances, np.take_along_axis(every_pair, expected, axis=1), rtol=1e-9)
    same(nearest, images[expected])
    assert seen[-1] == 23
    # An image is nearest to itself, and the earlier of equals wins.
    numbers, distances, _ = sampling.nearest_images(images[4:6], [images, images], 2)
    same(numbers, [[4, 27], [5, 28]])
    near(distances, 0.0, atol=1e-12)
