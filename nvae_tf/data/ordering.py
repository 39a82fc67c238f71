"""Which examples make up each batch.

Both functions give batches as (first position, indices) pairs, before any image is read.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from nvae_tf.data.random_streams import RandomStream, permutation, stream_key


@dataclasses.dataclass(frozen=True)
class Shard:
    """What one of several processes takes: share number `index` of `count`, numbered from 0.

    Raises:
        ValueError: there is no such share.
    """

    index: int
    count: int

    def __post_init__(self):
        if not 0 <= self.index < self.count:
            raise ValueError(f"There is no share {self.index} of {self.count}; they are numbered from 0.")


ALL = Shard(0, 1)


def shuffled_index_batches(
    count: int, batch_size: int, seed: int, start_step: int, share: Shard = ALL
) -> tf.data.Dataset:
    """Returns the endless training order, a new permutation in every epoch, from `start_step` on.

    The part of a permutation that fills no whole batch is dropped. Starting late replays nothing: the
    permutation of the starting epoch is made and cut. Memory holds one epoch's permutation at a time.

    Args:
        count: number of examples, at least `batch_size`.
        batch_size: examples per batch.
        seed: seed of the order.
        start_step: number of the first batch, counted from the start of training.
        share: the run of each batch's examples that this process takes.

    Returns:
        A dataset of pairs: the position in the stream of the first of its examples, an int64 scalar (that of a
        batch's first is `step * batch_size`); and indices of examples, int32 `[batch_size / share.count]`.

    Raises:
        ValueError: the batch size is not divisible by the number of shares.
    """
    if batch_size % share.count:
        raise ValueError(
            f"A batch of {batch_size} can't be shared evenly by {share.count} processes: make it a multiple of that."
        )
    part = batch_size // share.count
    offset = share.index * part
    steps = count // batch_size
    key = stream_key(seed, RandomStream.ORDER)

    def batches_of_epoch(epoch):
        first_step = epoch * steps
        skipped = tf.maximum(start_step - first_step, 0)
        indices = tf.reshape(permutation(key, epoch, count)[: steps * batch_size], [steps, batch_size])
        positions = (first_step + tf.range(steps, dtype=tf.int64)) * batch_size + offset
        return tf.data.Dataset.from_tensor_slices((positions[skipped:], indices[:, offset : offset + part][skipped:]))

    epochs = tf.data.Dataset.counter(start=start_step // steps)
    return epochs.flat_map(batches_of_epoch).apply(
        tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    )


def sequential_index_batches(count: int, batch_size: int, numbers: Sequence[int] | None = None) -> tf.data.Dataset:
    """Returns every example once and in order; the last batch may be smaller.

    Args:
        count: number of examples.
        batch_size: examples per batch.
        numbers: only these batches, in this order, counted from 0.

    Returns:
        A dataset of pairs: the first example's position, an int64 scalar, and indices, int64
        `[up to batch_size]`.
    """
    if numbers is None:
        numbers = range(-(-count // batch_size))
    starts = tf.data.Dataset.from_tensor_slices(batch_size * np.array(numbers, np.int64))
    return starts.map(lambda start: (start, tf.range(start, tf.minimum(start + batch_size, count))))
