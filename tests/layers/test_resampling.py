import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.layers import ForwardPass
from nvae_tf.layers.residual_cells import FactorizedReduce, aligned_bilinear_upsampling
from tests.layers import reference


def interpolated(images):
    """Doubles height and width linearly, one line after another; corner pixels keep their places."""
    for axis in (1, 2):
        size = images.shape[axis]
        places = np.linspace(0.0, size - 1.0, 2 * size)
        images = np.apply_along_axis(lambda line, p=places, s=size: np.interp(p, np.arange(s), line), axis, images)
    return images


@pytest.mark.parametrize(("height", "width"), [(3, 5), (4, 2), (1, 1), (8, 8)])
def test_aligned_bilinear(height, width, normal):
    images = normal(2, height, width, 3)
    doubled = aligned_bilinear_upsampling(tf.constant(images)).numpy()
    np.testing.assert_allclose(doubled, interpolated(images), rtol=1e-4, atol=1e-5)
    corners = doubled[:, [0, -1]][:, :, [0, -1]], images[:, [0, -1]][:, :, [0, -1]]
    np.testing.assert_allclose(*corners, rtol=1e-6)
    assert aligned_bilinear_upsampling(tf.constant(images, tf.bfloat16)).dtype == tf.bfloat16


def test_the_gradient_of_aligned_bilinear_is_its_transpose(normal):
    images, upstream, direction = tf.constant(normal(1, 3, 4, 2)), normal(1, 6, 8, 2), normal(1, 3, 4, 2)
    with tf.GradientTape() as tape:
        tape.watch(images)
        doubled = aligned_bilinear_upsampling(images)
    gradient = tape.gradient(doubled, images, output_gradients=tf.constant(upstream))
    assert np.sum(gradient * direction) == pytest.approx(np.sum(upstream * interpolated(direction)), rel=1e-4)


@pytest.mark.parametrize("channels_out", [8, 10])
def test_factorized_reduce(channels_out, normal, shaken):
    layer = shaken(FactorizedReduce(1, 5, channels_out))
    images = normal(2, 4, 6, 5)
    active = images / (1.0 + np.exp(-images))
    outputs = layer.single(images, ForwardPass()).numpy()
    assert outputs.shape == (2, 2, 3, channels_out)
    quarter, first = channels_out // 4, 0
    # Whole, then shifted in both directions, in width, in height.
    shifted = [active, active[:, 1:, 1:], active[:, :, 1:], active[:, 1:]]
    for index, (part, image) in enumerate(zip(layer.parts, shifted, strict=True)):
        width = channels_out - 3 * quarter if index == 3 else quarter
        kernel = reference.normalized_kernel(part.kernel.numpy()[0], part.log_norm.numpy()[0])
        expected = image[:, ::2, ::2] @ kernel[0, 0] + part.bias.numpy()[0]
        np.testing.assert_allclose(outputs[..., first : first + width], expected, rtol=1e-4, atol=1e-5)
        first += width
    assert first == channels_out
