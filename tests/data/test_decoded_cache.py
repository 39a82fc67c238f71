import dataclasses
import os

import numpy as np
import pytest

from nvae_tf.data.pictures import BadPicture
from nvae_tf.data.sources import load_split
from nvae_tf.progress import Report
from tests.data.picture_factory import damaged_in_the_middle, own_images, png, random_pixels, stored_pixels, write_files

IMAGES = random_pixels(100, 4, 5, 3)


@pytest.fixture
def pictures(tmp_path):
    """100 pictures for training, more than are decoded at a time, and two for testing."""
    folder = tmp_path / "pictures"
    write_files(folder, {f"train/{number:03d}.png": png(image) for number, image in enumerate(IMAGES)})
    return write_files(folder, {f"test/{number}.png": png(IMAGES[number]) for number in (7, 8)})


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "decoded" / "here"


def test_the_pictures_are_read_once(pictures, cache):
    spec = own_images(pictures, cache=str(cache))
    shown = []
    source = load_split(spec, "train", Report(lambda text, fraction: shown.append(text)))
    np.testing.assert_array_equal(stored_pixels(source), IMAGES)
    assert shown[-1] == f"decoding into {cache}: 100 of 100 images"
    for path in pictures.rglob("*.png"):
        # As many bytes, at the same time as before.
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    shown.clear()
    again = load_split(spec, "train", Report(lambda text, fraction: shown.append(text)))
    np.testing.assert_array_equal(stored_pixels(again), IMAGES)
    assert not shown
    # A damaged cache is named.
    (file,) = cache.iterdir()
    for damage in (lambda: file.write_bytes(file.read_bytes()[:-1]), lambda: np.save(file, IMAGES[:, :3])):
        damage()
        with pytest.raises(ValueError, match=f"^{file}: "):
            load_split(spec, "train")


def test_a_changed_picture_is_seen(pictures, cache):
    spec = own_images(pictures, cache=str(cache))
    load_split(spec, "train")
    path = pictures / "train" / "042.png"
    before = path.stat()
    path.write_bytes(png(255 - IMAGES[42]))
    # A second later, whatever the clock of the file system.
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    np.testing.assert_array_equal(stored_pixels(load_split(spec, "train"))[42], 255 - IMAGES[42])
    (pictures / "train" / "099.png").unlink()
    assert load_split(spec, "train").count == 99 and len(list(cache.iterdir())) == 3


def test_other_settings_are_other_images(pictures, cache):
    changes = [{"resize": "crop", "height": 2}, {"resize": "stretch", "height": 2, "width": 4}]
    changes += [{"crop_box": (0, 0, 3, 3)}, {"channels": 1, "convert": True}, {"alpha": "white"}]
    for number, change in enumerate(changes, 1):
        spec = own_images(pictures, **change)
        cached = dataclasses.replace(spec, cache=str(cache))
        np.testing.assert_array_equal(*(stored_pixels(load_split(each, "train")) for each in (cached, spec)))
        assert len(list(cache.iterdir())) == number
    # What is done to the pixels later makes no difference.
    load_split(dataclasses.replace(cached, num_bits=5, horizontal_flip=True), "train")
    assert len(list(cache.iterdir())) == len(changes)


def test_nothing_unfinished_is_left_after_a_failure(pictures, cache):
    bad = pictures / "train" / "090.png"
    bad.write_bytes(damaged_in_the_middle(bad.read_bytes()))
    spec = own_images(pictures, cache=str(cache))
    with pytest.raises(BadPicture, match=f"^{bad}: a damaged or cut-off PNG file"):
        load_split(spec, "train")
    assert not list(cache.iterdir())
    skipping = dataclasses.replace(spec, on_bad_file="skip")
    np.testing.assert_array_equal(stored_pixels(load_split(skipping, "train")), np.delete(IMAGES, 90, axis=0))
