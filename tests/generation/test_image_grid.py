import os

import numpy as np
import pytest
from PIL import Image

from nvae_tf.generation.image_grid import (
    image_grid,
    picture_names,
    read_images,
    write_animation,
    write_pictures,
    write_png,
)

same = np.testing.assert_array_equal


def shades(count, height=2, width=3, channels=1):
    """Image i is filled with (i + 1) / 10."""
    values = (np.arange(count, dtype=np.float32) + 1) / 10
    return np.broadcast_to(values[:, None, None, None], [count, height, width, channels])


def test_images_lie_row_by_row_with_white_between():
    expected = np.full([10, 21, 1], 255, np.uint8)
    for number, (top, left) in enumerate([(0, 0), (0, 9), (0, 18), (8, 0), (8, 9)]):
        expected[top : top + 2, left : left + 3] = round((number + 1) / 10 * 255)
    same(image_grid(shades(5), columns=3), expected)
    # Nearly square by default.
    assert image_grid(shades(10)).shape == (3 * 8 - 6, 4 * 9 - 6, 1)
    for size, side in ((28, 84), (100, 100)):
        assert image_grid(shades(1, size, size), enlarge=None).shape == (side, side, 1)
    image = np.array([[0.0, 1.0], [0.2, 0.4]], np.float32).reshape(1, 2, 2, 1)
    same(image_grid(image, enlarge=3)[..., 0], np.kron([[0, 255], [51, 102]], np.ones([3, 3])))


def test_every_8_bit_value_comes_back_exactly_between_opaque_gaps():
    values = np.arange(256, dtype=np.uint8)
    images = np.float32([-0.5, *(values / np.float32(255)), 1.5]).reshape(258, 1, 1, 1)
    same(image_grid(images, columns=258)[:, ::7].ravel(), [0, *values, 255])
    same(image_grid(np.zeros([2, 3, 3, 4]))[:, 3], [[255] * 4] * 3)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_png_and_webp_read_back_exactly(tmp_path, channels, mode):
    frames = np.random.default_rng(0).integers(1, 256, (4, 64, 65, channels)).astype(np.uint8)
    write_png(tmp_path / "samples" / "grid.png", frames[0])
    with Image.open(tmp_path / "samples" / "grid.png") as picture:
        assert picture.mode == mode
        same(np.asarray(picture).reshape(frames[0].shape), frames[0])
    write_animation(tmp_path / "x.webp", frames / np.float32(255), 80, loop=False)
    same(frames_of(tmp_path / "x.webp", mode), frames)
    assert sorted(os.listdir(tmp_path)) == ["samples", "x.webp"] and os.listdir(tmp_path / "samples") == ["grid.png"]


@pytest.mark.parametrize("columns", [1, 3])
def test_images_of_a_grid_are_read_back(tmp_path, columns):
    images = np.random.default_rng(0).integers(0, 256, (columns**2, 5, 4, 3)).astype(np.uint8)
    write_png(tmp_path / "grid.png", image_grid(images / 255, columns, enlarge=None))
    same(read_images(tmp_path / "grid.png", 4, columns), images)


def frames_of(path, mode):
    with Image.open(path) as picture:
        frames = []
        for number in range(picture.n_frames):
            picture.seek(number)
            frames.append(np.asarray(picture.convert(mode)).reshape(picture.height, picture.width, -1))
        return np.stack(frames)


def test_frames_of_a_gif(tmp_path):
    frames = np.stack([np.full((4, 4, 1), value, np.float32) for value in (0.0, 0.6, 1.0)])
    for loop, turns in ((True, 0), (False, None)):
        write_animation(tmp_path / "x.gif", frames, 120, loop)
        same(frames_of(tmp_path / "x.gif", "L"), (frames * 255).repeat(16, axis=1).repeat(16, axis=2))
        with Image.open(tmp_path / "x.gif") as picture:
            assert picture.info["duration"] == 120 and picture.info.get("loop") == turns


def test_a_picture_each_in_its_own_size_and_none_replaces_another(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3)) / 255
    write_pictures(tmp_path / "new", images, ["a.jpg", "sub/b.png", "c"])
    for name, image in zip(("a.png", "sub/b.png", "c.png"), images, strict=True):
        same(np.asarray(Image.open(tmp_path / "new" / name)), np.rint(image * 255))
    assert picture_names(["a.jpg", "a.webp", "b.jpg"]) == ["a.jpg.png", "a.webp.png", "b.png"]
    write_pictures(tmp_path / "variants", np.stack([images[:2]] * 2), ["a.jpg", "a.webp"])
    written = [file.name for file in sorted((tmp_path / "variants").iterdir())]
    assert written == [f"a.{kind}_{number:03d}.png" for kind in ("jpg", "webp") for number in (0, 1)]
    with pytest.raises(ValueError, match="two pictures would be called a.jpg.png"):
        picture_names(["a.jpg", "a.webp", "a.jpg.png"])
    with pytest.raises(ValueError, match="leads out of the folder"):
        picture_names(["a.jpg", "a/../../b.png"])
