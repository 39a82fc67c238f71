"""Batch norm, swish and convolution as one layer that keeps nothing but its input for the backward pass."""

from collections.abc import Callable

import tensorflow as tf

from nvae_tf.layers.batch_normalization import BatchStatistics, StackedBatchNormalization
from nvae_tf.layers.convolution import ConvolutionWeights, StackedConvolution
from nvae_tf.layers.cpu_kernels import swish
from nvae_tf.layers.normalisation import normalise_batch, normalised_swish
from nvae_tf.layers.resampling import nearest_upsampling
from nvae_tf.layers.stacked import StackedLayer


class SwishConvolution(StackedLayer):
    """Batch norm -> swish -> (nearest doubling) -> convolution, a stack as deep as that of the convolution.

    Most of a network's memory is what lies between these three. In training none of it is kept: the backward pass
    normalises and activates once more, which costs two cheap passes over the input and halves the activations.
    """

    def __init__(self, convolution: StackedConvolution, upsampling: bool = False, **kwargs):
        norm = StackedBatchNormalization(convolution.count, convolution.channels_in, dtype=kwargs.get("dtype"))
        super().__init__(convolution.count, [norm, convolution], **kwargs)
        self.norm = norm
        self.convolution = convolution
        self.upsampling = upsampling

    def apply_slice(self, weights: tuple, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        """One layer on `[batch, height, width, channels]`."""
        norm, convolution = weights
        if norm is None:
            # Folded, for an export: servers rewrite this to one operation, which takes less time than `swish`.
            return self._convolve(inputs * tf.sigmoid(inputs), convolution)
        if norm.mean is not None:
            return self._convolve(swish(self.norm.apply_slice(norm, inputs, None)), convolution)
        bias = [] if convolution.bias is None else [convolution.bias]
        outputs, mean, variance = _without_keeping(self._convolve)(
            inputs, norm.gamma, norm.beta, convolution.kernel, *bias
        )
        if records is not None:
            records.append(BatchStatistics(mean, variance))
        return outputs

    def _convolve(self, active: tf.Tensor, weights: ConvolutionWeights) -> tf.Tensor:
        if self.upsampling:
            active = nearest_upsampling(active)
        return self.convolution.apply_slice(weights, active, None)


def _without_keeping(convolve: Callable[[tf.Tensor, ConvolutionWeights], tf.Tensor]) -> Callable:
    """`convolve(swish(batch norm(x)), weights)` as an operation whose gradient computes its way there again."""

    @tf.custom_gradient
    def operation(inputs, gamma, beta, *weights):
        batch = normalise_batch(inputs, gamma, beta)
        outputs = convolve(swish(batch.outputs), ConvolutionWeights(*weights))

        def gradient(upstream, *_):
            # Without this the executor would do it as soon as it can, in the forward pass, and keep the results.
            with tf.control_dependencies([upstream]):
                active, swish_gradient = normalised_swish(inputs, gamma, beta, batch.mean, batch.biased_variance())
            with tf.GradientTape() as tape:
                tape.watch((active, weights))
                again = convolve(active, ConvolutionWeights(*weights))
            active_gradient, weight_gradients = tape.gradient(again, (active, weights), upstream)
            return *batch.gradient(swish_gradient(active_gradient)), *weight_gradients

        return (outputs, batch.mean, batch.variance), gradient

    return operation
