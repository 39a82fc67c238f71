"""Real images that come with an installed package, so that the demo needs no network."""

import numpy as np

from nvae_tf.data.array_source import ArraySource
from nvae_tf.data.specs import DataSpec

_SPLIT_SEED = 20200708
_TEST_EVERY = 5


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
    """The 1,797 handwritten digits of scikit-learn, 8x8 pixels with values 0 to 16: 1,437 train, 360 test."""
    # Here, because importing scikit-learn takes a second that no other data set needs.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[..., np.newaxis]
    labels = bunch.target.astype(np.int64)
    is_test = _held_out(labels)
    return {
        "train": ArraySource(images[~is_test], maximum_value=16, labels=labels[~is_test]),
        "test": ArraySource(images[is_test], maximum_value=16, labels=labels[is_test]),
    }


def _held_out(labels):
    """Marks every fifth example of a fixed random order, grouped by label: a fifth of each label."""
    # RandomState, because NumPy promises never to change its numbers; those of Generator may change.
    order = np.random.RandomState(_SPLIT_SEED).permutation(len(labels))
    grouped = order[np.argsort(labels[order], kind="stable")]
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[grouped[::_TEST_EVERY]] = True
    return is_test


_BUNDLED_SETS = {"digits": _digits}
