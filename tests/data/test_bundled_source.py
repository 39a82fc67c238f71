"""scikit-learn's digits and photographs as data sets."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn.datasets
import tensorflow as tf
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits, load_sample_images

from nvae_tf.data import data_spec
from nvae_tf.data.pipeline import training_batches
from nvae_tf.data.sources import first_image, load_split

DIGITS, PHOTOS = data_spec("digits"), data_spec("photos")
PHOTO_HEIGHT, PHOTO_WIDTH = 427, 640


@pytest.fixture(scope="module")
def splits():
    return load_split(DIGITS, "train"), load_split(DIGITS, "test")


def numbers_in_file(source):
    """The place of each image in scikit-learn's file: that of the digit with its label that it is most like."""
    digits = load_digits()
    enlarged = tf.image.resize(digits.images[..., np.newaxis] / 16, source.image_shape[:2], "bicubic") > 0.5
    bitmaps = np.concatenate([enlarged.numpy().reshape(len(digits.images), -1), np.eye(10)[digits.target]], axis=1)
    found = np.concatenate([source.images.reshape(source.count, -1) // 255, np.eye(10)[source.labels]], axis=1)
    return cdist(found, bitmaps, "cityblock").argmin(axis=1)


def test_train_and_test_are_disjoint_and_complete(splits):
    train, test = splits
    assert (train.count, test.count) == (1437, 360)
    numbers = [*numbers_in_file(train), *numbers_in_file(test)]
    # Two pairs of digits have the same bitmap; one pair is divided.
    assert len(numbers) == 1797 and len(set(numbers)) == 1795
    assert len(set(numbers_in_file(train)) & set(numbers_in_file(test))) == 1


def test_the_split_never_changes(splits):
    _, test = splits
    assert numbers_in_file(test)[:10].tolist() == [5, 14, 16, 20, 25, 43, 44, 45, 47, 48]
    assert sum(numbers_in_file(test)) == 327003


def test_every_label_gives_a_fifth(splits):
    train, test = splits
    totals = np.bincount(load_digits().target)
    assert np.abs(np.bincount(test.labels) - totals / 5).max() < 1
    np.testing.assert_array_equal(np.bincount(train.labels) + np.bincount(test.labels), totals)


def test_labels_belong_to_their_images(splits):
    for source in splits:
        np.testing.assert_array_equal(source.labels, load_digits().target[numbers_in_file(source)])


def test_bitmaps_hold_the_ink_of_their_digits(splits):
    digits = load_digits().images / 16
    for source in splits:
        assert source.images.dtype == np.uint8 and set(np.unique(source.images)) == {0, 255}
        blocks = source.images.reshape(source.count, 8, 2, 8, 2).mean(axis=(2, 4)) / 255
        ink = digits[numbers_in_file(source)]
        # A block that is nearly full or nearly empty stays so; over a whole digit the ink is about the same.
        assert blocks[ink > 0.9].mean() > 0.97 and blocks[ink < 0.1].mean() < 0.01
        assert np.abs(blocks.mean(axis=(1, 2)) - ink.mean(axis=(1, 2))).max() < 0.08


def test_a_batch_of_digits_is_black_and_white(splits):
    batch = next(iter(training_batches(splits[0], DIGITS, batch_size=100, seed=0))).numpy()
    assert batch.shape == (100, 16, 16, 1) and set(np.unique(batch)) == {0.0, 1.0}


@pytest.fixture
def photographs_of_places(monkeypatch):
    """Photographs each of whose pixels says where it is: row and column, in base 256."""
    rows, columns = np.indices([PHOTO_HEIGHT, PHOTO_WIDTH])

    def photographs():
        # The second photograph's numbers begin at another one, so that none is like one of the first.
        high = [rows // 256 + 4 * (columns // 256) + 16 * number for number in (0, 1)]
        images = [np.stack([part, rows % 256, columns % 256], axis=-1).astype(np.uint8) for part in high]
        return SimpleNamespace(images=images)

    monkeypatch.setattr(sklearn.datasets, "load_sample_images", photographs)


def places(patches):
    """Photograph, row and column of every pixel of the patches."""
    high, low_row, low_column = np.moveaxis(patches.astype(np.int16), -1, 0)
    return high // 16, 256 * (high % 4) + low_row, 256 * (high // 4 % 4) + low_column


@pytest.mark.parametrize(
    ("height", "width", "train_count", "test_count"),
    [(32, 32, 2 * 50 * 61, 2 * 25 * 7), (24, 40, 2 * 51 * 60, 2 * 26 * 6), (96, 96, 2 * 42 * 53, 2 * 21 * 3)],
)
def test_train_and_test_patches_share_no_pixel(photographs_of_places, height, width, train_count, test_count):
    spec = dataclasses.replace(PHOTOS, height=height, width=width)
    seen = {}
    for split, count in (("train", train_count), ("test", test_count)):
        patches = load_split(spec, split).images
        assert patches.shape == (count, height, width, 3)
        photograph, row, column = places(patches)
        first = np.s_[:, :1, :1]
        # A patch is a rectangle of one photograph, neither mirrored nor turned.
        assert (photograph == photograph[first]).all()
        assert (row == row[first] + np.arange(height, dtype=np.int16)[:, None]).all()
        assert (column == column[first] + np.arange(width, dtype=np.int16)).all()
        corners = np.stack([photograph[:, 0, 0], row[:, 0, 0], column[:, 0, 0]])
        assert len(np.unique(corners, axis=1).T) == count and set(corners[0]) == {0, 1}
        seen[split] = np.zeros([2, PHOTO_HEIGHT, PHOTO_WIDTH], bool)
        seen[split][photograph, row, column] = True
    assert not (seen["train"] & seen["test"]).any()
    # Nearly all of the photographs is used.
    assert seen["train"][:, :, :512].mean() > 0.95 and seen["test"][:, :, 512:].mean() > 0.7
    assert not seen["train"][:, :, 512:].any()


def test_patches_are_of_the_real_photographs():
    train, test = load_split(PHOTOS, "train"), load_split(PHOTOS, "test")
    photographs = load_sample_images().images
    assert all(image.shape == (PHOTO_HEIGHT, PHOTO_WIDTH, 3) for image in photographs)
    np.testing.assert_array_equal(train.images[0], photographs[0][:32, :32])
    np.testing.assert_array_equal(train.images[-1], photographs[1][392:424, 480:512])
    np.testing.assert_array_equal(test.images[0], photographs[0][:32, 512:544])
    assert train.labels is None and PHOTOS.image_shape == (32, 32, 3)


@pytest.mark.parametrize(("height", "width"), [(97, 32), (32, 97), (128, 128)])
def test_patches_larger_than_the_test_part_are_refused(height, width):
    with pytest.raises(ValueError, match=rf"data.height, data.width = {height}, {width}: .* at most 96 pixels"):
        load_split(dataclasses.replace(PHOTOS, height=height, width=width), "train")


def test_a_look_at_the_first_image():
    assert first_image(DIGITS) == (16, 16, 1, 8)
    assert first_image(PHOTOS) == (32, 32, 3, 8)
    assert first_image(dataclasses.replace(PHOTOS, height=None, width=None)) == (32, 32, 3, 8)
    assert first_image(dataclasses.replace(PHOTOS, height=64, width=48)) == (64, 48, 3, 8)
    with pytest.raises(ValueError, match="no bundled set 'photo'. Valid: digits, photos"):
        first_image(dataclasses.replace(PHOTOS, source_name="photo"))


def test_a_path_or_a_wrong_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="reads nothing from a folder: remove data.path"):
        load_split(dataclasses.replace(DIGITS, path=str(tmp_path)), "train")
    with pytest.raises(ValueError, match="no bundled set 'digit'. Valid: digits, photos"):
        load_split(dataclasses.replace(DIGITS, source_name="digit"), "train")
    with pytest.raises(ValueError, match="data.source_name is not set"):
        load_split(dataclasses.replace(DIGITS, source_name=None), "train")
    with pytest.raises(ValueError, match="no split 'validation'. Valid: train, test"):
        load_split(DIGITS, "validation")
    with pytest.raises(ValueError, match="data.source = 'bundle': .*; did you mean 'bundled'"):
        load_split(dataclasses.replace(DIGITS, source="bundle"), "train")


@pytest.mark.parametrize(
    ("spec", "change", "found"),
    [
        (DIGITS, {"height": 17}, r"are \[16, 16, 1\] .* says \[17, 16, 1\]"),
        (PHOTOS, {"channels": 1}, r"are \[32, 32, 3\] .* says \[32, 32, 1\]"),
    ],
)
def test_a_spec_of_another_size_is_refused(spec, change, found):
    with pytest.raises(ValueError, match=found):
        load_split(dataclasses.replace(spec, **change), "train")
