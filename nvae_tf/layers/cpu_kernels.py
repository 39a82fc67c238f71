"""Operations in forms that are faster on CPUs (left out on GPUs if slower), need less memory, or add in an order."""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.replicas import gpus, replica_count

EPSILON = 1e-5  # of batch norm
_UNIT_STRIDES = [1, 1, 1, 1]
_PLAIN = contextvars.ContextVar("plain", default=False)


def shared_function(*specs: tf.TensorSpec) -> Callable[[Callable], Callable]:
    """A decorator of functions that a graph contains once, not inlined, for all shapes that fit: fewer nodes."""
    attributes = {"_noinline": True}
    return functools.partial(tf.function, input_signature=specs, autograph=False, experimental_attributes=attributes)


def on_one_cpu() -> bool:
    """Whether there is one replica and no GPU."""
    return not gpus() and replica_count() == 1


@contextlib.contextmanager
def plain_operations() -> Iterator[None]:
    """Traces inference as operations that TFLite and ONNX have: no SoftplusGrad, no Expm1, slices of 5 axes at most."""
    token = _PLAIN.set(True)
    try:
        yield
    finally:
        _PLAIN.reset(token)


def has_cpu_forms() -> bool:
    """Whether passes take the forms for CPUs: no GPU is there, and `plain_operations` are not asked for."""
    return not gpus() and not _PLAIN.get()


