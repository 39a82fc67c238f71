"""The importance-weighted bound (Burda et al. 2016), streaming over samples: memory does not grow with their number."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf


class WeightSums(NamedTuple):
    """All that is kept of the weights `w = p(x, z) / q(z | x)` of samples, each `[batch]` in float32.

    Attributes:
      largest: of `log w`, in nats.
      total: sum of `w / largest w`.
      squares: sum of `(w / largest w)^2`.
    """

    largest: tf.Tensor
    total: tf.Tensor
    squares: tf.Tensor

    @classmethod
    def none(cls, batch_size: int | tf.Tensor) -> "WeightSums":
        """Of no sample yet."""
        return cls(tf.fill([batch_size], tf.float32.min), tf.zeros([batch_size]), tf.zeros([batch_size]))

    def and_those(self, log_weights: tf.Tensor) -> "WeightSums":
        """With more samples `[batch, samples]`, in nats; minus infinity is none."""
        largest = tf.maximum(self.largest, tf.reduce_max(log_weights, axis=1))
        before = tf.exp(self.largest - largest)
        weights = tf.exp(log_weights - largest[:, tf.newaxis])
        return WeightSums(
            largest,
            self.total * before + tf.reduce_sum(weights, axis=1),
            self.squares * tf.square(before) + tf.reduce_sum(tf.square(weights), axis=1),
        )

    def bound(self, num_samples: int | tf.Tensor) -> tf.Tensor:
        """`-(logsumexp_k log w_k - log K)` in nats, `[batch]`, for these K samples."""
        return -(self.largest + tf.math.log(self.total) - tf.math.log(tf.cast(num_samples, tf.float32)))

    @property
    def effective_samples(self) -> tf.Tensor:
        """`(sum w)^2 / sum w^2`, `[batch]`: from 1, where one sample outweighs all others, to their number."""
        return tf.square(self.total) / self.squares


class ImportanceWeighting(NamedTuple):
    """How far the samples have come.

    Attributes:
      sums: of the samples so far.
      bounds: the bounds with the numbers of samples that are asked for, `[batch, numbers]`, in nats; NaN where there
        are not so many yet.
    """

    sums: WeightSums
    bounds: tf.Tensor

    @classmethod
    def begun(cls, batch_size: int | tf.Tensor, num_numbers: int) -> "ImportanceWeighting":
        """Before the first sample."""
        return cls(WeightSums.none(batch_size), tf.fill([batch_size, num_numbers], float("nan")))


def add_samples(
    log_weights: Callable[[tf.Tensor], tf.Tensor],
    before: ImportanceWeighting,
    numbers: Sequence[int],
    first: int | tf.Tensor,
    last: int | tf.Tensor,
    samples_at_once: int = 1,
) -> ImportanceWeighting:
    """Adds the samples numbered `first ... last - 1`.

    Args:
      log_weights: numbers of samples `[samples_at_once]`, int32 -> `log p(x | z) + log p(z) - log q(z | x)`
        `[batch, samples_at_once]`, in nats.
      before: the samples `0 ... first - 1`.
      numbers: the numbers of samples that `bounds` are for.
      first: number of the first.
      last: the number after the last.
      samples_at_once: how many are asked for in one go; where the numbers don't come out even, some beyond the last
        are asked for and not counted.
    """
    at = tf.constant(list(numbers), tf.int32)

    def add(index: tf.Tensor, before: ImportanceWeighting) -> tuple[tf.Tensor, ImportanceWeighting]:
        indices = index + tf.range(samples_at_once)
        weights = tf.where(indices < last, log_weights(indices), -float("inf"))
        partial = [
            before.sums.and_those(tf.where(indices < number, weights, -float("inf"))) for number in tf.unstack(at)
        ]
        bounds = [sums.bound(number) for sums, number in zip(partial, numbers, strict=True)]
        reached = (at > index) & (at <= tf.minimum(index + samples_at_once, last))
        bounds = tf.where(reached, tf.stack(bounds, axis=1), before.bounds) if bounds else before.bounds
        return index + samples_at_once, ImportanceWeighting(before.sums.and_those(weights), bounds)

    start = tf.convert_to_tensor(first, tf.int32)
    return tf.while_loop(lambda index, _: index < last, add, (start, before), parallel_iterations=1)[1]


def check_importance_samples(count: int) -> None:
    """Raises ValueError unless there is at least 1 sample."""
    if count < 1:
        raise ValueError(f"importance_samples = {count}: at least 1 sample is needed")
