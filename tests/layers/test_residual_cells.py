import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import layers
from nvae_tf.latent_plan import CELL_SETS, ConvolutionBranch, InvertedBranch
from nvae_tf.layers.residual_cells import FactorizedReduce, SwishConvolution, aligned_bilinear_upsampling
from tests.layers.layer_tests import CHANNELS, LayerTests
from tests.layers.reference import normalized_kernel

BRANCHES = sorted({branch for cells in CELL_SETS.values() for branch in vars(cells).values()}, key=str)
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
            length = tf.sqrt(tf.reduce_sum(kernel**2, axis=(0, 1, 2)))
            kernel = tf.exp(layer.log_norm[0]) * kernel / (length + 1e-5)
        margin = [kernel.shape[0] // 2 * dilation] * 2
        padded = tf.pad(images, ([0, 0], margin, margin, [0, 0]))
        outputs = tf.nn.conv2d(padded, widened(kernel, dilation, groups), strides, "VALID")
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


def widened(kernel, dilation, groups):
    """The same convolution as a dense one without groups and dilation: zeros where nothing is connected."""
    size, _, channels_in, channels_out = kernel.shape
    rows = [row for tap in tf.unstack(kernel) for row in [tap] + [tf.zeros_like(tap)] * (dilation - 1)]
    kernel = tf.stack(rows[: (size - 1) * dilation + 1])
    columns = [c for tap in tf.unstack(kernel, axis=1) for c in [tap] + [tf.zeros_like(tap)] * (dilation - 1)]
    kernel = tf.stack(columns[: (size - 1) * dilation + 1], axis=1)
    of_group = np.arange(channels_in * groups)[:, None] // channels_in
    connected = of_group == np.arange(channels_out)[None] // (channels_out // groups)
    return tf.tile(kernel, (1, 1, groups, 1)) * tf.constant(connected, tf.float32)


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

    norms, _ = leaves(layer)
    before = [[variable.numpy() for variable in norm.statistics] for norm in norms]
    forward, reference = layers.ForwardPass(training=True), Expected(branch, change, layer, training=True)
    found, expected = outputs_and_gradients(lambda x: layer.single(x, forward)), outputs_and_gradients(reference)
    for value, target in zip(found, expected, strict=True):
        # A bias right before a norm has a gradient of zero in theory: hence the small absolute tolerance.
        np.testing.assert_allclose(value, target, rtol=1e-3, atol=1e-3 * max(np.max(np.abs(target)), 1e-1))
    for norm, start in zip(norms, before, strict=True):
        for running, old in zip(norm.statistics, start, strict=True):
            np.testing.assert_array_equal(running, old)
    forward.commit()
    for norm, start, batch in zip(norms, before, reference.statistics, strict=True):
        for running, old, new in zip(norm.statistics, start, batch, strict=True):
            np.testing.assert_allclose(running, 0.95 * old + 0.05 * new[None], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("squeeze_excite", [False, True], ids=["no gate", "gate"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_cell_is_skip_plus_a_tenth_of_the_gated_branch(change, squeeze_excite, normal, shaken):
    channels_in, channels_out, factor = CHANGES[change]
    branch = ConvolutionBranch(("bnswish", "bnswish"))
    cell = shaken(layers.ResidualCells(1, branch, channels_in, channels_out, squeeze_excite))
    images = normal(2, 4, 6, channels_in)
    residual = cell.branch.single(images, layers.ForwardPass())
    if squeeze_excite:
        residual = residual * cell.gate.single(residual, layers.ForwardPass())
    else:
        assert cell.gate is None
    skipped = images if change == "normal" else cell.skip.single(images, layers.ForwardPass())
    outputs = cell.single(images, layers.ForwardPass())
    assert tuple(outputs.shape) == (2, 4 * factor, 6 * factor, channels_out)
    np.testing.assert_allclose(outputs, skipped + 0.1 * residual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("upsampling", [False, True])
@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_float16", 2e-2), ("mixed_bfloat16", 1e-1)])
def test_swish_convolution_and_its_gradients_in_half_precision(policy, tolerance, upsampling, normal, shaken):
    half = keras.DTypePolicy(policy).compute_dtype
    images, upstream = normal(3, 5, 4, 6), normal(3, *(size * (1 + upsampling) for size in (5, 4)), 4)

    def outputs_and_gradients(dtype):
        keras.utils.set_random_seed(3)
        layer = shaken(SwishConvolution(layers.StackedConvolution(1, 6, 4, 3, dtype=dtype), upsampling, dtype=dtype))
        inputs = tf.cast(tf.cast(images, half), layer.compute_dtype)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer.single(inputs, layers.ForwardPass(training=True))
        return outputs, *tape.gradient(outputs, [inputs, *layer.trainable_weights], tf.cast(upstream, outputs.dtype))

    found = outputs_and_gradients(policy)
    assert found[0].dtype == found[1].dtype == half
    for value, target in zip(found, outputs_and_gradients("float32"), strict=True):
        np.testing.assert_allclose(tf.cast(value, tf.float32), target, atol=tolerance * np.max(np.abs(target)))


@pytest.mark.parametrize(("channels", "hidden"), [(6, 4), (80, 5)])
def test_the_gate(channels, hidden, normal, shaken):
    layer = shaken(layers.StackedSqueezeExcite(1, channels))
    images = normal(3, 4, 5, channels)
    reduce_kernel, reduce_bias, expand_kernel, expand_bias = (weight.numpy()[0] for weight in layer.weights)
    assert reduce_kernel.shape == (channels, hidden)
    middle = np.maximum(images.mean(axis=(1, 2)) @ reduce_kernel + reduce_bias, 0.0)
    expected = 1.0 / (1.0 + np.exp(-(middle @ expand_kernel + expand_bias)))
    np.testing.assert_allclose(layer.single(images, layers.ForwardPass()), expected[:, None, None], rtol=1e-5)


def test_dense_layers_start_like_convolutions():
    layer = layers.StackedSqueezeExcite(500, 64)
    for weight, fan_in in zip(layer.weights, (64, 64, 4, 4), strict=True):
        values = weight.numpy()
        assert np.max(np.abs(values)) <= fan_in**-0.5
        assert np.std(values) == pytest.approx(fan_in**-0.5 / np.sqrt(3.0), rel=0.1)


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
    outputs = layer.single(images, layers.ForwardPass()).numpy()
    assert outputs.shape == (2, 2, 3, channels_out)
    assert [part.channels_out for part in layer.parts[:3]] == 3 * [channels_out // 4]
    # Whole, then shifted in both directions, in width, in height.
    shifted = [active, active[:, 1:, 1:], active[:, :, 1:], active[:, 1:]]
    expected = []
    for part, image in zip(layer.parts, shifted, strict=True):
        kernel = normalized_kernel(part.kernel.numpy()[0], part.log_norm.numpy()[0])
        expected.append(image[:, ::2, ::2] @ kernel[0, 0] + part.bias.numpy()[0])
    np.testing.assert_allclose(outputs, np.concatenate(expected, axis=-1), rtol=1e-4, atol=1e-5)
