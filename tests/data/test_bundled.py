import dataclasses
import hashlib

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from nvae_tf.data import data_spec
from nvae_tf.data.sources import first_image, load_split

DIGITS, PHOTOS = data_spec("digits"), data_spec("photos")
# Of all bitmaps and labels, those for training first.
DIGEST = "9941425a5893da486a4315586eb4d0b397ed22cff67d3962ca273b8e9a389c82"


def test_the_digits_are_divided_by_label_and_the_split_never_changes():
    train, test = load_split(DIGITS, "train"), load_split(DIGITS, "test")
    assert (train.count, test.count) == (1437, 360)
    together = np.concatenate([train.images, test.images])
    # Two pairs of digits have the same bitmap.
    assert len(np.unique(together, axis=0)) == 1795 and set(np.unique(together)) == {0, 255}
    totals = np.bincount(load_digits().target)
    assert np.abs(np.bincount(test.labels) - totals / 5).max() < 1
    np.testing.assert_array_equal(np.bincount(train.labels) + np.bincount(test.labels), totals)
    assert train.labels.dtype == np.int32 and train.class_names == tuple("0123456789")
    labels = [part.labels.astype(np.int64) for part in (train, test)]
    digest = hashlib.sha256(b"".join(array.tobytes() for array in (together, *labels)))
    assert digest.hexdigest() == DIGEST


def test_train_and_test_patches_are_of_different_parts_of_the_photographs():
    size = 96
    spec = dataclasses.replace(PHOTOS, height=size, width=size)
    train, test = load_split(spec, "train"), load_split(spec, "test")
    photographs = load_sample_images().images
    assert train.images.shape == (2 * 42 * 53, size, size, 3) and test.count == 2 * 21 * 3
    np.testing.assert_array_equal(train.images[0], photographs[0][:size, :size])
    # Test patches begin where training patches end.
    np.testing.assert_array_equal(test.images[0], photographs[0][:size, 512 : 512 + size])
    assert (train.images[-1] == photographs[1][328 : 328 + size, 416:512]).all()
    # And a look at the first image.
    assert first_image(DIGITS) == (16, 16, 1, 8)
    assert first_image(dataclasses.replace(PHOTOS, height=None, width=48)) == (32, 48, 3, 8)


def test_what_is_not_in_the_bundle_is_refused():
    for spec, changes, message in (
        (DIGITS, {"path": "here"}, "is bundled: remove data.path, data.crop_box and data.resize"),
        (DIGITS, {"source_name": "digit"}, "data.source_name = 'digit': no bundled set .digits, photos.; did you mean"),
        (PHOTOS, {"channels": 1}, r"are \(32, 32, 3\), .* says \(32, 32, 1\)"),
        (PHOTOS, {"labels": True}, "data.labels = True: bundled photos has 0 classes; set --config.data.labels=False"),
        (PHOTOS, {"height": 97}, r"data.height, data.width = \(97, 32\): must be at most 96"),
    ):
        with pytest.raises(ValueError, match=message):
            load_split(dataclasses.replace(spec, **changes), "train")
        with pytest.raises(ValueError, match="no split 'validation'. Valid: train, test"):
            load_split(spec, "validation")
