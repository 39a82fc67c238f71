"""Stacked convolutions: weight-normalized or plain, dense, depthwise, grouped or masked."""

import collections
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from nvae_tf.layers import cpu_kernels
from nvae_tf.layers.normalization import moments, numbers_a_channel
from nvae_tf.layers.stacked import ForwardPass, StackedLayer

_SMALL_KERNEL = 2**16  # kernels of a stack with at most this many numbers may be joined with others
_FILTER_AXES = 1, 2, 3  # of kernels, all but the layer and the output channel


class ConvolutionWeights(NamedTuple):
    """Ready to use, in the compute type."""

    kernel: tf.Tensor  # `[height, width, in / groups, out]`, masked and normalized
    bias: tuple[tf.Tensor, ...] = ()  # one of `[out]`, or none


class StackedConvolution(StackedLayer):
    """`count` convolutions of an odd size with padding `kernel_size // 2 * dilation` on every side.

    The kernel variable `w` is `[count, height, width, in / groups, out]`. With weight normalization the effective
    kernel is, per output channel, `exp(s) w / (||w|| + 1e-5)`, where `s` starts at `log(||w|| + 1e-2) +
    log_norm_offset`; a `mask` `[height, width, in / groups, out]` multiplies `w` before. `w` and the bias start from
    U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
    """

    def __init__(
        self,
        count: int,
        channels_in: int,
        channels_out: int,
        kernel_size: int,
        strides: int = 1,
        dilation: int = 1,
        groups: int = 1,
        use_bias: bool = True,
        weight_normalized: bool = True,
        mask: np.ndarray | None = None,
        log_norm_offset: float = 0.0,
        **kwargs,
    ):
        super().__init__(count, **kwargs)
        self.channels_in, self.channels_out, self.kernel_size = channels_in, channels_out, kernel_size
        self.strides, self.dilation, self.groups, self.mask = strides, dilation, groups, mask
        fan_in = kernel_size * kernel_size * channels_in // groups
        uniform = keras.initializers.RandomUniform(-(fan_in**-0.5), fan_in**-0.5)
        shape, vectors = (count, kernel_size, kernel_size, channels_in // groups, channels_out), (count, channels_out)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=uniform)
        self.bias = self.add_weight(name="bias", shape=vectors, initializer=uniform) if use_bias else None
        self.log_norm = self.add_weight(name="log_norm", shape=vectors) if weight_normalized else None
        if weight_normalized:
            self.log_norm.assign(tf.math.log(_norms(self._masked_kernel())[:, 0, 0, 0] + 1e-2) + log_norm_offset)

    def effective_kernels(self, forward: ForwardPass) -> tf.Tensor:
        """The masked, normalized kernels, float32 `[count, height, width, in / groups, out]`, made once in a pass."""
        if self not in forward.kernels:
            kernel = self._masked_kernel()
            if self.log_norm is not None:
                kernel = _weight_normalized(kernel, self.log_norm, forward)
            forward.kernels[self] = kernel
        return forward.kernels[self]

    def make_weights(self, forward: ForwardPass) -> ConvolutionWeights:
        kernels = tf.cast(self.effective_kernels(forward), self.compute_dtype)
        return ConvolutionWeights(kernels, () if self.bias is None else (tf.cast(self.bias, self.compute_dtype),))

    def apply_layer(self, weights: ConvolutionWeights, inputs: tf.Tensor | tuple, records: list | None) -> tf.Tensor:
        """Convolves `[batch, height, width, in]`; for a 1x1 kernel two tensors count as one, joined by channels."""
        kernel, bias = weights
        if isinstance(inputs, tuple):
            return cpu_kernels.convolution_of_two(*inputs, kernel, *bias)
        if self.kernel_size == 1 and self.strides == 1 and self.groups == 1:
            return cpu_kernels.pointwise_convolution(inputs, kernel, *bias)
        padding = "SAME"
        if self.strides > 1 and self.kernel_size > 1:  # where SAME is not symmetric
            margin = self.kernel_size // 2 * self.dilation
            inputs = tf.pad(inputs, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
            padding = "VALID"
        if self.dilation > 1:  # zeros between the taps, in place of `dilations`, whose gradients need a GPU
            taps = np.eye((self.kernel_size - 1) * self.dilation + 1)[:, :: self.dilation]
            kernel = tf.einsum("yh,xw,hwio->yxio", *[tf.constant(taps, kernel.dtype)] * 2, kernel)
        if self.groups == 1:  # the stem and most cells
            outputs = tf.nn.conv2d(inputs, kernel, self.strides, padding)
        elif self.groups == self.channels_in == self.channels_out:
            kernel = tf.reshape(kernel, kernel.shape[:2] + (self.channels_in, 1))
            if self.strides == 1:
                outputs = cpu_kernels.depthwise_convolution(inputs, kernel)
            else:
                outputs = tf.nn.depthwise_conv2d(inputs, kernel, (1, self.strides, self.strides, 1), padding)
        else:
            # TensorFlow has no gradient for grouped convolutions on CPUs.
            groups = zip(tf.split(inputs, self.groups, -1), tf.split(kernel, self.groups, -1), strict=True)
            outputs = cpu_kernels.concatenated([tf.nn.conv2d(*group, self.strides, padding) for group in groups])
        return tf.nn.bias_add(outputs, *bias) if bias else outputs

    def _masked_kernel(self) -> tf.Tensor:
        kernel = tf.convert_to_tensor(self.kernel)
        return kernel if self.mask is None else kernel * self.mask


class DataDependentConvolution(StackedConvolution):
    """Weight-normalized convolutions whose scale and bias are set from the first training batch.

    In an initializing pass, with `y` the convolution by `w / (||w|| + 1e-5)` and `d` five times the (unbiased)
    deviation of `y` per channel, `s = -log(d + 1e-5)` and the bias is `-mean(y) / (d + 1e-5)`.
    """

    @property
    def statistics(self) -> tuple[keras.Variable, keras.Variable]:
        """The scales and the biases of all layers, each `[count, out]`."""
        return self.log_norm, self.bias

    def recorders(self, initializing: bool = False) -> list[StackedLayer]:
        return [self] if initializing else []

    def make_weights(self, forward: ForwardPass) -> ConvolutionWeights:
        if not forward.initializing:
            return super().make_weights(forward)
        kernel = self._masked_kernel()
        return ConvolutionWeights(tf.cast(kernel / (_norms(kernel) + 1e-5), self.compute_dtype))

    def apply_layer(self, weights: ConvolutionWeights, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        outputs = super().apply_layer(weights, inputs, records)
        if weights.bias:  # not an initializing pass
            return outputs
        mean, variance = moments(outputs)
        size = numbers_a_channel(outputs)
        scale = 1.0 / (5.0 * tf.sqrt(variance * size / tf.maximum(size - 1.0, 1.0)) + 1e-5)
        records.append((tf.math.log(scale), -mean * scale))
        return (outputs - tf.cast(mean, outputs.dtype)) * tf.cast(scale, outputs.dtype)


def kernels_of_all(stacks: Sequence[StackedConvolution], forward: ForwardPass) -> list[tf.Tensor]:
    """The effective kernels of every stack; small ones of one shape may be computed as one, in fewer operations."""
    joins = forward.scanned and not forward.cpu_forms  # CPUs keep the order of their sums
    alike = collections.defaultdict(list)
    for stack in stacks if joins else ():
        is_plain = stack.log_norm is None or stack.mask is not None or stack in forward.kernels
        if not is_plain and math.prod(stack.kernel.shape) <= _SMALL_KERNEL:
            alike[tuple(stack.kernel.shape[1:])].append(stack)
    for several in alike.values():
        kernels, log_norms = (tf.concat([getattr(one, name) for one in several], 0) for name in ("kernel", "log_norm"))
        pieces = tf.split(_weight_normalized(kernels, log_norms, forward), [one.count for one in several])
        forward.kernels |= zip(several, pieces, strict=True)
    return [stack.effective_kernels(forward) for stack in stacks]


def _weight_normalized(kernels: tf.Tensor, log_norms: tf.Tensor, forward_pass: ForwardPass) -> tf.Tensor:
    """`exp(s) w / (||w|| + 1e-5)` of each output channel of `[count, height, width, in, out]`; s is `[count, out]`."""
    # What TensorFlow derives as gradient has three more arrays of the kernels' size, and as many nodes again.
    forward, backward = _scaled, _gradients
    if not (forward_pass.training and forward_pass.cpu_forms):  # as operations of the graph itself
        forward, backward = forward.python_function, backward.python_function

    @tf.custom_gradient
    def operation(kernels: tf.Tensor, log_norms: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        scaled, *others = forward(kernels, log_norms)
        scaled.set_shape(kernels.shape)

        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            gradients = backward(upstream, kernels, *others)
            gradients[0].set_shape(kernels.shape)
            gradients[1].set_shape(log_norms.shape)
            return tuple(gradients)

        return scaled, gradient

    return operation(kernels, tf.convert_to_tensor(log_norms))


_ANY_KERNELS = tf.TensorSpec([None] * 5)


@cpu_kernels.shared_function(_ANY_KERNELS, tf.TensorSpec([None, None]))
def _scaled(kernels: tf.Tensor, log_norms: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    norms = _norms(kernels)
    scales = tf.reshape(tf.exp(log_norms), tf.shape(norms)) / (norms + 1e-5)
    return kernels * scales, norms, scales


@cpu_kernels.shared_function(*[_ANY_KERNELS] * 4)
def _gradients(upstream, kernels, norms, scales) -> tuple[tf.Tensor, tf.Tensor]:
    along = scales * tf.reduce_sum(upstream * kernels, _FILTER_AXES, keepdims=True)
    return scales * upstream - along / (norms * (norms + 1e-5)) * kernels, tf.squeeze(along, _FILTER_AXES)


def _norms(kernels: tf.Tensor) -> tf.Tensor:
    """The norm of every output channel, `[count, 1, 1, 1, out]`."""
    # The tiny number keeps the gradient finite for a filter that is all zeros.
    return tf.sqrt(tf.reduce_sum(tf.square(kernels), _FILTER_AXES, keepdims=True) + 1e-30)
