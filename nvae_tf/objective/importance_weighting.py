"""The importance-weighted bound (Burda et al. 2016), streaming over samples."""

from collections.abc import Callable

import tensorflow as tf


def importance_weighted_bound(
    log_weight: Callable[[tf.Tensor], tf.Tensor], num_samples: int, batch_size: int | tf.Tensor
) -> tf.Tensor:
    """`-(logsumexp_k log_weight(k) - log K)` in nats, `[batch]`, with memory that does not grow with K.

    Args:
      log_weight: sample index (an int32 scalar) -> `log p(x | z) + log p(z) - log q(z | x)`, `[batch]`, in nats.
      num_samples: K.
      batch_size: number of images.

    Raises:
      ValueError: `num_samples` is below 1.
    """
    if num_samples < 1:
        raise ValueError(f"importance_samples = {num_samples}: at least 1 sample is needed")

    def accumulate(index, maximum, scaled_sum):
        weight = log_weight(index)
        new_maximum = tf.maximum(maximum, weight)
        scaled_sum = scaled_sum * tf.exp(maximum - new_maximum) + tf.exp(weight - new_maximum)
        return index + 1, new_maximum, scaled_sum

    _, maximum, scaled_sum = tf.while_loop(
        lambda index, *_: index < num_samples,
        accumulate,
        (tf.constant(0), tf.fill([batch_size], tf.float32.min), tf.zeros([batch_size])),
        parallel_iterations=1,
    )
    return -(maximum + tf.math.log(scaled_sum) - tf.math.log(tf.cast(num_samples, tf.float32)))
