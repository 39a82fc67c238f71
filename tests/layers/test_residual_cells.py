"""Residual cells of every cell set against plain operations: values, gradients, shapes."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.latent_plan import CELL_SETS, ConvolutionBranch, InvertedBranch
from nvae_tf.layers import ForwardPass, ResidualCells, StackedBatchNormalization

BRANCHES = sorted({branch for cells in CELL_SETS.values() for branch in vars(cells).values()}, key=str)
# Channels in and out, and the factor of the resolution.
CHANGES = {"normal": (8, 8, 1.0), "down": (8, 16, 0.5), "up": (8, 4, 2.0)}


def name_of(branch):
    if isinstance(branch, ConvolutionBranch):
        return "-".join(branch.operations)
    return f"k{branch.kernel_size}-E{branch.expansion}" + (f"-g{branch.groups}" if branch.groups else "")


def leaves(layer):
    """The norms and the convolutions of a stack, each in the order in which they act."""
    if not layer.parts:
        norm = isinstance(layer, StackedBatchNormalization)
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
        outputs = tf.nn.conv2d(
            self.padded(images, kernel.shape[0] // 2 * dilation),
            widened(kernel, dilation, groups),
            strides,
            "VALID",
        )
        return outputs if layer.bias is None else outputs + layer.bias[0]

    @staticmethod
    def padded(images, margin):
        return tf.pad(images, ((0, 0), (margin, margin), (margin, margin), (0, 0)))

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
@pytest.mark.parametrize("branch", BRANCHES, ids=name_of)
def test_a_branch_and_its_gradients_are_what_the_specification_says(branch, change, normal, shaken):
    channels_in, channels_out, _ = CHANGES[change]
    layer = shaken(ResidualCells(1, branch, channels_in, channels_out, squeeze_excite=False)).branch
    images = tf.constant(normal(3, 4, 2, channels_in))
    expected = Expected(branch, change, layer, training=False)(images)
    upstream = tf.constant(normal(*expected.shape))
    np.testing.assert_allclose(layer.single(images, ForwardPass()), expected, rtol=1e-3, atol=1e-3)

    def outputs_and_gradients(function):
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = function(images)
        return outputs, *tape.gradient(outputs, [images, *layer.trainable_weights], output_gradients=upstream)

    found = outputs_and_gradients(lambda x: layer.single(x, ForwardPass(training=True)))
    expected = outputs_and_gradients(Expected(branch, change, layer, training=True))
    for value, target in zip(found, expected, strict=True):
        # A bias right before a norm has a gradient of zero in theory: hence the small absolute tolerance.
        np.testing.assert_allclose(value, target, rtol=1e-3, atol=1e-3 * max(np.max(np.abs(target)), 1e-1))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("branch", BRANCHES, ids=name_of)
def test_running_statistics_are_of_what_the_specification_normalizes(branch, change, normal, shaken):
    channels_in, channels_out, _ = CHANGES[change]
    layer = shaken(ResidualCells(1, branch, channels_in, channels_out, squeeze_excite=False)).branch
    images = tf.constant(normal(3, 4, 2, channels_in))
    expected = Expected(branch, change, layer, training=True)
    expected(images)
    norms, _ = leaves(layer)
    before = [[variable.numpy() for variable in norm.statistics] for norm in norms]
    forward = ForwardPass(training=True)
    layer.single(images, forward)
    forward.commit()
    for norm, start, batch in zip(norms, before, expected.statistics, strict=True):
        for running, old, new in zip(norm.statistics, start, batch, strict=True):
            np.testing.assert_allclose(running, 0.95 * old + 0.05 * new[None], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("squeeze_excite", [False, True], ids=["no gate", "gate"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_cell_is_skip_plus_a_tenth_of_the_gated_branch(change, squeeze_excite, normal, shaken):
    channels_in, channels_out, factor = CHANGES[change]
    branch = ConvolutionBranch(("bnswish", "bnswish"))
    cell = shaken(ResidualCells(1, branch, channels_in, channels_out, squeeze_excite))
    images = normal(2, 4, 6, channels_in)
    residual = cell.branch.single(images, ForwardPass())
    if squeeze_excite:
        residual = residual * cell.gate.single(residual, ForwardPass())
    else:
        assert cell.gate is None
    skipped = images if change == "normal" else cell.skip.single(images, ForwardPass())
    outputs = cell.single(images, ForwardPass())
    assert tuple(outputs.shape) == (2, 4 * factor, 6 * factor, channels_out)
    np.testing.assert_allclose(outputs, skipped + 0.1 * residual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("branch", BRANCHES, ids=name_of)
def test_stacks_of_every_kind_of_cell_in_training(branch, normal):
    for channels_in, channels_out, factor in CHANGES.values():
        cells = ResidualCells(2, branch, channels_in, channels_out, squeeze_excite=True)
        images = tf.constant(normal(2, 4, 4, channels_in))
        forward = ForwardPass(training=True)
        with tf.GradientTape() as tape:
            with cells.unstacked(forward) as (first, second):
                outputs = first(images), second(images)
            total = tf.add_n([tf.reduce_sum(output**2) for output in outputs])
        assert tuple(outputs[0].shape) == (2, 4 * factor, 4 * factor, channels_out)
        gradients = tape.gradient(total, cells.trainable_weights)
        forward.commit()
        assert all(np.all(np.isfinite(value)) for value in [*gradients, *cells.weights])
        # Both layers of the stack have their part in the gradient.
        assert all(np.any(gradient[0]) and np.any(gradient[1]) for gradient in gradients)


def test_training_records_every_norm_once(normal):
    cells = ResidualCells(2, InvertedBranch(5, 3), 4, 4, squeeze_excite=True)
    norms, _ = leaves(cells.branch)
    forward = ForwardPass(training=True)
    with cells.unstacked(forward) as (first, second):
        second(first(normal(2, 4, 4, 4)))
    updated = [id(variable) for variable, _ in forward.updates]
    expected = [id(variable) for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]
    assert len(norms) == 4
    assert sorted(updated) == sorted(expected)
