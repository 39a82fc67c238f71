"""How pictures are cut and scaled, shown on pictures whose pixels are their own coordinates."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from nvae_tf.data import data_spec
from nvae_tf.data.pictures import Geometry, WrongSize, fit_pixels
from tests.data.picture_factory import random_pixels

CELEBA = data_spec("celeba64")


def coordinates(height, width):
    """A picture that has its x in the first channel, its y in the second, both below 256."""
    y, x = np.mgrid[:height, :width].astype(np.uint8)
    return np.stack([x, y, np.zeros_like(x)], axis=-1)


def applied(geometry, pixels):
    return np.asarray(geometry.apply(Image.fromarray(pixels))).astype(int)


def assert_shows(found, columns, rows, tolerance=0.0):
    """Whether the pixels of `found` come from these columns and rows of a picture of coordinates."""
    assert found.shape[:2] == (len(rows), len(columns))
    assert np.abs(found[..., 0] - np.asarray(columns)).max() <= tolerance
    assert np.abs(found[..., 1] - np.asarray(rows)[:, np.newaxis]).max() <= tolerance


def centers(start, stop, count):
    """The middle of each of `count` equal cells between two borders; pixel 0 goes from 0 to 1 and is called 0."""
    return start + (np.arange(count) + 0.5) * (stop - start) / count - 0.5


def test_a_picture_of_the_right_size_stays_as_it_is():
    pixels = random_pixels(7, 5, 3)
    for resize in ("none", "crop", "stretch"):
        np.testing.assert_array_equal(applied(Geometry(7, 5, None, resize), pixels), pixels)
    assert Geometry(7, 5).changes_nothing
    assert not Geometry(7, 5, None, "crop").changes_nothing and not Geometry(7, 5, (0, 0, 5, 7)).changes_nothing


def test_the_box_is_left_top_right_bottom():
    found = applied(Geometry(height=30, width=20, crop_box=(3, 40, 23, 70)), coordinates(100, 60))
    assert_shows(found, columns=range(3, 23), rows=range(40, 70))


@pytest.mark.parametrize(
    ("height", "width", "columns", "rows"),
    [
        (20, 50, (15, 35), (0, 20)),
        (50, 20, (0, 20), (15, 35)),
        (20, 20, (0, 20), (0, 20)),
    ],
)
def test_crop_without_scaling_takes_the_middle(height, width, columns, rows):
    found = applied(Geometry(20, 20, None, "crop"), coordinates(height, width))
    assert_shows(found, range(*columns), range(*rows))


@pytest.mark.parametrize(
    ("picture", "size", "columns", "rows"),
    [
        # The shorter side fits and the longer one is cut evenly.
        ((100, 200), (25, 25), (50, 150), (0, 100)),
        ((200, 100), (25, 25), (0, 100), (50, 150)),
        ((120, 200), (30, 20), (60, 140), (0, 120)),
        ((200, 120), (20, 30), (0, 120), (60, 140)),
        # Enlarged.
        ((20, 30), (40, 40), (5, 25), (0, 20)),
    ],
)
def test_crop_scales_the_shorter_side(picture, size, columns, rows):
    found = applied(Geometry(*size, None, "crop"), coordinates(*picture))
    expected = centers(*columns, size[1]), centers(*rows, size[0])
    assert_shows(found, *(np.clip(places, 0, None) for places in expected), tolerance=0.76)
    inner = slice(2, -2)
    assert_shows(found[inner, inner], *(places[inner] for places in expected), tolerance=0.6)


def test_stretch_takes_all_of_the_picture():
    found = applied(Geometry(20, 50, None, "stretch"), coordinates(100, 200))
    assert_shows(found, centers(0, 200, 50), centers(0, 100, 20), tolerance=0.76)


def test_scaling_down_averages_all_pixels():
    # A point sample of fine stripes would be black or white.
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, ::2] = 255
    for resize in ("crop", "stretch"):
        found = applied(Geometry(24, 24, None, resize), stripes)
        assert np.abs(found - 127.5).max() < 10


def test_the_square_of_celeba_comes_out_at_the_centers_of_its_cells():
    assert CELEBA.crop_box == (15, 40, 163, 188) and CELEBA.image_shape == (64, 64, 3)
    found = fit_pixels(coordinates(218, 178), CELEBA).astype(int)
    assert_shows(found, centers(15, 163, 64), centers(40, 188, 64), tolerance=0.5)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_arrays_get_the_same_as_pictures(channels):
    spec = dataclasses.replace(CELEBA, crop_box=(1, 2, 11, 22), height=6, width=5, channels=channels)
    pixels = random_pixels(24, 16, channels)
    found = fit_pixels(pixels, spec)
    assert found.dtype == np.uint8 and found.shape == (6, 5, channels)
    # Channel by channel: the last of two or four need not be an alpha channel.
    for number in range(channels):
        picture = Image.fromarray(pixels[..., number]).crop((1, 2, 11, 22))
        np.testing.assert_array_equal(found[..., number], picture.resize((5, 6), Image.Resampling.BILINEAR))
    if channels == 3:
        colors = Image.fromarray(pixels).crop((1, 2, 11, 22)).resize((5, 6), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found, colors)


@pytest.mark.parametrize("size", [(64, 30), (30, 64), (64, 63)])
def test_what_fits_on_one_side_alone_is_enlarged(size):
    enlarged = np.asarray(Geometry(64, 64, None, "crop").apply(Image.new("L", size, 200)))
    assert enlarged.shape == (64, 64) and (enlarged == 200).all()


def test_cutting_without_scaling_takes_whole_pixels():
    pixels = random_pixels(10, 31, 3)
    cut = Geometry(10, 10, None, "crop").apply(Image.fromarray(pixels))
    np.testing.assert_array_equal(cut, pixels[:, 10:20])


@pytest.mark.parametrize(
    ("geometry", "size", "message"),
    [
        (
            Geometry(16, 24),
            (17, 24),
            r"is 17x24 \(height x width\), not 16x24: .*--config.data.resize=crop \(or stretch\) "
            "--config.data.height=16 --config.data.width=24",
        ),
        (Geometry(16, 24), (24, 16), "is 24x16 .*, not 16x24"),
        (Geometry(16, 24, (0, 0, 24, 15)), (40, 40), "is 15x24 .*, not 16x24"),
        (
            Geometry(64, 64, (15, 40, 163, 188), "stretch"),
            (187, 178),
            r"is 187x178 .*too small for data.crop_box \(15, 40, 163, 188\) .*: make the box smaller",
        ),
        (Geometry(64, 64, (15, 40, 163, 188), "stretch"), (218, 162), "too small for data.crop_box"),
    ],
)
def test_a_picture_of_another_size_is_refused(geometry, size, message):
    with pytest.raises(WrongSize, match=message):
        geometry.check_size(*size)
    with pytest.raises(WrongSize, match=message):
        geometry.apply(Image.fromarray(coordinates(*size)))


def test_the_smallest_picture_that_the_box_fits_into_is_taken():
    Geometry(64, 64, (15, 40, 163, 188), "stretch").check_size(188, 163)
