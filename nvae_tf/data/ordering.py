"""Which examples make up each batch.

Both functions give the batches of the whole run as (first position, indices) pairs, before any image is read.
Here is where one of several processes would take its share: a run of each batch's indices and the position of
the run's start.
"""

import tensorflow as tf

from nvae_tf.data.random_streams import RandomStream, permutation, stream_key


def shuffled_index_batches(count: int, batch_size: int, seed: int, start_step: int) -> tf.data.Dataset:
    """Returns the endless training order, a new permutation in every epoch, from `start_step` on.

    The part of a permutation that fills no whole batch is dropped. Starting late replays nothing: the
    permutation of the starting epoch is made and cut. Memory holds one epoch's permutation at a time.

    Args:
        count: number of examples, at least `batch_size`.
        batch_size: examples per batch.
        seed: seed of the order.
        start_step: number of the first batch, counted from the start of training.

    Returns:
        A dataset of pairs: the position in the stream of the batch's first example, `step * batch_size`, an
        int64 scalar; and indices of examples, int32 `[batch_size]`.
    """
    steps = count // batch_size
    key = stream_key(seed, RandomStream.ORDER)

    def batches_of_epoch(epoch):
        first_step = epoch * steps
        skipped = tf.maximum(start_step - first_step, 0)
        indices = tf.reshape(permutation(key, epoch, count)[: steps * batch_size], [steps, batch_size])
        positions = (first_step + tf.range(steps, dtype=tf.int64)) * batch_size
        return tf.data.Dataset.from_tensor_slices((positions[skipped:], indices[skipped:]))

    epochs = tf.data.Dataset.counter(start=start_step // steps)
    return epochs.flat_map(batches_of_epoch).apply(
        tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
    )


def sequential_index_batches(count: int, batch_size: int) -> tf.data.Dataset:
    """Returns every example once and in order; the last batch holds what is left.

    Returns:
        A dataset of pairs: the first example's position, an int64 scalar, and indices, int64
        `[up to batch_size]`.
    """
    starts = tf.data.Dataset.range(0, count, batch_size)
    return starts.map(lambda start: (start, tf.range(start, tf.minimum(start + batch_size, count))))
