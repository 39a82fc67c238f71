"""What convolutions compute, by the plain operation alone, for the tests of layers."""

import numpy as np
import tensorflow as tf


def normalized_kernel(kernel, log_norm):
    """The effective kernel of one weight-normalized convolution."""
    return tf.exp(log_norm) * kernel / (tf.sqrt(tf.reduce_sum(kernel**2, axis=(0, 1, 2))) + 1e-5)


def convolve(images, kernel, strides=1, dilation=1, groups=1):
    """Convolves `[b, h, w, in]` with `[k, k, in / groups, out]`, `k // 2 * dilation` zeros on each side."""
    margin = [kernel.shape[0] // 2 * dilation] * 2
    padded = tf.pad(images, ([0, 0], margin, margin, [0, 0]))
    return tf.nn.conv2d(padded, dense_kernel(kernel, dilation, groups), strides, "VALID")


def dense_kernel(kernel, dilation, groups):
    """The kernel of the same convolution without groups and dilation: zeros where nothing is connected."""
    size, _, channels_in, channels_out = kernel.shape
    zeros, none = [0, dilation - 1], [0, 0]
    spread = tf.pad(kernel[:, None, :, None], (none, zeros, none, zeros, none, none))
    spread = tf.reshape(spread, (size * dilation, size * dilation, channels_in, channels_out))
    length = (size - 1) * dilation + 1
    group_of_input = np.arange(channels_in * groups)[:, None] // channels_in
    connected = group_of_input == np.arange(channels_out) // (channels_out // groups)
    return tf.tile(spread[:length, :length], (1, 1, groups, 1)) * connected.astype(np.float32)
