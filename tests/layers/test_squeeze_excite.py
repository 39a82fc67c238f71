"""Squeeze-excite gates against a few lines of numpy."""

import numpy as np
import pytest

from nvae_tf.layers import ForwardPass, StackedSqueezeExcite


@pytest.mark.parametrize(("channels", "hidden"), [(6, 4), (64, 4), (80, 5), (128, 8)])
def test_the_hidden_width(channels, hidden):
    layer = StackedSqueezeExcite(2, channels)
    assert [tuple(weight.shape) for weight in layer.weights] == [
        (2, channels, hidden),
        (2, hidden),
        (2, hidden, channels),
        (2, channels),
    ]


def test_the_gate(normal, shaken):
    layer = shaken(StackedSqueezeExcite(2, 6))
    images = normal(3, 4, 5, 6)
    with layer.unstacked(ForwardPass()) as layers:
        gates = [one(images) for one in layers]
    for index, gate in enumerate(gates):
        reduce_kernel, reduce_bias, expand_kernel, expand_bias = (w.numpy()[index] for w in layer.weights)
        hidden = np.maximum(images.mean(axis=(1, 2)) @ reduce_kernel + reduce_bias, 0.0)
        expected = 1.0 / (1.0 + np.exp(-(hidden @ expand_kernel + expand_bias)))
        assert gate.shape == (3, 1, 1, 6)
        np.testing.assert_allclose(gate[:, 0, 0], expected, rtol=1e-5)


def test_dense_layers_start_like_convolutions():
    layer = StackedSqueezeExcite(500, 64)
    for weight, fan_in in zip(layer.weights, (64, 64, 4, 4), strict=True):
        values = weight.numpy()
        assert np.max(np.abs(values)) <= fan_in**-0.5
        assert np.std(values) == pytest.approx(fan_in**-0.5 / np.sqrt(3.0), rel=0.1)
