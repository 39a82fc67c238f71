"""The depthwise convolution and its own gradients against TensorFlow's."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.layers import depthwise
from nvae_tf.layers.depthwise import depthwise_convolution


@pytest.fixture(params=[False, True], ids=["cpu", "gpu"])
def processor(request, monkeypatch):
    """The form for CPUs, and that for GPUs."""
    monkeypatch.setattr(depthwise, "has_gpus", lambda: request.param)


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize(("dtype", "tolerance"), [(tf.float32, 1e-4), (tf.float16, 1e-2), (tf.bfloat16, 5e-2)])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize(
    ("size", "height", "width"), [(3, 5, 4), (5, 8, 8), (5, 6, 3), (5, 2, 2), (11, 8, 8), (1, 3, 3)]
)
def test_outputs_and_gradients(size, height, width, compiled, dtype, tolerance, normal):
    images, kernel, upstream = (
        tf.cast(normal(*shape), dtype) for shape in ((2, height, width, 3), (size, size, 3, 1), (2, height, width, 3))
    )

    def with_gradients(convolve):
        with tf.GradientTape() as tape:
            tape.watch([images, kernel])
            outputs = convolve(images, kernel)
        gradients = tape.gradient(outputs, [images, kernel], output_gradients=tf.cast(upstream, outputs.dtype))
        return outputs, *gradients

    def own():
        return with_gradients(depthwise_convolution)

    def plain(images, kernel):
        images, kernel = (tf.cast(tensor, tf.float32) for tensor in (images, kernel))
        return tf.nn.depthwise_conv2d(images, kernel, (1, 1, 1, 1), "SAME")

    found = tf.function(own)() if compiled else own()
    for value, target in zip(found, with_gradients(plain), strict=True):
        assert value.dtype == dtype
        value, target = (tf.cast(tensor, tf.float32) for tensor in (value, target))
        np.testing.assert_allclose(value, target, atol=tolerance * max(1.0, np.max(np.abs(target))))


def test_each_channel_by_itself(normal):
    images = np.zeros((1, 5, 5, 2), np.float32)
    images[0, 2, 2, 1] = 1.0
    kernel = normal(3, 3, 2, 1)
    outputs = depthwise_convolution(tf.constant(images), tf.constant(kernel)).numpy()
    assert not np.any(outputs[..., 0])
    np.testing.assert_allclose(outputs[0, 1:4, 1:4, 1], kernel[::-1, ::-1, 1, 0], rtol=1e-5)
