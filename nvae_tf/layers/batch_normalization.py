"""Stacked batch normalisation, alone or with the swish that follows it."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from nvae_tf.layers.activations import swish, swish_gradient
from nvae_tf.layers.stacked import ForwardPass, StackedLayer

EPSILON = 1e-5
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


class StackedBatchNormalization(StackedLayer):
    """`count` batch normalisations over batch, height and width, followed by swish where `activated`.

    Normalises with the biased variance of the batch, while the running variance follows the unbiased one (as
    cuDNN and PyTorch do; Keras' own layer follows the biased one): `running = 0.95 running + 0.05 batch`.
    """

    def __init__(self, count: int, channels: int, activated: bool = False, **kwargs):
        super().__init__(count, **kwargs)
        self.activated = activated
        shape = (count, channels)
        self.gamma = self.add_weight(name="gamma", shape=shape, initializer="ones")
        self.beta = self.add_weight(name="beta", shape=shape, initializer="zeros")
        running = {"trainable": False, "aggregation": "mean"}
        self.moving_mean = self.add_weight(name="moving_mean", shape=shape, initializer="zeros", **running)
        self.moving_variance = self.add_weight(
            name="moving_variance", shape=shape, initializer="ones", **running
        )

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
        self, weights: BatchNormalizationWeights, inputs: tf.Tensor, records: list | None
    ) -> tf.Tensor:
        """Normalises `[batch, height, width, channels]`; records the batch's statistics in training."""
        gamma, beta, mean, variance = weights
        if mean is not None:
            normalised = _normalise(inputs, gamma, beta, mean, variance)
            outputs = swish(normalised) if self.activated else normalised
        elif self.activated:
            outputs, mean, variance = _normalise_batch_and_activate(inputs, gamma, beta)
        else:
            outputs, mean, variance, *_ = _normalise_batch(inputs, gamma, beta)
        if records is not None:
            records.append(BatchStatistics(mean, variance))
        return outputs

    def recorders(self) -> list[StackedLayer]:
        """This stack records its batch statistics."""
        return [self]

    def record(self, forward: ForwardPass, records: list[BatchStatistics]) -> None:
        """Hands the new running statistics of the whole stack to the pass."""
        means, variances = zip(*records, strict=True)
        for running, batch in ((self.moving_mean, means), (self.moving_variance, variances)):
            forward.updates.append((running, MOMENTUM * running + (1.0 - MOMENTUM) * tf.stack(batch)))


def _normalise(inputs, gamma, beta, mean, variance) -> tf.Tensor:
    return tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=gamma,
        offset=beta,
        mean=mean,
        variance=variance,
        epsilon=EPSILON,
        is_training=False,
    ).y


def _normalise_batch(inputs, gamma, beta):
    """With the batch's own statistics; also gives them (the unbiased variance) and what the gradient needs."""
    return tf.raw_ops.FusedBatchNormV3(
        x=inputs, scale=gamma, offset=beta, mean=[], variance=[], epsilon=EPSILON, is_training=True
    )


@tf.custom_gradient
def _normalise_batch_and_activate(inputs, gamma, beta) -> tuple[tuple[tf.Tensor, ...], Callable]:
    """Batch norm and swish that keep their input only; the normalised values are computed again when needed.

    Together with the convolution that follows, which keeps the output, that is two tensors in place of three for each
    normalisation: a third of a deep network's memory, for 2% of its time.
    """
    result = _normalise_batch(inputs, gamma, beta)
    outputs = swish(result.y)

    def gradient(upstream, *_) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # Without this the executor would compute it as soon as it can, in the forward pass, and keep it.
        with tf.control_dependencies([upstream]):
            size = tf.cast(tf.size(inputs) / inputs.shape[-1], tf.float32)
            biased_variance = result.batch_variance * ((size - 1.0) / size)
            normalised = _normalise(inputs, gamma, beta, result.batch_mean, biased_variance)
        gradients = tf.raw_ops.FusedBatchNormGradV3(
            y_backprop=swish_gradient(upstream, normalised, outputs),
            x=inputs,
            scale=gamma,
            reserve_space_1=result.reserve_space_1,
            reserve_space_2=result.reserve_space_2,
            reserve_space_3=result.reserve_space_3,
            epsilon=EPSILON,
            is_training=True,
        )
        return gradients.x_backprop, gradients.scale_backprop, gradients.offset_backprop

    return (outputs, result.batch_mean, result.batch_variance), gradient
