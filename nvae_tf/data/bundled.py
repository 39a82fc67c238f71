"""Real images that come with an installed package, so that the demo needs no network."""

import numpy as np
from PIL import Image

from nvae_tf.data.array_source import ArraySource
from nvae_tf.data.specs import DataSpec

_SPLIT_SEED = 20200708
_TEST_EVERY = 5
_DIGITS_SIZE = 16


def load(spec: DataSpec, split: str, path: str | None = None) -> ArraySource:
    """Loads one split of a bundled set.

    Args:
        spec: a spec with source "bundled".
        split: "train" or "test".
        path: must be empty, because nothing is read from a folder.

    Raises:
        ValueError: a path was given, or there is no such set or split.
    """
    if path:
        raise ValueError(
            f"Data set '{spec.name}' is bundled and reads nothing from a folder: remove data.path "
            f"('{path}'), or choose the data set that lies there."
        )
    if spec.source_name not in _BUNDLED_SETS:
        raise ValueError(f"There is no bundled set '{spec.source_name}'. Valid: {', '.join(_BUNDLED_SETS)}.")
    splits = _BUNDLED_SETS[spec.source_name]()
    if split not in splits:
        raise ValueError(f"Bundled set '{spec.source_name}' has no split '{split}'. Valid: {', '.join(splits)}.")
    return splits[split]


def _digits():
    """The 1,797 handwritten digits of scikit-learn as 16x16 bitmaps: 1,437 train, 360 test."""
    # Here, because importing scikit-learn takes a second that no other data set needs.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = _bitmaps(bunch.images / 16, _DIGITS_SIZE)
    labels = bunch.target.astype(np.int64)
    is_test = _held_out(labels)
    return {
        "train": ArraySource(images[~is_test], maximum_value=1, labels=labels[~is_test]),
        "test": ArraySource(images[is_test], maximum_value=1, labels=labels[is_test]),
    }


def _bitmaps(coverage, size):
    """Bitmaps `[count, size, size, 1]` of 0 and 1, from `[count, height, width]` in [0, 1].

    The 8x8 digits were made from bitmaps of 32x32 by counting each 4x4 block's pixels (Alpaydin & Kaynak 1998, UCI
    "Optical Recognition of Handwritten Digits"). Interpolated and cut at one half they are bitmaps again, with whole
    strokes; drawn from Bernoulli(coverage) they would be mostly noise.
    """
    enlarged = [
        Image.fromarray(image.astype(np.float32)).resize((size, size), Image.Resampling.BICUBIC) for image in coverage
    ]
    return (np.stack([np.asarray(image) for image in enlarged]) > 0.5).astype(np.uint8)[..., np.newaxis]


def _held_out(labels):
    """Marks every fifth example of a fixed random order, grouped by label: a fifth of each label."""
    # RandomState, because NumPy promises never to change its numbers; those of Generator may change.
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(labels))
    grouped = order[np.argsort(labels[order], kind="stable")]
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[grouped[::_TEST_EVERY]] = True
    return is_test


_BUNDLED_SETS = {"digits": _digits}
