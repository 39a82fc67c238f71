import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import layers
from nvae_tf.flows import FlowPairs
from nvae_tf.latent_plan import CELL_SETS, InvertedBranch
from tests.layers import reference
from tests.layers.layer_tests import CHANNELS, LayerTests

BRANCHES = sorted({branch for cells in CELL_SETS.values() for branch in cells}, key=str)
# Channels in and out, and the factor of the resolution.
CHANGES = {"normal": (8, 8, 1.0), "down": (8, 16, 0.5), "up": (8, 4, 2.0)}


def cells(branch, channels_out=CHANNELS):
    return lambda count, **dtype: layers.ResidualCells(count, branch, CHANNELS, channels_out, True, **dtype)


class TestCells(LayerTests):
    KINDS = {str(branch): cells(branch) for branch in BRANCHES}
    KINDS |= {"half the size": cells(BRANCHES[0], 16), "twice the size": cells(BRANCHES[-1], 4)}


class TestPartsOfCells(LayerTests):
    KINDS = {
        "batch norm": lambda count, **dtype: layers.StackedBatchNormalization(count, CHANNELS, **dtype),
        "gate": lambda count, **dtype: layers.StackedSqueezeExcite(count, CHANNELS, **dtype),
        "flows": lambda count, **dtype: FlowPairs(count, CHANNELS, **dtype),
    }


def leaves(layer):
    """The norms and the convolutions of a stack, each in the order in which they act."""
    if not layer.parts:
        norm = isinstance(layer, layers.StackedBatchNormalization)
        return ([layer], []) if norm else ([], [layer])
    norms, convolutions = zip(*map(leaves, layer.parts), strict=True)
    return sum(norms, []), sum(convolutions, [])


class Expected:
    """A branch written out from the text of the specification, with plain differentiable operations."""

    def __init__(self, branch, change, layer, training):
        self.branch, self.change, self.training = branch, change, training
        self.norms, self.convolutions = map(iter, leaves(layer))
        self.statistics = []

    def __call__(self, images):
        outputs = self.inverted(images) if isinstance(self.branch, InvertedBranch) else self.operations(images)
        assert not [*self.norms, *self.convolutions]
        return outputs

    def norm(self, images):
        layer = next(self.norms)
        mean, variance = layer.moving_mean[0], layer.moving_variance[0]
        if self.training:
            mean = tf.reduce_mean(images, axis=(0, 1, 2))
            variance = tf.reduce_mean(tf.square(images - mean), axis=(0, 1, 2))
            count = np.prod(images.shape[:3])
            self.statistics.append((mean, variance * count / (count - 1)))
        return layer.gamma[0] * (images - mean) / tf.sqrt(variance + 1e-5) + layer.beta[0]

    def convolution(self, images, strides=1, dilation=1, groups=1):
        layer = next(self.convolutions)
        kernel = tf.convert_to_tensor(layer.kernel)[0]
        if layer.log_norm is not None:
            kernel = reference.normalized_kernel(kernel, layer.log_norm[0])
        outputs = reference.convolve(images, kernel, strides, dilation, groups)
        return outputs if layer.bias is None else outputs + layer.bias[0]

    def operations(self, images):
        for number, operation in enumerate(self.branch.operations):
            if operation != "elu":
                images = self.norm(images)
            images = tf.nn.elu(images) if "elu" in operation else images * tf.sigmoid(images)
            if number == 0 and self.change == "up":
                images = doubled(images)
            strides = 2 if number == 0 and self.change == "down" else 1
            images = self.convolution(images, strides, dilation=2 if operation == "bnswish5" else 1)
        return images

    def inverted(self, images):
        hidden = self.branch.expansion * images.shape[-1]
        images = doubled(images) if self.change == "up" else images
        images = self.norm(self.convolution(self.norm(images)))
        assert images.shape[-1] == hidden
        strides = 2 if self.change == "down" else 1
        images = self.convolution(images * tf.sigmoid(images), strides, groups=self.branch.groups or hidden)
        images = self.norm(images)
        return self.norm(self.convolution(images * tf.sigmoid(images)))


def doubled(images):
    return tf.repeat(tf.repeat(images, 2, axis=1), 2, axis=2)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("branch", BRANCHES, ids=str)
def test_a_branch_its_gradients_and_statistics_are_what_the_specification_says(branch, change, normal, shaken):
    channels_in, channels_out, _ = CHANGES[change]
    layer = shaken(layers.ResidualCells(1, branch, channels_in, channels_out, squeeze_excite=False)).branch
    images = tf.constant(normal(3, 4, 2, channels_in))
    expected = Expected(branch, change, layer, training=False)(images)
    upstream = tf.constant(normal(*expected.shape))
    np.testing.assert_allclose(layer.single(images, layers.ForwardPass()), expected, rtol=1e-3, atol=1e-3)

    def outputs_and_gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = function(images)
        return outputs, *tape.gradient(outputs, [images, *layer.trainable_weights], output_gradients=upstream)

    statistics = [variable for norm in leaves(layer)[0] for variable in norm.statistics]
    before = [variable.numpy() for variable in statistics]
    forward, written_out = layers.ForwardPass(training=True), Expected(branch, change, layer, training=True)
    found, expected = outputs_and_gradients(lambda x: layer.single(x, forward)), outputs_and_gradients(written_out)
    for value, target in zip(found, expected, strict=True):
        # A bias right before a norm has a gradient of zero in theory: hence the small absolute tolerance.
        np.testing.assert_allclose(value, target, rtol=1e-3, atol=1e-3 * max(np.max(np.abs(target)), 1e-1))
    for running, old in zip(statistics, before, strict=True):
        np.testing.assert_array_equal(running, old)
    forward.commit()
    for running, old, new in zip(statistics, before, sum(written_out.statistics, ()), strict=True):
        np.testing.assert_allclose(running, 0.95 * old + 0.05 * new[None], rtol=1e-3, atol=1e-5)
