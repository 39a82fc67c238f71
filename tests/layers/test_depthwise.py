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
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize(
    ("size", "height", "width"), [(3, 5, 4), (5, 8, 8), (5, 6, 3), (5, 2, 2), (11, 8, 8), (1, 3, 3)]
)
def test_outputs_and_gradients(size, height, width, compiled, normal):
    images, kernel = tf.constant(normal(2, height, width, 3)), tf.constant(normal(size, size, 3, 1))
    upstream = normal(2, height, width, 3)

    def with_gradients(convolve):
        with tf.GradientTape() as tape:
            tape.watch([images, kernel])
            outputs = convolve(images, kernel)
        return outputs, *tape.gradient(outputs, [images, kernel], output_gradients=tf.constant(upstream))

    def own():
        return with_gradients(depthwise_convolution)

    found = tf.function(own)() if compiled else own()
    expected = with_gradients(lambda x, k: tf.nn.depthwise_conv2d(x, k, (1, 1, 1, 1), "SAME"))
    for value, target in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, target, rtol=1e-4, atol=1e-4)


def test_each_channel_by_itself(normal):
    images = np.zeros((1, 5, 5, 2), np.float32)
    images[0, 2, 2, 1] = 1.0
    kernel = normal(3, 3, 2, 1)
    outputs = depthwise_convolution(tf.constant(images), tf.constant(kernel)).numpy()
    assert not np.any(outputs[..., 0])
    np.testing.assert_allclose(outputs[0, 1:4, 1:4, 1], kernel[::-1, ::-1, 1, 0], rtol=1e-5)
