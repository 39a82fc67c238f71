"""Swish and its own gradient against their formulas."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.layers import swish


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "graph"])
def test_swish_and_its_gradient(compiled):
    values = tf.constant([-100.0, -20.0, -3.0, -0.5, 0.0, 0.5, 3.0, 20.0, 100.0])

    def value_and_gradient():
        with tf.GradientTape() as tape:
            tape.watch(values)
            outputs = swish(values)
        return outputs, tape.gradient(outputs, values, output_gradients=tf.fill(values.shape, 2.0))

    outputs, gradient = (tf.function(value_and_gradient) if compiled else value_and_gradient)()
    exact = values.numpy().astype(np.float64)
    sigmoid = 1.0 / (1.0 + np.exp(-exact))
    slope = sigmoid * (1.0 + exact * (1.0 - sigmoid))
    np.testing.assert_allclose(outputs, exact * sigmoid, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, 2.0 * slope, rtol=1e-5, atol=1e-6)


def test_any_shape_and_type():
    images = tf.ones((2, 3, 4, 5), tf.bfloat16)
    assert swish(images).shape == images.shape
    assert swish(images).dtype == tf.bfloat16
