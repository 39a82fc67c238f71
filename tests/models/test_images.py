import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.config import ModelConfig
from nvae_tf.models.images import check_images, frame, real_pixels

CONFIG = ModelConfig(image_height=6, image_width=4, image_channels=3, padded_height=8, padded_width=8)
GOOD = np.random.default_rng(0).uniform(size=(2, 6, 4, 3))


@pytest.mark.parametrize(("height", "width"), [(6, 4), (8, 8), (7, 5)])
def test_the_frame_is_zeros_and_comes_off_again(height, width):
    images = tf.constant(GOOD, tf.float32)
    framed = frame(images, dataclasses.replace(CONFIG, padded_height=height, padded_width=width))
    assert tuple(framed.shape) == (2, height, width, 3)
    top, left = (height - 6) // 2, (width - 4) // 2
    np.testing.assert_array_equal(framed[:, top : top + 6, left : left + 4], images)
    assert np.sum(framed) == pytest.approx(np.sum(images), rel=1e-6)
    np.testing.assert_array_equal(real_pixels(framed, 6, 4), images)


def test_other_images_are_refused():
    for images, message in (
        (GOOD[0], r"shape \(6, 4, 3\); this model takes \[batch, 6, 4, 3\]"),
        (GOOD[:0], "give at least one"),
        (np.zeros((2, 8, 8, 3)), r"shape \(2, 8, 8, 3\)"),  # the frame is the model's own affair
        (255.0 * GOOD, r"values from .* must be in \[0, 1\], without NaN: divide 8-bit values by 255"),
        (np.uint8(255 * GOOD), "of type uint8"),
        (np.where(GOOD > 0.9, np.nan, GOOD), "values from nan"),
    ):
        with pytest.raises(ValueError, match=message):
            check_images(images, CONFIG)
    half = GOOD.astype(np.float16) * np.float16(1 + np.finfo(np.float16).eps)
    for images in (half, GOOD > 0.5):
        np.testing.assert_array_equal(check_images(images, CONFIG), np.float32(images))
