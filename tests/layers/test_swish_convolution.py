"""Batch norm, swish and convolution as one operation, in both of its forms, against what TensorFlow derives."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.layers import ForwardPass, StackedConvolution, normalization
from nvae_tf.layers.swish_convolution import SwishConvolution
from nvae_tf.memory import memory_timeline

# Of half precision's errors those of sums over all pixels are the largest.
TOLERANCES = {"float32": 1e-3, "mixed_float16": 2e-2, "mixed_bfloat16": 1e-1}


@pytest.fixture(params=[True, False], ids=["compiled", "operations"])
def form(request, monkeypatch):
    """That for one CPU, and that for all else."""
    monkeypatch.setattr(normalization, "on_one_cpu", lambda: request.param)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("upsampling", [False, True], ids=["same size", "doubled"])
@pytest.mark.parametrize("policy", TOLERANCES)
def test_outputs_and_gradients(policy, upsampling, kernel_size, normal, shaken):
    convolution = StackedConvolution(1, 6, 4, kernel_size, dtype=policy)
    layer = shaken(SwishConvolution(convolution, upsampling, dtype=policy))
    dtype = layer.compute_dtype
    images = normal(3, 5, 4, 6)
    upstream = normal(3, *(size * (1 + upsampling) for size in (5, 4)), 4)

    def plain(images):
        mean, variance = tf.nn.moments(images, (0, 1, 2))
        active = tf.nn.silu(tf.nn.batch_normalization(images, mean, variance, layer.norm.beta, layer.norm.gamma, 1e-5))
        if upsampling:
            active = tf.repeat(tf.repeat(active, 2, axis=1), 2, axis=2)
        kernel = layer.convolution.effective_kernels()[0]
        return tf.nn.conv2d(active, kernel, 1, "SAME") + layer.convolution.bias[0]

    @tf.function
    def with_gradients(function, images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = function(images)
        of = [images, *layer.trainable_weights]
        return outputs, *tape.gradient(outputs, of, output_gradients=tf.cast(upstream, outputs.dtype))

    found = with_gradients(lambda x: layer.single(x, ForwardPass(training=True)), tf.constant(images, dtype))
    # Of the numbers that half precision keeps of the images.
    expected = with_gradients(plain, tf.cast(tf.constant(images, dtype), tf.float32))
    assert found[0].dtype == found[1].dtype == dtype
    for value, target in zip(found, expected, strict=True):
        value = tf.cast(value, tf.float32)
        np.testing.assert_allclose(value, target, atol=TOLERANCES[policy] * np.max(np.abs(target)))


@pytest.mark.usefixtures("form")
def test_nothing_but_the_inputs_is_kept_for_the_backward_pass():
    count, shape = 6, (8, 32, 32, 8)
    layer = SwishConvolution(StackedConvolution(count, 8, 8, 1))

    @tf.function(input_signature=[tf.TensorSpec(shape)])
    def gradients(images):
        forward = ForwardPass(training=True, traced_inline=True)
        with tf.GradientTape() as tape, layer.unstacked(forward) as calls:
            state = images
            for call in calls:
                state = call(state)
        return tape.gradient(state, layer.trainable_weights)

    images_bytes = 4 * np.prod(shape)
    peak = memory_timeline(gradients.get_concrete_function()).peak_bytes
    # The inputs of all layers but the first, and what the backward pass of one layer needs.
    assert peak < (count - 1 + 6.5) * images_bytes
