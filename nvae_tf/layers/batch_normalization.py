"""Stacked batch normalization."""

from typing import NamedTuple

import keras
import tensorflow as tf

from nvae_tf.layers.normalization import normalize, normalize_batch
from nvae_tf.layers.stacked import ForwardPass, StackedLayer

MOMENTUM = 0.95


class BatchNormalizationWeights(NamedTuple):
    """Scale, shift and, in inference, the running statistics of one layer, each `[channels]` in float32."""

    gamma: tf.Tensor
    beta: tf.Tensor
    mean: tf.Tensor | None
    variance: tf.Tensor | None


class BatchStatistics(NamedTuple):
    """Mean and unbiased variance of one batch, each `[channels]`."""

    mean: tf.Tensor
    variance: tf.Tensor

    def of_repeated(self, count: tf.Tensor, times: int) -> "BatchStatistics":
        """Those of a batch in which each of the `count` numbers of a channel comes so many times."""
        return self._replace(variance=self.variance * (times * (count - 1.0) / (times * count - 1.0)))


class StackedBatchNormalization(StackedLayer):
    """`count` batch normalizations over batch, height and width, and over all replicas.

    Normalizes with the biased variance of the batch, while the running variance follows the unbiased one (as
    cuDNN and PyTorch do; Keras' own layer follows the biased one): `running = 0.95 running + 0.05 batch`.
    """

    def __init__(self, count: int, channels: int, **kwargs):
        super().__init__(count, **kwargs)
        shape = (count, channels)
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones")
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros")
        # The statistics are those of all replicas, so the same on each.
        running = {"trainable": False, "aggregation": "only_first_replica"}
        self.moving_mean = self.add_weight(name="moving_mean", shape=shape, initializer="zeros", **running)
        self.moving_variance = self.add_weight(name="moving_variance", shape=shape, initializer="ones", **running)

    @property
    def statistics(self) -> tuple[keras.Variable, keras.Variable]:
        """The running mean and variance of all layers, each `[count, channels]`."""
        return self.moving_mean, self.moving_variance

    def slices(self, forward: ForwardPass) -> list[BatchNormalizationWeights]:
        """Scale and shift of every layer, and the running statistics unless this pass uses the batch's."""
        unused = [None] * self.count
        columns = (
            tf.unstack(tf.convert_to_tensor(self.gamma)),
            tf.unstack(tf.convert_to_tensor(self.beta)),
            unused if forward.training else tf.unstack(tf.convert_to_tensor(self.moving_mean)),
            unused if forward.training else tf.unstack(tf.convert_to_tensor(self.moving_variance)),
        )
        return [BatchNormalizationWeights(*row) for row in zip(*columns, strict=True)]

    def apply_slice(
        self, weights: BatchNormalizationWeights | None, inputs: tf.Tensor, records: list | None
    ) -> tf.Tensor:
        """Normalizes `[batch, height, width, channels]`; records the batch's statistics in training.

        Without weights it does nothing: it has been folded into a convolution.
        """
        if weights is None:
            return inputs
        gamma, beta, mean, variance = weights
        if mean is not None:
            normalized = normalize(inputs, gamma, beta, mean, variance)
        else:
            normalized, mean, variance = _normalized_by_batch(inputs, gamma, beta)
        if records is not None:
            records.append(BatchStatistics(mean, variance))
        return normalized

    def recorders(self) -> list[StackedLayer]:
        """This stack records its batch statistics."""
        return [self]

    def record(self, forward: ForwardPass, records: list[BatchStatistics]) -> None:
        """Hands the new running statistics of the whole stack to the pass."""
        means, variances = zip(*records, strict=True)
        for running, batch in zip(self.statistics, (means, variances), strict=True):
            forward.updates.append((running, MOMENTUM * running + (1.0 - MOMENTUM) * tf.stack(batch)))


@tf.custom_gradient
def _normalized_by_batch(inputs, gamma, beta):
    batch = normalize_batch(inputs, gamma, beta)
    return (batch.outputs, batch.mean, batch.variance), lambda upstream, *_: batch.gradient(upstream)