def fan_out(tensor: tf.Tensor, count: int) -> list[tf.Tensor]:
    """`count` copies of a tensor, one for each of its uses; their gradients are added one after the other."""
    # TensorFlow adds three or more by one AddN, whose last bits depend on the order in which threads have run.

    @tf.custom_gradient
    def copies(value: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        return [tf.identity(value) for _ in range(count)], lambda *upstream: functools.reduce(tf.add, upstream)

    return copies(tensor)


def gradients_of(function: Callable, arguments: Sequence[tf.Tensor], upstream: Any) -> list[tf.Tensor]:
    """The gradients of a function's arguments, from its results' gradients: for use within a custom gradient."""
    # There no tape records while forward mode differentiates it; eagerly all are zeros then, which TensorFlow ignores.
    # Copies, because the arguments may be of another graph.
    arguments = [tf.identity(argument) for argument in arguments]
    if not tf.executing_eagerly():
        return tf.gradients(function(*arguments), arguments, upstream)
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        results = function(*arguments)
    return tape.gradient(results, arguments, upstream, unconnected_gradients="zero")


@tf.custom_gradient
def swish(inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """`tf.nn.silu(inputs)` in fewer passes over memory, by `SoftplusGrad(g, x) = g * sigmoid(x)`."""
    plain = _PLAIN.get()
    outputs = inputs * tf.sigmoid(inputs) if plain else tf.raw_ops.SoftplusGrad(gradients=inputs, features=inputs)
    return outputs, lambda upstream: swish_gradient(upstream, inputs, outputs)


def swish_gradient(upstream: tf.Tensor, inputs: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
    """The gradient of the inputs of `swish`, from the outputs' gradient, the inputs and the outputs."""
    sloped = tf.raw_ops.SoftplusGrad(gradients=upstream, features=inputs)
    # Without this the executor would compute the other factor in the forward pass and keep it until now.
    with tf.control_dependencies([sloped]):
        return sloped * (1.0 + (inputs - outputs))


def normalize(inputs, gamma, beta, mean, variance) -> tf.Tensor:
    """Batch norm with given statistics `[channels]`; computed in float32, in the inputs' type outside."""
    # Not by TensorFlow's kernel, which has no gradient of mean and variance, and none in forward mode in a function.
    return tf.cast(_normalized(inputs, gamma, beta, mean, variance), inputs.dtype)


def normalized_swish(inputs, gamma, beta, mean, variance) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """`swish(normalize(inputs, ...))`, and a function from its gradient to the gradient of swish's argument."""
    if on_one_cpu():  # on one CPU both are compiled to a single pass over the memory, anew for every shape
        arguments = inputs, gamma, beta, mean, variance
        return _swish_in_one_pass(*arguments), lambda upstream: _swish_gradient_in_one_pass(upstream, *arguments)
    normalized = normalize(inputs, gamma, beta, mean, variance)
    outputs = swish(normalized)
    return outputs, lambda upstream: swish_gradient(upstream, normalized, outputs)


@tf.function(autograph=False, jit_compile=True)
def _swish_in_one_pass(inputs, gamma, beta, mean, variance) -> tf.Tensor:
    normalized = _normalized(inputs, gamma, beta, mean, variance)
    return tf.cast(normalized * tf.sigmoid(normalized), inputs.dtype)


@tf.function(autograph=False, jit_compile=True)
def _swish_gradient_in_one_pass(upstream, inputs, gamma, beta, mean, variance) -> tf.Tensor:
    normalized = _normalized(inputs, gamma, beta, mean, variance)
    slope = tf.sigmoid(normalized)
    return tf.cast(tf.cast(upstream, tf.float32) * slope * (1.0 + normalized * (1.0 - slope)), inputs.dtype)


def _normalized(inputs, gamma, beta, mean, variance) -> tf.Tensor:
    return (tf.cast(inputs, tf.float32) - mean) * (gamma * tf.math.rsqrt(variance + EPSILON)) + beta


def expm1(inputs: tf.Tensor) -> tf.Tensor:
    """`tf.math.expm1(inputs)`, which TFLite and ONNX lack; their form loses no digits either."""
    return tf.tanh(inputs / 2.0) * (tf.exp(inputs) + 1.0) if _PLAIN.get() else tf.math.expm1(inputs)


@tf.custom_gradient
def nearest_upsampling(inputs: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """Repeats every pixel of `[batch, height, width, channels]` twice in both directions, as two `tf.repeat`."""
    # The gradient sums over 2x2 pixels; TensorFlow's own, a sum over two axes, takes ten times as long on CPUs.
    _, height, width, channels = inputs.shape
    if _PLAIN.get():
        outputs = tf.raw_ops.ResizeNearestNeighbor(images=inputs, size=[2 * height, 2 * width])
    else:
        shape = inputs.shape[0] or tf.shape(inputs)[0], height, 2, width, 2, channels
        repeated = tf.broadcast_to(tf.reshape(inputs, (-1, height, 1, width, 1, channels)), shape)
        outputs = tf.reshape(repeated, (-1, 2 * height, 2 * width, channels))
    return outputs, lambda upstream: 4.0 * tf.nn.avg_pool2d(upstream, 2, 2, "VALID")


def phase_kernels(kernel: tf.Tensor) -> list[tf.Tensor]:
    """Kernels that convolve an image as `kernel` does the doubled image: one for each pixel of a square."""
    # They are 3x3 in place of 5x5: taps of `kernel` that see the same pixel are added (a polyphase decomposition).
    size = kernel.shape[0]
    reach = (size // 2 + 1) // 2
    # Which tap of the small kernel, along one axis, has each tap of the kernel, for each of two pixels.
    places = (np.arange(size) - size // 2 + np.arange(2)[:, np.newaxis]) // 2 + reach
    small = 2 * reach + 1
    along_axis = (np.arange(small)[:, np.newaxis] == places[:, np.newaxis]).astype(np.float32)
    taps = np.einsum("pik,qjl->pqijkl", along_axis, along_axis).reshape(4 * small**2, size**2)
    added = tf.matmul(tf.constant(taps, kernel.dtype), tf.reshape(kernel, (size**2, -1)))
    return tf.unstack(tf.reshape(added, (4, small, small, *kernel.shape[2:])))


def interleaved(phases: tf.Tensor) -> tf.Tensor:
    """The pixels (0, 0), (0, 1), (1, 0) and (1, 1) of all squares `[4, batch, height, width, channels]` as images."""
    *_, height, width, channels = phases.shape
    squares = tf.reshape(phases, (2, 2, -1, height, width, channels))
    return tf.reshape(tf.transpose(squares, (2, 3, 0, 4, 1, 5)), (-1, 2 * height, 2 * width, channels))


@tf.custom_gradient
def depthwise_convolution(inputs: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Callable]:
    """`tf.nn.depthwise_conv2d` with stride 1, "SAME", and a kernel `[size, size, channels, 1]` of an odd size."""

    def convolve(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.raw_ops.DepthwiseConv2dNative(input=inputs, filter=kernel, strides=_UNIT_STRIDES, padding="SAME")

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Also a convolution, by the turned kernel. TensorFlow's operation takes 1.1 to 2 times as long on CPUs.
        inputs_gradient = convolve(upstream, tf.reverse(kernel, (0, 1)))
        if has_cpu_forms():
            return inputs_gradient, _kernel_gradient(inputs, upstream, kernel.shape[0])
        arguments = inputs, list(kernel.shape), upstream, _UNIT_STRIDES, "SAME"
        return inputs_gradient, tf.nn.depthwise_conv2d_backprop_filter(*arguments)

    return convolve(inputs, kernel), gradient


def _kernel_gradient(inputs: tf.Tensor, upstream: tf.Tensor, size: int) -> tf.Tensor:
    """As `tf.nn.depthwise_conv2d_backprop_filter`, which takes 1.1 to 11 times as long on CPUs."""
    # A depthwise convolution of the inputs by the outputs' gradient, with the images side by side as channels; in
    # float32, because every number is a sum over all pixels.
    _, height, width, channels = inputs.shape
    batch_size = inputs.shape[0] or tf.shape(inputs)[0]
    images, filters = (
        tf.reshape(tf.transpose(tf.cast(tensor, tf.float32), (1, 2, 0, 3)), (1, height, width, batch_size * channels))
        for tensor in (inputs, upstream)
    )
    margin = [size // 2] * 2
    gradients_of_images = tf.raw_ops.DepthwiseConv2dNative(
        input=images,
        filter=tf.reshape(filters, (height, width, batch_size * channels, 1)),
        strides=_UNIT_STRIDES,
        # As explicit padding: that keeps oneDNN off, whose kernel is slower for filters as large as images.
        padding="EXPLICIT",
        explicit_paddings=[0, 0, *margin, *margin, 0, 0],
    )
    gradient = tf.reduce_sum(tf.reshape(gradients_of_images, (size, size, batch_size, channels)), axis=2)
    return tf.cast(tf.expand_dims(gradient, -1), inputs.dtype)


def pointwise_convolution(inputs: tf.Tensor, kernel: tf.Tensor, *bias: tf.Tensor) -> tf.Tensor:
    """`tf.nn.conv2d` by a 1x1 kernel as a matrix product: on CPUs its filter gradient takes half the time."""
    _, height, width, channels_in = inputs.shape
    outputs = tf.matmul(tf.reshape(inputs, (-1, channels_in)), tf.reshape(kernel, kernel.shape[2:]))
    # Right after the product, so that TensorFlow can make one operation of the two.
    outputs = tf.nn.bias_add(outputs, *bias) if bias else outputs
    return tf.reshape(outputs, (-1, height, width, kernel.shape[-1]))


def convolution_of_two(first: tf.Tensor, second: tf.Tensor, kernel: tf.Tensor, *bias: tf.Tensor) -> tf.Tensor:
    """`pointwise_convolution(tf.concat([first, second], -1), kernel, *bias)`, as a sum: nothing is copied."""
    kernels = tf.split(kernel, [first.shape[-1], second.shape[-1]], axis=-2)
    return pointwise_convolution(first, kernels[0]) + pointwise_convolution(second, kernels[1], *bias)


def concatenated(pieces: Sequence[tf.Tensor]) -> tf.Tensor:
    """`tf.concat(pieces, -1)`, with a gradient that XLA compiles once: TensorFlow's own computes where pieces lie."""
    widths = [piece.shape[-1] for piece in pieces]

    @tf.custom_gradient
    def operation(*pieces):
        return tf.concat(pieces, -1), lambda upstream: tuple(tf.split(upstream, widths, -1))

    return operation(*pieces)
