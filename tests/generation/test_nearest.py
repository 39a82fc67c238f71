import numpy as np
import pytest

from nvae_tf.generation.nearest import nearest_images


@pytest.fixture
def images():
    return np.random.default_rng(0).uniform(size=(23, 3, 5, 2)).astype(np.float32)


@pytest.mark.parametrize(("batch_size", "count"), [(1, 6), (4, 23)])
def test_against_brute_force(images, batch_size, count):
    samples = np.random.default_rng(1).uniform(size=(7, 3, 5, 2)).astype(np.float32)
    batches = (images[first : first + batch_size] for first in range(0, 23, batch_size))
    found = nearest_images(samples, batches, count)
    every_pair = ((samples[:, None].astype(float) - images) ** 2).mean(axis=(2, 3, 4))
    expected = np.argsort(every_pair, axis=1)[:, :count]
    np.testing.assert_array_equal(found.numbers, expected)
    np.testing.assert_allclose(found.distances, np.take_along_axis(every_pair, expected, axis=1), rtol=1e-9)
    np.testing.assert_array_equal(found.images, images[expected])


def test_an_image_is_nearest_to_itself_and_the_earlier_of_equals_wins(images):
    found = nearest_images(images[4:6], [images, images], 2)
    np.testing.assert_array_equal(found.numbers, [[4, 27], [5, 28]])
    np.testing.assert_allclose(found.distances, 0.0, atol=1e-12)


def test_wrong_arguments(images):
    for samples, count, message in (
        (images, 0, "count = 0"),
        (images, 24, "count = 24: there are only 23 images"),
        (images[:, :2], 1, "can't be compared"),
    ):
        with pytest.raises(ValueError, match=message):
            nearest_images(samples, [images], count)
