"""The fingerprint of a data set's content."""

import dataclasses

import numpy as np
import pytest

from nvae_tf.data import data_spec
from nvae_tf.data.pipeline import content_digest
from nvae_tf.data.sources import ArraySource

SPEC = dataclasses.replace(data_spec("cifar10"), height=3, width=2)
IMAGES = np.random.default_rng(0).integers(0, 256, [300, 3, 2, 3], dtype=np.uint8)


def digest(images, **changes):
    return content_digest(ArraySource(images), dataclasses.replace(SPEC, **changes))


def test_the_same_images_have_the_same_whatever_is_made_of_them():
    expected = digest(IMAGES)
    assert len(expected) == 64
    assert digest(IMAGES.copy(), num_bits=5, horizontal_flip=False, name="others", path="elsewhere") == expected
    gray = dataclasses.replace(data_spec("mnist"), height=3, width=2, channels=3, padded_height=None, padded_width=None)
    assert content_digest(ArraySource(IMAGES), gray) == expected


@pytest.mark.parametrize(
    "change", [lambda images: 255 - images, lambda images: images[:-1], lambda images: images[::-1]]
)
def test_other_images_have_another(change):
    assert digest(change(IMAGES)) != digest(IMAGES)


def test_the_first_and_the_last_count():
    for index in (0, -1):
        changed = IMAGES.copy()
        changed[index, 0, 0, 0] ^= 1
        assert digest(changed) != digest(IMAGES)
