"""Depthwise convolution with a fast filter gradient on CPUs."""

from collections.abc import Callable

import tensorflow as tf

_UNIT_STRIDES = [1, 1, 1, 1]


@tf.custom_gradient
def depthwise_convolution(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Convolves every channel by itself, stride 1, zero padding that keeps the size.

    Args:
      inputs: `[batch, height, width, channels]`.
      kernel: `[size, size, channels, 1]` with an odd size.

    The same numbers as `tf.nn.depthwise_conv2d`. Only the filter gradient is asked for with explicit padding: that
    keeps oneDNN, whose kernel for it is five times slower than TensorFlow's own, off that one operation; for the
    forward pass and the input gradient oneDNN is the faster one.
    """
    outputs = tf.raw_ops.DepthwiseConv2dNative(input=inputs, filter=kernel, strides=_UNIT_STRIDES, padding="SAME")
    margins = [0, 0] + [kernel.shape[0] // 2] * 2 + [kernel.shape[1] // 2] * 2 + [0, 0]

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        input_gradient = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
            input_sizes=tf.shape(inputs),
            filter=kernel,
            out_backprop=upstream,
            strides=_UNIT_STRIDES,
            padding="SAME",
        )
        kernel_gradient = tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
            input=inputs,
            filter_sizes=kernel.shape.as_list(),
            out_backprop=upstream,
            strides=_UNIT_STRIDES,
            padding="EXPLICIT",
            explicit_paddings=margins,
        )
        return input_gradient, kernel_gradient

    return outputs, gradient
