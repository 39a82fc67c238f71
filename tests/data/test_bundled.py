"""scikit-learn's digits as a data set."""

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_digits

from nvae_tf.data import data_spec
from nvae_tf.data.sources import load_split

DIGITS = data_spec("digits")


@pytest.fixture(scope="module")
def splits():
    return load_split(DIGITS, "train"), load_split(DIGITS, "test")


def numbers_in_file(source):
    """The place of each image in scikit-learn's file; no two of its images are equal."""
    place = {image.astype(np.uint8).tobytes(): number for number, image in enumerate(load_digits().images)}
    assert len(place) == 1797
    return [place[image.tobytes()] for image in source.images]


def test_train_and_test_are_disjoint_and_complete(splits):
    train, test = splits
    assert (train.count, test.count) == (1437, 360)
    assert sorted(numbers_in_file(train) + numbers_in_file(test)) == list(range(1797))


def test_the_split_never_changes(splits):
    _, test = splits
    assert numbers_in_file(test)[:10] == [5, 14, 16, 20, 25, 43, 44, 45, 47, 48]
    assert sum(numbers_in_file(test)) == 327003


def test_every_label_gives_a_fifth(splits):
    train, test = splits
    totals = np.bincount(load_digits().target)
    assert np.abs(np.bincount(test.labels) - totals / 5).max() < 1
    np.testing.assert_array_equal(np.bincount(train.labels) + np.bincount(test.labels), totals)


def test_labels_belong_to_their_images(splits):
    for source in splits:
        np.testing.assert_array_equal(source.labels, load_digits().target[numbers_in_file(source)])


def test_values_keep_their_sixteenths(splits):
    train, _ = splits
    assert train.maximum_value == 16
    assert set(np.unique(train.images)) == set(range(17))


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
    with pytest.raises(ValueError, match=r"are \[8, 8, 1\] .* says \[9, 8, 1\]"):
        load_split(dataclasses.replace(DIGITS, height=9, padded_height=9), "train")
