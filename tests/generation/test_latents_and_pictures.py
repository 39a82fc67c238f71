"""Encoding, decoding, reconstructing and varying: what must be the same, bit for bit, and what must differ."""

import gc
import weakref

import numpy as np
import pytest

import nvae_tf
from nvae_tf.generation.encoding import encode_images
from nvae_tf.generation.reconstruction import reconstruct_images, vary_images
from nvae_tf.generation.sampling import ImageGenerator, decode_images, generate_images
from tests.tiny_model import tiny_config

same = np.testing.assert_array_equal
SEED = 3


@pytest.fixture(scope="module")
def latents(four_groups, binary_images):
    return encode_images(four_groups, binary_images, SEED)


def test_latents_are_those_of_the_model(four_groups, binary_images, latents):
    assert [z.shape for z in latents] == [(21, 2, 2, 2)] * 2 + [(21, 4, 4, 2)] * 2
    for z, expected in zip(latents, four_groups.encode(binary_images, seed=SEED), strict=True):
        np.testing.assert_allclose(z, expected, atol=1e-5)
    means = encode_images(four_groups, binary_images, mean=True)
    for z, expected in zip(means, four_groups.encode(binary_images, mean=True), strict=True):
        np.testing.assert_allclose(z, expected, atol=1e-5)


def test_the_latents_of_an_image_do_not_depend_on_how_many_there_are(four_groups, binary_images, latents):
    for count in (1, 16):
        for few, many in zip(encode_images(four_groups, binary_images[:count], SEED), latents, strict=True):
            same(few, many[:count])


def test_decoding_latents_is_reconstructing(four_groups, binary_images, latents):
    reconstructions = reconstruct_images(four_groups, binary_images, seed=SEED)
    same(decode_images(four_groups, latents), reconstructions)
    same(decode_images(four_groups, [z[:2] for z in latents]), reconstructions[:2])
    np.testing.assert_allclose(reconstructions, four_groups(binary_images, seed=SEED), atol=1e-5)


def test_a_reconstruction_by_the_top_groups_draws_the_rest(four_groups, binary_images, latents):
    images = reconstruct_images(four_groups, binary_images[:5], 2, [0.5, 0.9], SEED)
    expected = four_groups.decode([z[:5] for z in latents[:2]], [0.5, 0.9], SEED)
    np.testing.assert_allclose(images, expected, atol=1e-5)
    same(images, decode_images(four_groups, [z[:5] for z in latents[:2]], [0.5, 0.9], SEED))


def test_with_no_group_kept_there_are_plain_samples(four_groups, binary_images):
    samples = generate_images(four_groups, 21, [0.5, 0.9], SEED)
    same(reconstruct_images(four_groups, binary_images, 0, [0.5, 0.9], SEED), samples)
    np.testing.assert_allclose(samples, four_groups.generate(21, [0.5, 0.5, 0.9, 0.9], SEED), atol=1e-5)


def test_variants_with_all_groups_kept_are_the_reconstruction(four_groups, binary_images):
    variants = vary_images(four_groups, binary_images[:3], 4, 5, seed=SEED)
    assert variants.shape == (3, 5, 4, 4, 1)
    same(variants, np.repeat(reconstruct_images(four_groups, binary_images[:3], seed=SEED)[:, None], 5, axis=1))


def test_variants_have_their_pictures_latents_and_draws_of_their_own(four_groups, binary_images):
    many = vary_images(four_groups, binary_images[:3], 2, 7, seed=SEED)
    same(many[:, :2], vary_images(four_groups, binary_images[:3], 2, 2, seed=SEED))
    flat = many.reshape(21, -1)
    assert len(np.unique(flat, axis=0)) == 21
    # Hardly any temperature leaves only what is kept.
    cold = vary_images(four_groups, binary_images[:3], 2, 7, 1e-6, SEED)
    assert cold.std(axis=1).max() < 1e-5 < 1e-3 < cold.std(axis=0).max()


@pytest.mark.parametrize("kept_groups", [-1, 5])
def test_impossible_numbers_of_kept_groups_are_refused(four_groups, binary_images, kept_groups):
    message = f"kept_groups = {kept_groups}: this model has 4 latent groups, so it must be from 0 to 4"
    with pytest.raises(ValueError, match=message):
        reconstruct_images(four_groups, binary_images, kept_groups)
    with pytest.raises(ValueError, match=message):
        vary_images(four_groups, binary_images, kept_groups, 1)


def test_other_wrong_arguments_are_refused(four_groups, binary_images, latents):
    with pytest.raises(ValueError, match="count = 0"):
        vary_images(four_groups, binary_images, 1, 0)
    with pytest.raises(ValueError, match=r"shape \(21, 2, 4, 1\)"):
        encode_images(four_groups, binary_images[:, :2])
    with pytest.raises(ValueError, match="3 temperatures"):
        generate_images(four_groups, 1, [0.5, 0.6, 0.7])
    with pytest.raises(ValueError, match="latents are of 21 images, but 3 are asked for"):
        ImageGenerator(four_groups).generate(3, latents=latents)
    with pytest.raises(ValueError, match="latents have shapes"):
        decode_images(four_groups, [])


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
