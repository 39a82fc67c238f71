import gc
import weakref

import numpy as np
import pytest

import nvae_tf
from nvae_tf.generation.sampling import (
    ImageGenerator,
    decode_images,
    encode_images,
    generate_images,
    nearest_images,
    numbers_of_shared_groups,
    samples_sharing_groups,
)
from tests.generation.conftest import SEED
from tests.tiny_model import assert_same, tiny_config

same = np.testing.assert_array_equal


def test_samples_are_those_of_the_model_however_many_there_are(four_groups):
    seen = []
    many = generate_images(four_groups, 35, [0.5, 0.9], SEED, seen.append)
    assert seen == [16, 32, 35]
    same(many[:5], generate_images(four_groups, 5, [0.5, 0.9], SEED))
    np.testing.assert_allclose(many, four_groups.generate(35, [0.5, 0.5, 0.9, 0.9], SEED), atol=1e-5)
    for other in (generate_images(four_groups, 5, [0.5, 0.9], 4), generate_images(four_groups, 5, [0.1, 0.9], SEED)):
        assert np.abs(many[:5] - other).max() > 1e-4


def test_latents_are_those_of_the_model_however_many_there_are(four_groups, binary_images, latents):
    assert [z.shape for z in latents] == [(21, 2, 2, 2)] * 2 + [(21, 4, 4, 2)] * 2
    for z, expected in zip(latents, four_groups.encode(binary_images, seed=SEED), strict=True):
        np.testing.assert_allclose(z, expected, atol=1e-5)
    means = encode_images(four_groups, binary_images, mean=True)
    for z, expected in zip(means, four_groups.encode(binary_images, mean=True), strict=True):
        np.testing.assert_allclose(z, expected, atol=1e-5)
    for count in (1, 16):
        assert_same(encode_images(four_groups, binary_images[:count], SEED), [z[:count] for z in latents])


def test_latents_and_images_that_do_not_fit(four_groups, binary_images, latents):
    for ask, message in (
        (lambda: encode_images(four_groups, binary_images[:, :2]), r"shape \(21, 2, 4, 1\)"),
        (lambda: ImageGenerator(four_groups).generate(3, latents=latents), "of 21 images, but 3 are asked for"),
        (lambda: decode_images(four_groups, []), "latents have shapes"),
        (lambda: generate_images(four_groups, 0), "count = 0"),
        (lambda: generate_images(four_groups, 1, [0.5, 0.6, 0.7]), "3 temperatures"),
    ):
        with pytest.raises(ValueError, match=message):
            ask()


def test_kept_graphs_see_new_weights_and_do_not_keep_the_model():
    model = nvae_tf.NVAE(tiny_config())
    before = generate_images(model, 2)
    model.top_down.start.assign(model.top_down.start + 1.0)
    after = generate_images(model, 2)
    assert np.abs(after - before).max() > 1e-4
    np.testing.assert_allclose(after, model.generate(2), atol=1e-5)
    model = weakref.ref(model)
    gc.collect()
    assert model() is None


def test_samples_that_share_groups(four_groups):
    plain = four_groups.generate(5, seed=2).numpy()
    rows = [samples_sharing_groups(four_groups, number, 5, seed=2) for number in range(5)]
    np.testing.assert_allclose(rows[0], plain, atol=1e-6)
    np.testing.assert_allclose(rows[4], np.repeat(plain[:1], 5, axis=0), atol=1e-6)
    for row in rows:
        np.testing.assert_allclose(row[0], plain[0], atol=1e-6)
    assert min(row.std(axis=0).mean() for row in rows[:4]) > 1e-6
    assert [numbers_of_shared_groups(groups) for groups in (1, 2, 4)] == [[0], [0, 1], [0, 1, 2, 3]]
    assert numbers_of_shared_groups(30) == [0, 1, 2, 4, 8, 16, 29]


@pytest.mark.parametrize(("batch_size", "count"), [(1, 6), (4, 23)])
def test_the_nearest_images_against_looking_at_every_pair(batch_size, count):
    images, samples = (np.random.default_rng(0).uniform(size=(n, 3, 5, 2)).astype(np.float32) for n in (23, 7))
    samples, seen = 1 - samples, []
    batches = (images[first : first + batch_size] for first in range(0, 23, batch_size))
    numbers, distances, found = nearest_images(samples, batches, count, seen.append)
    every_pair = ((samples[:, None].astype(float) - images) ** 2).mean(axis=(2, 3, 4))
    expected = np.argsort(every_pair, axis=1)[:, :count]
    same(numbers, expected)
    np.testing.assert_allclose(distances, np.take_along_axis(every_pair, expected, axis=1), rtol=1e-9)
    same(found, images[expected])
    assert seen[-1] == 23
    # An image is nearest to itself, and the earlier of equals wins.
    numbers, distances, _ = nearest_images(images[4:6], [images, images], 2, seen.append)
    same(numbers, [[4, 27], [5, 28]])
    np.testing.assert_allclose(distances, 0.0, atol=1e-12)
