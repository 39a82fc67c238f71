"""Random numbers as pure functions of (seed, stream, position): nothing to save, nothing to replay.

They come from Philox, which is a function of a key and a counter (Salmon et al. 2011, "Parallel random
numbers: as easy as 1, 2, 3"). The key holds the seed and what the numbers are for, the counter holds the
position.
"""

import enum
import math

import numpy as np
import tensorflow as tf

# A Philox counter gives four 32-bit numbers.
_NUMBERS_PER_COUNTER = 4
_PHILOX = tf.random.Algorithm.PHILOX.value


class RandomStream(enum.IntEnum):
    """What random numbers are for; each stream is independent of the others under the same seed."""

    ORDER = 0
    HORIZONTAL_FLIP = 1
    TRAINING_BINARIZATION = 2
    EVALUATION_BINARIZATION = 3


def stream_key(seed: int, stream: RandomStream) -> np.ndarray:
    """Returns the Philox key of a stream, uint64 `[1]`.

    Raises:
        ValueError: the seed is negative.
    """
    if seed < 0:
        raise ValueError(f"The data seed is {seed}; it must be 0 or above.")
    return np.random.SeedSequence(seed, spawn_key=(int(stream),)).generate_state(1, np.uint64)


def uniform(key: np.ndarray, first_position: tf.Tensor, batch_size: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Returns uniform numbers in [0, 1) for a run of positions.

    The numbers of a position depend on the key and the position alone, not on the batch around it.

    Args:
        key: from `stream_key`.
        first_position: int64 scalar, the position in the stream of the batch's first example.
        batch_size: integer scalar.
        shape: shape of the numbers for one position; the same in all uses of a key.

    Returns:
        float32 `[batch_size, *shape]`.
    """
    size = math.prod(shape)
    # Whole counters per position, so that every position starts at a counter of its own.
    counters = -(-size // _NUMBERS_PER_COUNTER)
    start = tf.cast(first_position, tf.uint64) * counters
    numbers = tf.raw_ops.StatelessRandomUniformV2(
        shape=[batch_size, counters * _NUMBERS_PER_COUNTER],
        key=key,
        counter=tf.stack([start, tf.constant(0, tf.uint64)]),
        alg=_PHILOX,
    )
    return tf.reshape(numbers[:, :size], [batch_size, *shape])


def permutation(key: np.ndarray, epoch: tf.Tensor, count: int) -> tf.Tensor:
    """Returns the epoch's permutation of `0 .. count - 1`, int32 `[count]`.

    `tf.random.experimental.index_shuffle` would need no memory, but with the epoch in its seed it came back
    to the same 256 permutations of 1,437 examples (TensorFlow 2.21).
    """
    keys = tf.raw_ops.StatelessRandomUniformFullIntV2(
        shape=[count],
        key=key,
        counter=tf.stack([tf.constant(0, tf.uint64), tf.cast(epoch, tf.uint64)]),
        alg=_PHILOX,
        dtype=tf.int64,
    )
    return tf.argsort(keys)
