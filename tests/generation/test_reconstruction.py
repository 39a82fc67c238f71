import numpy as np
import pytest

from nvae_tf.generation.sampling import decode_images, generate_images, reconstruct_images, vary_images
from tests.generation.conftest import SEED

same = np.testing.assert_array_equal


@pytest.mark.slow
def test_decoding_latents_is_reconstructing(four_groups, binary_images, latents):
    reconstructions = reconstruct_images(four_groups, binary_images, seed=SEED)
    same(decode_images(four_groups, latents), reconstructions)
    same(decode_images(four_groups, [z[:2] for z in latents]), reconstructions[:2])
    np.testing.assert_allclose(reconstructions, four_groups(binary_images, seed=SEED), atol=1e-5)


def test_a_reconstruction_by_the_top_groups_draws_the_rest(four_groups, binary_images, latents):
    images = reconstruct_images(four_groups, binary_images[:5], 2, [0.5, 0.9], SEED)
    expected = four_groups.decode([z[:5] for z in latents[:2]], [0.5, 0.9], SEED)
    np.testing.assert_allclose(images, expected, atol=1e-5)
    samples = generate_images(four_groups, 21, [0.5, 0.9], SEED)
    same(reconstruct_images(four_groups, binary_images, 0, [0.5, 0.9], SEED), samples)


def test_variants_have_their_images_latents_and_draws_of_their_own(four_groups, binary_images):
    many = vary_images(four_groups, binary_images[:3], 2, 7, seed=SEED)
    same(many[:, :2], vary_images(four_groups, binary_images[:3], 2, 2, seed=SEED))
    assert many.shape == (3, 7, 4, 4, 1) and len(np.unique(many.reshape(21, -1), axis=0)) == 21
    all_kept = vary_images(four_groups, binary_images[:3], 4, 2, seed=SEED)
    same(all_kept, np.stack([reconstruct_images(four_groups, binary_images[:3], seed=SEED)] * 2, axis=1))
    # Hardly any temperature leaves only what is kept.
    cold = vary_images(four_groups, binary_images[:3], 2, 7, 1e-6, SEED)
    assert cold.std(axis=1).max() < 1e-5 < 1e-3 < cold.std(axis=0).max()


def test_impossible_numbers(four_groups, binary_images):
    for kept_groups in (-1, 5):
        with pytest.raises(ValueError, match=f"kept_groups = {kept_groups}: this model has 4 .* must be from 0 to 4"):
            reconstruct_images(four_groups, binary_images, kept_groups)
    with pytest.raises(ValueError, match="count = 0"):
        vary_images(four_groups, binary_images, 1, 0)
