"""The importance-weighted bound (Burda et al. 2016), streaming over samples: memory does not grow with their number."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf


class ImportanceWeighting(NamedTuple):
    """The state after some samples with weights `w = p(x, z) / q(z | x)` (Burda et al. 2016): sums and bounds."""

    largest: tf.Tensor  # `log w`, in nats; `[batch]`, as the next two
    total: tf.Tensor  # sum of `w / largest w`
    squares: tf.Tensor  # sum of `(w / largest w)^2`
    bounds: tf.Tensor  # for the requested numbers of samples, `[batch, numbers]`, in nats; NaN for those not reached

    @classmethod
    def begun(cls, batch_size: int | tf.Tensor, num_numbers: int) -> "ImportanceWeighting":
        """Before the first sample."""
        bounds = tf.fill([batch_size, num_numbers], float("nan"))
        return cls(tf.fill([batch_size], tf.float32.min), tf.zeros([batch_size]), tf.zeros([batch_size]), bounds)

    def with_weights(self, log_weights: tf.Tensor) -> "ImportanceWeighting":
        """With more samples `[batch, samples]`, in nats, in the sums; minus infinity counts as no sample."""
        largest = tf.maximum(self.largest, tf.reduce_max(log_weights, axis=1))
        before = tf.exp(self.largest - largest)
        weights = tf.exp(log_weights - largest[:, tf.newaxis])
        return self._replace(
            largest=largest,
            total=self.total * before + tf.reduce_sum(weights, axis=1),
            squares=self.squares * tf.square(before) + tf.reduce_sum(tf.square(weights), axis=1),
        )

    def bound(self, num_samples: int) -> tf.Tensor:
        """`-(logsumexp_k log w_k - log K)` `[batch]`, in nats, if the sums are of K samples."""
        return -(self.largest + tf.math.log(self.total) - tf.math.log(tf.cast(num_samples, tf.float32)))

    @property
    def effective_samples(self) -> tf.Tensor:
        """`(sum w)^2 / sum w^2`, `[batch]`: from 1, where one sample outweighs all others, to their number, or 0."""
        return tf.math.divide_no_nan(tf.square(self.total), self.squares)


def add_samples(
    log_weights: Callable, before: ImportanceWeighting, numbers: Sequence[int], first, last, samples_at_once: int = 1
) -> ImportanceWeighting:
    """Adds the samples with indices `first ... last - 1` to the state `before`, of the samples up to `first`.

    `log_weights` takes int32 indices `[samples_at_once]` and gives `log p(x | z) + log p(z) - log q(z | x)` in nats,
    `[batch, samples_at_once]`; those from `last` on do not count. `bounds` are for these `numbers` of samples.
    """
    at = tf.constant(list(numbers), tf.int32)

    def add(index: tf.Tensor, before: ImportanceWeighting) -> tuple[tf.Tensor, ImportanceWeighting]:
        indices = index + tf.range(samples_at_once)
        weights = tf.where(indices < last, log_weights(indices), -float("inf"))
        partial = [before.with_weights(tf.where(indices < number, weights, -float("inf"))) for number in tf.unstack(at)]
        bounds = [sums.bound(number) for sums, number in zip(partial, numbers, strict=True)]
        reached = (at > index) & (at <= tf.minimum(index + samples_at_once, last))
        bounds = tf.where(reached, tf.stack(bounds, axis=1), before.bounds) if bounds else before.bounds
        return index + samples_at_once, before.with_weights(weights)._replace(bounds=bounds)

    start = tf.convert_to_tensor(first, tf.int32)
    return tf.while_loop(lambda index, _: index < last, add, (start, before), parallel_iterations=1)[1]
