"""Any number of images through a graph of one fixed batch size."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.models import NVAE

# Always the same, so that the arithmetic of image i, and with it its last bit, does not depend on how many
# there are.
BATCH_SIZE = 16
Progress = Callable[[int], None]


def in_batches(
    compute: Callable[..., Sequence[tf.Tensor]],
    arrays: Sequence[np.ndarray],
    progress: Progress | None = None,
    batches_at_once: int = 1,
) -> list[np.ndarray]:
    """Computes rows of arrays, `BATCH_SIZE` at a time; a last part of a batch is filled up with its last row.

    Args:
      compute: from rows of the arrays `[batches_at_once * BATCH_SIZE, ...]` to tensors of as many rows.
      arrays: each `[count, ...]`, of at least one row.
      progress: is called after each turn with the number of rows done.
      batches_at_once: how many batches are given in one turn: one for each replica that computes a batch.

    Returns:
      What `compute` gives, each for all rows, `[count, ...]`.
    """
    count, size, parts = len(arrays[0]), batches_at_once * BATCH_SIZE, []
    for first in range(0, count, size):
        rows = (_filled(array[first : first + size], size) for array in arrays)
        parts.append([np.asarray(tensor) for tensor in compute(*map(tf.convert_to_tensor, rows))])
        if progress:
            progress(min(first + size, count))
    return [np.concatenate(of_batches)[:count] for of_batches in zip(*parts, strict=True)]


class KeptGraphs:
    """What holds a model's traced graphs, made once for each model and gone with it.

    Args:
      make: from a model to an object; it gets a weak proxy, so that the object does not keep the model alive.
    """

    def __init__(self, make: Callable[[NVAE], Any]):
        self._make = make
        self._made = weakref.WeakKeyDictionary()

    def of(self, model: NVAE) -> Any:
        """The model's object."""
        if model not in self._made:
            self._made[model] = self._make(weakref.proxy(model))
        return self._made[model]


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    missing = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows
