"""What holds of every stacked layer: the base class of their tests, which add the layer's `KINDS`."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.layers import ForwardPass

COUNT, CHANNELS = 2, 8
# Settings of a pass, and whether it is that of a graph, which has one function for all layers made of parts.
PASSES = {
    "inference": (dict(training=False), False),
    "training": (dict(training=True), False),
    "training in a graph": (dict(training=True), True),
    "first batch in a graph": (dict(training=True, initializing=True), True),
}
# Largest difference from float32, of the largest number.
HALF = {"mixed_float16": 1e-2, "mixed_bfloat16": 6e-2}


def results(stack, images, settings):
    """Outputs, gradients of the weights, and the updates of one pass, in which every layer has its own images."""
    forward = ForwardPass(**settings)
    with tf.GradientTape() as tape:
        outputs = [layer(image) for layer, image in zip(stack.layers(forward), images, strict=True)]
        total = tf.add_n([tf.reduce_sum(output**2) for output in outputs])
    gradients = [each for each in tape.gradient(total, stack.trainable_weights) if each is not None]
    return tf.stack(outputs), gradients, [value for _, value in forward.updates()]


class LayerTests:
    """Initialization, all forms of a pass, half precision and saving."""

    # By a name, what makes a stack of so many layers with `CHANNELS` channels of input, in a dtype policy.
    KINDS = {}

    @pytest.fixture
    def images(self, normal):
        return [tf.constant(normal(2, 4, 4, CHANNELS)) for _ in range(COUNT)]

    @pytest.mark.parametrize("kind_of_pass", PASSES)
    def test_a_stack_equals_separate_layers(self, make, kind_of_pass, images, shaken):
        stack, (settings, in_graph) = shaken(make(COUNT)), PASSES[kind_of_pass]
        found = (tf.function(results, autograph=False) if in_graph else results)(stack, images, settings)
        separate = []
        for index in range(COUNT):
            single = make(1)
            for mine, theirs in zip(single.weights, stack.weights, strict=True):
                mine.assign(theirs[index : index + 1])
            separate.append(tf.nest.flatten(results(single, images[index : index + 1], settings)))
        for value, *parts in zip(tf.nest.flatten(found), *separate, strict=True):
            # A bias right before a norm has a gradient of zero in theory: hence the floor of the tolerance.
            tolerance = 1e-4 * max(np.max(np.abs(value)), 0.1)
            np.testing.assert_allclose(value, tf.concat(parts, axis=0), rtol=1e-3, atol=tolerance)

    @pytest.mark.parametrize("policy", HALF)
    def test_half_precision(self, make, policy, images, shaken):
        full, half = shaken(make(COUNT)), shaken(make(COUNT, dtype=policy))
        for mine, theirs in zip(half.weights, full.weights, strict=True):
            assert mine.dtype == "float32"
            mine.assign(theirs)
        expected = results(full, images, {})[0]
        found = results(half, [tf.cast(image, half.compute_dtype) for image in images], {})[0]
        assert found.dtype == half.compute_dtype
        np.testing.assert_allclose(found, expected, atol=HALF[policy] * np.max(np.abs(expected)), rtol=0)
