"""The picture of the KL of every channel."""

import numpy as np

from nvae_tf.evaluation.kl_heat_map import kl_heat_map

SHAPES = [(1, 1, 3), (4, 4, 3)]
DARK, LIGHT = (68, 1, 84), (253, 231, 37)


def cells(picture):
    """The colors of a picture's places, in rows of groups."""
    return picture[24 + 8 :: 16, 118 + 8 :: 16][:2, :3]


def test_rows_are_groups_and_columns_channels_in_descending_order():
    # The same KL of a position in both groups.
    picture = kl_heat_map(np.array([[0.0, 20.0, 0.1], [0.0, 320.0, 1.6]]), SHAPES)
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    found = cells(picture)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0][0], LIGHT)
    np.testing.assert_array_equal(found[0][2], DARK)
    # 0.1 is half way from 0.001 to 10 on the scale.
    np.testing.assert_array_equal(found[0][1], (33, 145, 140))
