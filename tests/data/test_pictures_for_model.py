"""Pictures from outside, as the data of a run would have given them; and what is said of those that don't fit."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from nvae_tf.data import data_spec
from nvae_tf.data.picture_folder import find_pictures, pictures_for_model
from nvae_tf.data.pipeline import evaluation_batches
from nvae_tf.data.sources import load_split
from tests.data.picture_factory import damaged_in_the_middle, encoded, own_images, png, random_pixels, write_files

MNIST = data_spec("mnist")


def gray(*size, seed=0):
    return png(random_pixels(*size, 1, seed=seed))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_bits": 3},
        {"num_bits": 1, "binarise": True},
        {"resize": "crop", "height": 5, "width": 4},
        {"crop_box": (1, 0, 9, 7), "resize": "stretch", "height": 4, "width": 4},
    ],
)
def test_a_folder_gives_what_training_would_see(tmp_path, changes):
    files = {f"test/{name}.png": png(random_pixels(8, 10, 3, seed=seed)) for seed, name in enumerate("abc")}
    write_files(tmp_path, files | {"train/x.png": png(random_pixels(8, 10, 3))})
    spec = own_images(tmp_path, **changes)
    (expected,) = evaluation_batches(load_split(spec, "test"), spec, 3, seed=5)
    found = pictures_for_model(tmp_path / "test", spec, seed=5)
    assert found.images.dtype == np.float32 and found.names == ["a.png", "b.png", "c.png"]
    np.testing.assert_array_equal(found.images, expected)


def test_files_come_in_their_order(tmp_path):
    write_files(tmp_path, {"a.png": gray(28, 28), "b.png": gray(28, 28, seed=1), "more/c.png": gray(28, 28, seed=2)})
    spec = dataclasses.replace(MNIST, binarise=False, num_bits=8, likelihood="logistic_mixture")
    found = pictures_for_model([tmp_path / "b.png", tmp_path / "more"], spec)
    assert found.names == ["b.png", "c.png"]
    np.testing.assert_array_equal(found.images[0], random_pixels(28, 28, 1, seed=1) / np.float32(255))
    one = pictures_for_model(str(tmp_path / "b.png"), spec)
    np.testing.assert_array_equal(one.images, found.images[:1])


def test_rules_may_be_given(tmp_path):
    write_files(tmp_path, {"wide.png": png(np.full((28, 56, 3), 255, np.uint8))})
    found = pictures_for_model(tmp_path, MNIST, resize="crop", convert=True)
    assert found.images.shape == (1, 28, 28, 1) and (found.images == 1).all()


def refusal(place, spec=MNIST):
    with pytest.raises(ValueError) as error:
        pictures_for_model(place, spec)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_one_that_does_not_fit_is_named_with_the_fix(tmp_path):
    good = {"a.png": gray(28, 28)}
    wrong_size, wrong_channels, broken = (tmp_path / name for name in ("size", "channels", "broken"))
    write_files(wrong_size, good | {"b.png": gray(30, 28)})
    message = f"{wrong_size / 'b.png'}: is 30x28 (height x width), but the model takes 28x28; --resize=crop"
    assert message in refusal(wrong_size)
    write_files(wrong_channels, good | {"b.png": png(random_pixels(28, 28, 3))})
    message = f"{wrong_channels / 'b.png'}: has 3 channels, but the model was trained on pictures with 1; --convert"
    assert message in refusal(wrong_channels)
    write_files(broken, good | {"b.png": damaged_in_the_middle(gray(28, 28))})
    assert refusal(broken).startswith(f"{broken / 'b.png'}: ") and "Fix or remove the file" in refusal(broken)
    write_files(broken, {"b.png": b"no picture"})
    assert "not a picture" in refusal(broken)


def test_one_too_large_or_with_frames_is_named(tmp_path):
    write_files(tmp_path, {"a.png": gray(300, 200)})
    message = f"{tmp_path / 'a.png'}: is 300x200 (height x width), 60,000 pixels, which is more than data.max_pixels"
    assert message in refusal(tmp_path, dataclasses.replace(MNIST, resize="crop", max_pixels=59_999))
    frames = [Image.fromarray(random_pixels(28, 28, seed=seed)) for seed in range(2)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    write_files(tmp_path, {"a.png": content})
    assert f"{tmp_path / 'a.png'}: has several frames or pages" in refusal(tmp_path)


def test_one_too_small_to_be_cut_is_named(tmp_path):
    write_files(tmp_path, {"face.png": png(random_pixels(64, 64, 3))})
    message = refusal(tmp_path, data_spec("celeba64"))
    assert "face.png: is 64x64" in message and "data.crop_box (15, 40, 163, 188)" in message


def test_nothing_there_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such file or folder"):
        find_pictures(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no pictures in this folder"):
        find_pictures([tmp_path])
