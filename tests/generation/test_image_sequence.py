"""Animations and folders of pictures, read back by Pillow."""

import numpy as np
import pytest
from PIL import Image

from nvae_tf.generation.image_sequence import picture_names, write_animation, write_pictures


def gray_frames(count=3):
    return np.stack([np.full((8, 6, 1), 80 * number, np.uint8) for number in range(count)])


def frames_of(path, mode):
    with Image.open(path) as picture:
        found = []
        for number in range(picture.n_frames):
            picture.seek(number)
            found.append(np.asarray(picture.convert(mode)).reshape(picture.height, picture.width, -1))
        return np.stack(found)


def test_gray_frames_of_a_gif(tmp_path):
    path = tmp_path / "new" / "x.gif"
    write_animation(path, gray_frames(), milliseconds=120)
    np.testing.assert_array_equal(frames_of(path, "L"), gray_frames())
    with Image.open(path) as picture:
        assert picture.info["duration"] == 120 and picture.info["loop"] == 0
    write_animation(path, gray_frames(), loop=False)
    with Image.open(path) as picture:
        assert "loop" not in picture.info
    assert [entry.name for entry in path.parent.iterdir()] == ["x.gif"]


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_frames_of_a_webp_are_exact(tmp_path, channels, mode):
    frames = np.random.default_rng(0).integers(1, 256, (4, 9, 7, channels)).astype(np.uint8)
    write_animation(tmp_path / "x.webp", frames, loop=False)
    np.testing.assert_array_equal(frames_of(tmp_path / "x.webp", mode), frames)
    with Image.open(tmp_path / "x.webp") as picture:
        assert picture.info["loop"] == 1


def test_float_frames_are_enlarged(tmp_path):
    frames = np.stack([np.zeros((4, 4, 1)), np.ones((4, 4, 1))])
    write_animation(tmp_path / "x.gif", frames)
    found = frames_of(tmp_path / "x.gif", "L")
    assert found.shape == (2, 64, 64, 1) and (found[0] == 0).all() and (found[1] == 255).all()


def test_wrong_animations_are_refused(tmp_path):
    with pytest.raises(ValueError, match="ends in .gif or .webp"):
        write_animation(tmp_path / "x.mp4", gray_frames())
    with pytest.raises(ValueError, match="milliseconds = 5"):
        write_animation(tmp_path / "x.gif", gray_frames(), milliseconds=5)
    with pytest.raises(ValueError, match="all of one size"):
        write_animation(tmp_path / "x.gif", [gray_frames()[0], gray_frames()[0, :4]])
    with pytest.raises(ValueError, match="at least one frame"):
        write_animation(tmp_path / "x.gif", [])
    assert list(tmp_path.iterdir()) == []


def test_a_picture_each_in_its_own_size(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4, 3)) / 255
    paths = write_pictures(tmp_path / "new", images, ["a.jpg", "sub/b.png", "c"])
    assert paths == [tmp_path / "new" / name for name in ("a.png", "sub/b.png", "c.png")]
    for path, image in zip(paths, images, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.rint(image * 255))


def test_no_picture_replaces_another():
    assert picture_names(["a.jpg", "a.webp", "b.jpg"]) == ["a.jpg.png", "a.webp.png", "b.png"]
    for names in (["a.jpg", "a.jpg"], ["a.jpg", "a.webp", "a.jpg.png"]):
        with pytest.raises(ValueError, match="two pictures would be called a.jpg.png"):
            picture_names(names)


@pytest.mark.parametrize("name", ["/tmp/x.png", "../up.png", "a/../../b.png"])
def test_no_picture_leaves_the_folder(name):
    with pytest.raises(ValueError, match="leads out of the folder"):
        picture_names(["a.jpg", name])
