import numpy as np
import pytest

from nvae_tf.generation.sampling import (
    decode_images,
    encode_images,
    interpolate_images,
    interpolate_latents,
    latent_direction,
    move_images,
    reconstruct_images,
)

SHAPE = (2, 2, 3)


def on_the_way(start, end, fractions, how):
    (way,) = interpolate_latents([start], [end], fractions, how)
    return way


def test_a_quarter_of_a_circle():
    start, end = np.zeros(SHAPE), np.zeros(SHAPE)
    start[0, 0, 0], end[1, 1, 2] = 2.0, 2.0
    way = on_the_way(start, end, [0.25, 1 / 3], "spherical")
    np.testing.assert_allclose(way[:, 0, 0, 0], 2 * np.cos([np.pi / 8, np.pi / 6]), rtol=1e-6)
    np.testing.assert_allclose(way[:, 1, 1, 2], 2 * np.sin([np.pi / 8, np.pi / 6]), rtol=1e-6)
    np.testing.assert_array_equal(on_the_way(start, end, [0.0, 1.0], "spherical"), [start, end])
    straight = on_the_way(start, end, [0.25], "linear")
    assert straight[0, 0, 0, 0] == 1.5 and straight[0, 1, 1, 2] == 0.5


@pytest.mark.parametrize("factor", [0.0, 1.0, 3.0, -1.0, 1.0 + 1e-6])
def test_parallel_opposite_and_zero_vectors_go_straight(factor):
    start = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    (found,) = on_the_way(start, factor * start, [0.25], "spherical")
    np.testing.assert_allclose(found, (0.75 + 0.25 * factor) * start, rtol=1e-5)


def test_ways_may_differ_by_scale_and_by_group():
    start, end = ([np.full((side, side, 1), value) for side in (2, 2, 4)] for value in (0.0, 1.0))
    for how in (["keep", "linear"], ["keep", "keep", "linear"]):
        way = interpolate_latents(start, end, [0.5], how)
        assert [latent.mean() for latent in way] == [0.0, 0.0, 0.5]
    with pytest.raises(ValueError, match="1 ways to interpolate: .* the 2 scales .* the 3 groups"):
        interpolate_latents(start, end, [0.5], ["linear"])
    with pytest.raises(ValueError, match="how = 'sphericla': .* did you mean 'spherical'"):
        interpolate_latents(start, end, [0.5], "sphericla")
    with pytest.raises(ValueError, match="both must be of one image"):
        interpolate_latents(start, end[:2], [0.5])


def test_a_path_passes_the_reconstructions_of_its_pictures(four_groups, binary_images):
    images = binary_images[:3]
    path = interpolate_images(four_groups, images, steps=4, seed=3)
    assert path.shape == (9, 4, 4, 1)
    np.testing.assert_array_equal(path[::4], reconstruct_images(four_groups, images, seed=3))
    latents = encode_images(four_groups, images, 3)
    between = interpolate_latents([z[1] for z in latents], [z[2] for z in latents], [0.25, 0.5, 0.75])
    np.testing.assert_allclose(path[5:8], decode_images(four_groups, between), atol=1e-5)
    np.testing.assert_array_equal(interpolate_images(four_groups, images, steps=1, seed=3), path[::4])


def test_kept_scales_stay_those_of_the_first_picture(four_groups, binary_images):
    path = interpolate_images(four_groups, binary_images[:3], 2, ["keep", "linear"], seed=3)
    latents = encode_images(four_groups, binary_images[:3], 3)
    mixed = [z[:1] for z in latents[:2]] + [z[2:] for z in latents[2:]]
    np.testing.assert_allclose(path[-1:], decode_images(four_groups, mixed), atol=1e-5)
    still = interpolate_images(four_groups, binary_images[:3], 2, "keep", seed=3)
    assert np.ptp(still, axis=0).max() < 1e-6
    for count, steps, message in ((1, 2, "at least two"), (2, 0, "steps = 0")):
        with pytest.raises(ValueError, match=message):
            interpolate_images(four_groups, binary_images[:count], steps)


def test_moving_along_the_difference_of_two_sets(four_groups, binary_images):
    positive, negative, images = binary_images[:6], binary_images[6:9], binary_images[9:12]
    direction = latent_direction(four_groups, positive, negative)
    means = [four_groups.encode(of, mean=True) for of in (positive, negative)]
    for step, plus, minus in zip(direction, *means, strict=True):
        np.testing.assert_allclose(step, np.mean(plus, axis=0) - np.mean(minus, axis=0), atol=1e-5)
    seen = []
    moved = move_images(four_groups, images, direction, [-1.5, 0.0], seed=3, progress=seen.append)
    assert moved.shape == (3, 2, 4, 4, 1) and seen == [6]
    np.testing.assert_allclose(moved[:, 1], reconstruct_images(four_groups, images, seed=3), atol=1e-6)
    expected = [z - 1.5 * step for z, step in zip(encode_images(four_groups, images, 3), direction, strict=True)]
    np.testing.assert_allclose(moved[:, 0], decode_images(four_groups, expected), atol=1e-5)
    for ask, message in (
        (lambda: latent_direction(four_groups, positive, images[:0]), "at least one positive and one negative"),
        (lambda: move_images(four_groups, images, direction[:3], [1.0]), "latents have shapes"),
        (lambda: move_images(four_groups, images, direction, []), "strengths are empty"),
    ):
        with pytest.raises(ValueError, match=message):
            ask()
