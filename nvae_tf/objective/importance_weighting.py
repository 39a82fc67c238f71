"""The importance-weighted bound (Burda et al. 2016), streaming over samples."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf


class ImportanceWeightedBound(NamedTuple):
    """Bounds of every image in nats, `[batch]`: with all samples, and the mean of the one-sample bounds."""

    bound: tf.Tensor
    mean_of_single: tf.Tensor


def importance_weighted_bound(
    log_weight: Callable[[tf.Tensor], tf.Tensor], num_samples: int, batch_size: int | tf.Tensor
) -> ImportanceWeightedBound:
    """`-(logsumexp_k log_weight(k) - log K)` in nats, with memory that does not grow with K.

    Args:
      log_weight: sample index (an int32 scalar) -> `log p(x | z) + log p(z) - log q(z | x)`, `[batch]`, in nats.
      num_samples: K.
      batch_size: number of images.

    Raises:
      ValueError: `num_samples` is below 1.
    """
    if num_samples < 1:
        raise ValueError(f"importance_samples = {num_samples}: at least 1 sample is needed")

    def accumulate(index, maximum, scaled_sum, total):
        weight = log_weight(index)
        new_maximum = tf.maximum(maximum, weight)
        scaled_sum = scaled_sum * tf.exp(maximum - new_maximum) + tf.exp(weight - new_maximum)
        return index + 1, new_maximum, scaled_sum, total + weight

    zeros = tf.zeros([batch_size])
    _, maximum, scaled_sum, total = tf.while_loop(
        lambda index, *_: index < num_samples,
        accumulate,
        (tf.constant(0), tf.fill([batch_size], tf.float32.min), zeros, zeros),
        parallel_iterations=1,
    )
    log_count = tf.math.log(tf.cast(num_samples, tf.float32))
    return ImportanceWeightedBound(-(maximum + tf.math.log(scaled_sum) - log_count), -total / num_samples)
