"""Stacked layers: what holds of all of them, by `LayerTests`, and what each computes, against plain operations."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import layers
from nvae_tf.flows import FlowCells, FlowPairs
from nvae_tf.latent_plan import CELL_SETS, InvertedBranch
from nvae_tf.layers import (
    DataDependentConvolution,
    ForwardPass,
    KerasLayers,
    Packing,
    StackedConvolution,
    StackedSqueezeExcite,
)
from tests import slow_but
from tests.tiny_model import tiny_config

COUNT, CHANNELS = 2, 8
# Settings of a pass, and whether it is in a graph, which has one function for all layers made of parts.
PASSES = {
    "inference": (dict(training=False), False),
    "training": (dict(training=True), False),
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

    # By a name, what makes a stack of this number of layers with `CHANNELS` channels of input, in a dtype policy.
    KINDS, QUICK = {}, {"plain", "batch norm", "twice the size"}

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

    def test_half_precision(self, make, images, shaken):
        full = shaken(make(COUNT))
        expected = results(full, images, {})[0]
        for policy, tolerance in HALF.items():
            half = make(COUNT, dtype=policy)
            for mine, theirs in zip(half.weights, full.weights, strict=True):
                assert mine.dtype == "float32"
                mine.assign(theirs)
            outputs = results(half, [tf.cast(image, half.compute_dtype) for image in images], {})[0]
            assert outputs.dtype == half.compute_dtype
            np.testing.assert_allclose(outputs, expected, atol=tolerance * np.max(np.abs(expected)), rtol=0)


def normalized_kernel(kernel, log_norm):
    """The effective kernel of one weight-normalized convolution."""
    return tf.exp(log_norm) * kernel / (tf.sqrt(tf.reduce_sum(kernel**2, axis=(0, 1, 2))) + 1e-5)


def convolve(images, kernel, strides=1, dilation=1, groups=1):
    """Convolves `[b, h, w, in]` with `[k, k, in / groups, out]`, `k // 2 * dilation` zeros on each side."""
    margin = [kernel.shape[0] // 2 * dilation] * 2
    padded = tf.pad(images, ([0, 0], margin, margin, [0, 0]))
    return tf.nn.conv2d(padded, dense_kernel(kernel, dilation, groups), strides, "VALID")


def dense_kernel(kernel, dilation, groups):
    """The kernel of the same convolution without groups and dilation: zeros where nothing is connected."""
    size, _, channels_in, channels_out = kernel.shape
    zeros, none = [0, dilation - 1], [0, 0]
    spread = tf.pad(kernel[:, None, :, None], (none, zeros, none, zeros, none, none))
    spread = tf.reshape(spread, (size * dilation, size * dilation, channels_in, channels_out))
    length = (size - 1) * dilation + 1
    group_of_input = np.arange(channels_in * groups)[:, None] // channels_in
    connected = group_of_input == np.arange(channels_out) // (channels_out // groups)
    return tf.tile(spread[:length, :length], (1, 1, groups, 1)) * connected.astype(np.float32)


class TestConvolutions(LayerTests):
    KINDS = {
        "plain": lambda count, **dtype: StackedConvolution(count, CHANNELS, 4, 3, **dtype),
        "data-dependent": lambda count, **dtype: DataDependentConvolution(count, CHANNELS, 4, 3, **dtype),
    }


def convolution(count=1, channels_in=4, channels_out=6, **settings):
    return StackedConvolution(count, channels_in, channels_out, **settings)


def test_weights_start_uniformly_by_the_fan_in():
    for layer, fans_in in (
        (lambda: convolution(count=200, channels_out=4, kernel_size=3), (36, 36)),
        (lambda: convolution(count=200, channels_out=4, kernel_size=3, groups=4), (9, 9)),
        (lambda: StackedSqueezeExcite(500, 64), (64, 64, 4, 4)),
    ):
        for weight, fan_in in zip(layer().weights, fans_in, strict=False):
            assert np.max(np.abs(weight)) <= fan_in**-0.5
            assert np.std(weight) == pytest.approx(fan_in**-0.5 / np.sqrt(3.0), rel=0.1)


def test_a_filter_of_zeros_has_a_finite_gradient(normal):
    layer = convolution(kernel_size=3)
    layer.kernel.assign(tf.zeros_like(layer.kernel))
    with tf.GradientTape() as tape:
        total = tf.reduce_sum(layer.single_layer(ForwardPass())(normal(1, 4, 4, 4)) ** 2)
    gradients = tape.gradient(total, layer.trainable_weights)
    assert all(np.all(np.isfinite(gradient)) for gradient in gradients)


@pytest.mark.parametrize("strides", [1, 2])
def test_data_dependent_scale_and_bias(strides, normal):
    layer = DataDependentConvolution(1, 3, 5, 3, strides=strides)
    before = [weight.numpy() for weight in layer.weights]
    images = 2.0 * normal(3, 6, 6, 3) + 1.0
    forward = ForwardPass(training=True, initializing=True)
    outputs = layer.single_layer(forward)(images)
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)  # nothing before the commit
    forward.commit()
    direction = normalized_kernel(before[0][0], 0.0)
    values = np.reshape(convolve(images, direction, strides), (-1, 5))
    spread = 5.0 * np.sqrt(np.sum((values - values.mean(axis=0)) ** 2, axis=0) / (len(values) - 1))
    np.testing.assert_allclose(layer.bias.numpy()[0], -values.mean(axis=0) / (spread + 1e-5), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(layer.log_norm.numpy()[0], -np.log(spread + 1e-5), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layer.kernel, before[0])
    # The batch that set them comes out with mean 0 and spread 1/5, already in that pass.
    again = layer.single_layer(ForwardPass(training=True))(images)
    np.testing.assert_allclose(again, outputs, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.mean(again, axis=(0, 1, 2)), np.zeros(5), atol=1e-4)
    np.testing.assert_allclose(np.std(again, axis=(0, 1, 2), ddof=1), np.full(5, 0.2), rtol=1e-3)


BRANCHES = [branch for cells in CELL_SETS.values() for branch in cells]
BRANCHES = sorted({branch for branch in BRANCHES if not isinstance(branch, type)}, key=str)  # the package's own
# Channels in and out, and the factor of the resolution.
CHANGES = {"normal": (8, 8, 1.0), "down": (8, 16, 0.5), "up": (8, 4, 2.0)}


def cells(branch, channels_out=CHANNELS):
    return lambda count, **dtype: layers.ResidualCells(count, branch, CHANNELS, channels_out, tiny_config(), **dtype)


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
            kernel = normalized_kernel(kernel, layer.log_norm[0])
        outputs = convolve(images, kernel, strides, dilation, groups)
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


def test_the_residual_scale_is_the_factor_of_the_branch(normal, shaken):
    images, residuals = tf.constant(normal(3, 4, 2, CHANNELS)), []
    for scale in (0.1, 0.3):
        keras.utils.set_random_seed(0)
        layer = layers.ResidualCells(1, BRANCHES[0], CHANNELS, CHANNELS, tiny_config(residual_scale=scale))
        residuals.append(shaken(layer).single_layer(layers.ForwardPass())(images) - images)
    np.testing.assert_allclose(residuals[1], 3.0 * residuals[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("change", slow_but("down", of=CHANGES))
@pytest.mark.parametrize("branch", BRANCHES, ids=str)
def test_a_branch_its_gradients_and_statistics_are_what_the_specification_says(branch, change, normal, shaken):
    channels_in, channels_out, _ = CHANGES[change]
    layer = shaken(layers.ResidualCells(1, branch, channels_in, channels_out, tiny_config(squeeze_excite=False))).branch
    images = tf.constant(normal(3, 4, 2, channels_in))
    expected = Expected(branch, change, layer, training=False)(images)
    upstream = tf.constant(normal(*expected.shape))
    np.testing.assert_allclose(layer.single_layer(layers.ForwardPass())(images), expected, rtol=1e-3, atol=1e-3)

    def outputs_and_gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = function(images)
        return outputs, *tape.gradient(outputs, [images, *layer.trainable_weights], output_gradients=upstream)

    statistics = [variable for norm in leaves(layer)[0] for variable in norm.statistics]
    before = [variable.numpy() for variable in statistics]
    forward, written_out = layers.ForwardPass(training=True), Expected(branch, change, layer, training=True)
    found = outputs_and_gradients(lambda x: layer.single_layer(forward)(x))  # weights are read under the tape
    expected = outputs_and_gradients(written_out)
    for value, target in zip(found, expected, strict=True):
        # A bias right before a norm has a gradient of zero in theory: hence the small absolute tolerance.
        np.testing.assert_allclose(value, target, rtol=1e-3, atol=1e-3 * max(np.max(np.abs(target)), 1e-1))
    for running, old in zip(statistics, before, strict=True):
        np.testing.assert_array_equal(running, old)
    forward.commit()
    for running, old, new in zip(statistics, before, sum(written_out.statistics, ()), strict=True):
        np.testing.assert_allclose(running, 0.95 * old + 0.05 * new[None], rtol=1e-3, atol=1e-5)


SHAPES = [(), (0, 3), (2, 3), (7,), (3, 2), (4, 3), (5000,), (2, 3), (3,), (2, 2, 2)]


@pytest.mark.parametrize("front", [(), (2,)], ids=["alone", "an axis in front"])
def test_small_tensors_are_joined_and_divided_again(front, normal):
    kinds = (tf.float32, tf.bfloat16, tf.int32)
    values = [tf.cast(100.0 * normal(*front, *shape), kind) for kind in kinds for shape in SHAPES]
    packing = Packing([tf.TensorSpec(shape, kind) for kind in kinds for shape in SHAPES])
    packed = packing.pack(values)
    # The large one, and one for the others: of them those that are 3 wide first.
    lengths = [3 * 8 + 1 + 7 + 6 + 3 + 8, 5000]
    assert sorted(spec.shape[0] for spec in packing.specs) == sorted(lengths * 3)
    assert [(*front, *spec.shape) for spec in packing.specs] == [tuple(tensor.shape) for tensor in packed]
    for found, value in zip(packing.unpack(packed), values, strict=True):
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(*(tf.cast(tensor, tf.float32) for tensor in (found, value)))


def test_what_has_no_known_size_is_not_joined(normal):
    specs = [tf.TensorSpec(None), tf.TensorSpec([None, 3]), tf.TensorSpec([2, 3]), keras.Variable(normal(4, 3))]

    @tf.function(input_signature=specs[:3], autograph=False)
    def there_and_back(*tensors):
        packing = Packing(specs)
        packed = packing.pack([*tensors, specs[3].value])
        assert len(packed) == 3
        return packing.unpack(packed)

    values = [normal(2, 5), normal(5, 3), normal(2, 3)]
    for found, value in zip(there_and_back(*values), [*values, specs[3]], strict=True):
        np.testing.assert_array_equal(found, value)


def test_the_last_convolution_of_a_cell_starts_small():
    for part, factor in zip(FlowCells(2, 3, mirrored=False).parts, (1.0, 1.0, 0.1), strict=True):
        lengths = np.sqrt(np.sum((part.kernel.numpy() * part.mask) ** 2, axis=(1, 2, 3)))
        np.testing.assert_allclose(np.exp(part.log_norm), factor * (lengths + 1e-2), rtol=1e-4)


class Branch(keras.layers.Layer):
    def __init__(self, channels, part):
        super().__init__()
        self.part = part

    def call(self, inputs):
        return self.part(inputs)


WRONG_BRANCHES = {
    "it must be a keras.layers.Layer": lambda channels: channels,
    "it must keep the shape": lambda channels: Branch(channels, keras.layers.Conv2D(channels + 1, 1)),
    "it must have weights, and vectors alone": lambda channels: Branch(channels, keras.layers.Activation("relu")),
    "alone as state .*no dropout": lambda channels: Branch(
        channels, keras.Sequential([keras.layers.Dense(channels), keras.layers.Dropout(0.5)])
    ),
}


@pytest.mark.parametrize("message", WRONG_BRANCHES)
def test_a_layer_that_can_be_no_branch_is_refused(message):
    with pytest.raises(ValueError, match=message):
        KerasLayers(1, WRONG_BRANCHES[message], 4)


def test_layers_of_a_registered_class_have_the_weights_that_keras_would_give_them():
    keras.utils.set_random_seed(1)
    expected = [Branch(4, keras.layers.Dense(4)) for _ in range(3)]
    images = tf.random.stateless_normal((2, 6, 6, 4), (0, 1))
    results = [layer(images) for layer in expected]
    keras.utils.set_random_seed(1)
    stack = KerasLayers(3, lambda channels: Branch(channels, keras.layers.Dense(channels)), 4)
    for layer, result in zip(stack.layers(ForwardPass()), results, strict=True):
        np.testing.assert_allclose(layer(images), result, atol=1e-6)
