"""Depthwise convolution with gradients that are fast on CPUs."""

from collections.abc import Callable

import tensorflow as tf

from nvae_tf.processors import has_gpus

_UNIT_STRIDES = [1, 1, 1, 1]


@tf.custom_gradient
def depthwise_convolution(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Convolves every channel by itself, stride 1, zero padding that keeps the size.

    Args:
      inputs: `[batch, height, width, channels]`.
      kernel: `[size, size, channels, 1]` with an odd size.

    Returns:
      `[batch, height, width, channels]`, the same numbers as `tf.nn.depthwise_conv2d` gives.
    """

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_kernel = _fused_filter_gradient if has_gpus() else _filter_gradient
        # The inputs' gradient is a convolution too, by the turned kernel. TensorFlow's operation for it takes 1.1 to 2
        # times as long on CPUs.
        return _convolution(upstream, tf.reverse(kernel, (0, 1))), of_kernel(inputs, upstream, kernel.shape[0])

    return _convolution(inputs, kernel), gradient


def _convolution(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.DepthwiseConv2dNative(input=inputs, filter=kernel, strides=_UNIT_STRIDES, padding="SAME")


def _fused_filter_gradient(inputs: tf.Tensor, upstream: tf.Tensor, size: int) -> tf.Tensor:
    return tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
        input=inputs,
        filter_sizes=[size, size, inputs.shape[-1], 1],
        out_backprop=upstream,
        strides=_UNIT_STRIDES,
        padding="SAME",
    )


def _filter_gradient(inputs: tf.Tensor, upstream: tf.Tensor, size: int) -> tf.Tensor:
    """The gradient of the kernel `[size, size, channels, 1]`, on CPUs.

    It is itself a depthwise convolution, of the inputs by what comes from above, with the images side by side as
    channels; all in float32, because every number is a sum over all pixels. TensorFlow's operation for it takes 1.1 to
    11 times as long.
    """
    _, height, width, channels = inputs.shape
    batch_size = tf.shape(inputs)[0]
    images, filters = (
        tf.reshape(tf.transpose(tf.cast(tensor, tf.float32), (1, 2, 0, 3)), (1, height, width, batch_size * channels))
        for tensor in (inputs, upstream)
    )
    margin = [size // 2] * 2
    of_images = tf.raw_ops.DepthwiseConv2dNative(
        input=images,
        filter=tf.reshape(filters, (height, width, batch_size * channels, 1)),
        strides=_UNIT_STRIDES,
        # As explicit padding: that keeps oneDNN off, whose kernel is slower for filters as large as images.
        padding="EXPLICIT",
        explicit_paddings=[0, 0, *margin, *margin, 0, 0],
    )
    gradient = tf.reduce_sum(tf.reshape(of_images, (size, size, batch_size, channels)), axis=2)
    return tf.cast(tf.expand_dims(gradient, -1), inputs.dtype)
