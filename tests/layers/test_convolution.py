import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.layers import DataDependentConvolution, ForwardPass, StackedConvolution, StackedSqueezeExcite
from tests.layers import reference
from tests.layers.layer_tests import CHANNELS, LayerTests

KINDS = {
    "3x3": dict(kernel_size=3),
    "1x1": dict(kernel_size=1),
    "3x3 stride 2": dict(kernel_size=3, strides=2),
    "1x1 stride 2": dict(kernel_size=1, strides=2),
    "dilated": dict(kernel_size=3, dilation=2),
    "depthwise": dict(kernel_size=5, channels_out=4, groups=4),
    "depthwise stride 2": dict(kernel_size=5, channels_out=4, groups=4, strides=2),
    "grouped": dict(kernel_size=3, groups=2),
    "grouped stride 2": dict(kernel_size=3, groups=2, strides=2),
}


class TestConvolutions(LayerTests):
    KINDS = {
        "plain": lambda count, **dtype: StackedConvolution(count, CHANNELS, 4, 3, **dtype),
        "data-dependent": lambda count, **dtype: DataDependentConvolution(count, CHANNELS, 4, 3, **dtype),
    }


def convolution(count=1, channels_in=4, channels_out=6, **settings):
    return StackedConvolution(count, channels_in, channels_out, **settings)


@pytest.mark.parametrize("plain", [False, True], ids=["normalized", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_against_the_plain_operation(kind, plain, normal, shaken):
    settings = KINDS[kind] | {"use_bias": not plain, "weight_normalized": not plain}
    layer = shaken(convolution(**settings))
    kernel = layer.kernel.numpy()[0]
    if not plain:
        kernel = reference.normalized_kernel(kernel, layer.log_norm.numpy()[0])
    for height, width in ((6, 8), (5, 7)):  # TensorFlow's SAME is only wrong on even sizes
        images = normal(2, height, width, 4)
        expected = reference.convolve(images, kernel, layer.strides, layer.dilation, settings.get("groups", 1))
        if not plain:
            expected += layer.bias.numpy()[0]
        np.testing.assert_allclose(layer.single(images, ForwardPass()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("layer", "fans_in"),
    [
        (lambda: convolution(count=200, channels_out=4, kernel_size=3), (36, 36)),
        (lambda: convolution(count=200, channels_out=4, kernel_size=3, groups=4), (9, 9)),
        (lambda: StackedSqueezeExcite(500, 64), (64, 64, 4, 4)),
    ],
    ids=["dense", "depthwise", "gate"],
)
def test_weights_start_uniformly_by_the_fan_in(layer, fans_in):
    for weight, fan_in in zip(layer().weights, fans_in, strict=False):
        assert np.max(np.abs(weight)) <= fan_in**-0.5
        assert np.std(weight) == pytest.approx(fan_in**-0.5 / np.sqrt(3.0), rel=0.1)


def test_a_filter_of_zeros_has_a_finite_gradient(normal):
    layer = convolution(kernel_size=3)
    layer.kernel.assign(tf.zeros_like(layer.kernel))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer.single(normal(1, 4, 4, 4), ForwardPass()) ** 2)
    gradients = tape.gradient(total, layer.trainable_weights)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize("strides", [1, 2])
def test_data_dependent_scale_and_bias(strides, normal):
    layer = DataDependentConvolution(1, 3, 5, 3, strides=strides)
    before = [weight.numpy() for weight in layer.weights]
    images = 2.0 * normal(3, 6, 6, 3) + 1.0
    forward = ForwardPass(training=True, initializing=True)
    outputs = layer.single(images, forward)
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)  # nothing before the commit
    forward.commit()
    direction = reference.normalized_kernel(before[0][0], 0.0)
    values = np.reshape(reference.convolve(images, direction, strides), (-1, 5))
    spread = 5.0 * np.sqrt(np.sum((values - values.mean(axis=0)) ** 2, axis=0) / (len(values) - 1))
    np.testing.assert_allclose(layer.bias.numpy()[0], -values.mean(axis=0) / (spread + 1e-5), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(layer.log_norm.numpy()[0], -np.log(spread + 1e-5), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layer.kernel, before[0])
    # The batch that set them comes out with mean 0 and spread 1/5, already in that pass.
    again = layer.single(images, ForwardPass(training=True))
    np.testing.assert_allclose(again, outputs, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.mean(again, axis=(0, 1, 2)), np.zeros(5), atol=1e-4)
    np.testing.assert_allclose(np.std(again, axis=(0, 1, 2), ddof=1), np.full(5, 0.2), rtol=1e-3)
