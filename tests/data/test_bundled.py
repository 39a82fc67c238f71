"""scikit-learn's digits as a data set."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

from nvae_tf.data import data_spec
from nvae_tf.data.sources import load_split

DIGITS = data_spec("digits")


@pytest.fixture(scope="module")
def splits():
    return load_split(DIGITS, "train"), load_split(DIGITS, "test")


def numbers_in_file(source):
    """The place of each image in scikit-learn's file: that of the digit with its label that it is most like."""
    digits = load_digits()
    enlarged = tf.image.resize(digits.images[..., np.newaxis] / 16, source.image_shape[:2], "bicubic") > 0.5
    bitmaps = np.concatenate([enlarged.numpy().reshape(len(digits.images), -1), np.eye(10)[digits.target]], axis=1)
    found = np.concatenate([source.images.reshape(source.count, -1), np.eye(10)[source.labels]], axis=1)
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
        assert source.maximum_value == 1 and source.images.dtype == np.uint8
        assert set(np.unique(source.images)) == {0, 1}
        blocks = source.images.reshape(source.count, 8, 2, 8, 2).mean(axis=(2, 4))
        ink = digits[numbers_in_file(source)]
        # A block that is nearly full or nearly empty stays so; over a whole digit the ink is about the same.
        assert blocks[ink > 0.9].mean() > 0.97 and blocks[ink < 0.1].mean() < 0.01
        assert np.abs(blocks.mean(axis=(1, 2)) - ink.mean(axis=(1, 2))).max() < 0.08


def test_a_path_or_a_wrong_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="reads nothing from a folder: remove data.path"):
        load_split(DIGITS, "train", path=str(tmp_path))
    with pytest.raises(ValueError, match="no bundled set 'digit'. Valid: digits"):
        load_split(dataclasses.replace(DIGITS, source_name="digit"), "train")
    with pytest.raises(ValueError, match="no split 'validation'. Valid: train, test"):
        load_split(dataclasses.replace(DIGITS, test_split="validation"), "test")
    with pytest.raises(ValueError, match="no split 'validation'. Valid: train, test"):
        load_split(DIGITS, "validation")
    with pytest.raises(ValueError, match="source 'folder' that does not exist. Valid: bundled, tfds"):
        load_split(dataclasses.replace(DIGITS, source="folder"), "train")


def test_a_spec_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"are \[16, 16, 1\] .* says \[17, 16, 1\]"):
        load_split(dataclasses.replace(DIGITS, height=17, padded_height=17), "train")
