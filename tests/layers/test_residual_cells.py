"""Residual cells of every cell set: their formula from independent parts, their shapes, and their gradients."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.latent_plan import CELL_SETS, ConvolutionBranch, InvertedBranch
from nvae_tf.layers import ForwardPass, ResidualCells, StackedBatchNormalization
from nvae_tf.layers.branches import InvertedResidualBranch, OperationsBranch

BRANCHES = sorted({branch for cells in CELL_SETS.values() for branch in vars(cells).values()}, key=str)
# Channels in and out, and the factor of the resolution.
CHANGES = {"normal": (8, 8, 1.0), "down": (8, 16, 0.5), "up": (8, 4, 2.0)}


def name_of(branch):
    if isinstance(branch, ConvolutionBranch):
        return "-".join(branch.operations)
    return f"k{branch.kernel_size}-E{branch.expansion}" + (f"-g{branch.groups}" if branch.groups else "")


def swish(values):
    return values / (1.0 + np.exp(-values))


def elu(values):
    return np.where(values > 0.0, values, np.expm1(np.minimum(values, 0.0)))


def doubled(images):
    return images.repeat(2, axis=1).repeat(2, axis=2)


class Expected:
    """A branch in inference mode, written out from the text of the specification."""

    def __init__(self, reference):
        self.reference = reference

    def norm(self, layer, images):
        gamma, beta, mean, variance = (
            variable.numpy()[0]
            for variable in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance)
        )
        return (images - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def convolution(self, layer, images, **settings):
        kernel = layer.kernel.numpy()[0]
        if layer.log_norm is not None:
            kernel = self.reference.normalised_kernel(kernel, layer.log_norm.numpy()[0])
        outputs = self.reference.convolve(images, kernel, **settings)
        return outputs if layer.bias is None else outputs + layer.bias.numpy()[0]

    def operations(self, layer, operations, images, change):
        for number, (operation, part) in enumerate(zip(operations, layer.parts, strict=True)):
            if operation == "elu":
                images = elu(images)
            else:
                activation = elu if operation == "bnelu" else swish
                images = activation(self.norm(part.parts[0], images))
            if number == 0 and change == "up":
                images = doubled(images)
            images = self.convolution(
                part.parts[-1],
                images,
                strides=2 if number == 0 and change == "down" else 1,
                dilation=2 if operation == "bnswish5" else 1,
            )
        return images

    def inverted(self, layer, branch, images, change):
        hidden = branch.expansion * images.shape[-1]
        norm, widen, widened, filters, filtered, narrow, last = layer.parts
        assert widen.channels_out == hidden
        images = doubled(images) if change == "up" else images
        images = swish(self.norm(widened, self.convolution(widen, self.norm(norm, images))))
        images = self.convolution(
            filters, images, strides=2 if change == "down" else 1, groups=branch.groups or hidden
        )
        images = swish(self.norm(filtered, images))
        return self.norm(last, self.convolution(narrow, images))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("branch", BRANCHES, ids=name_of)
def test_a_branch_is_what_the_specification_says(branch, change, reference, normal, shaken):
    channels_in, channels_out, _ = CHANGES[change]
    cell = shaken(ResidualCells(1, branch, channels_in, channels_out, squeeze_excite=False))
    images = normal(1, 4, 2, channels_in)
    if isinstance(branch, InvertedBranch):
        assert isinstance(cell.branch, InvertedResidualBranch)
        expected = Expected(reference).inverted(cell.branch, branch, images, change)
    else:
        assert isinstance(cell.branch, OperationsBranch)
        expected = Expected(reference).operations(cell.branch, branch.operations, images, change)
    outputs = cell.branch.single(images, ForwardPass())
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-3 * np.max(np.abs(expected)))


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
    assert outputs.shape == (2, 4 * factor, 6 * factor, channels_out)
    np.testing.assert_allclose(outputs, skipped + 0.1 * residual, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell_set", CELL_SETS)
def test_cells_of_every_set_in_training(cell_set, normal):
    for branch in {*vars(CELL_SETS[cell_set]).values()}:
        for channels_in, channels_out, factor in CHANGES.values():
            cells = ResidualCells(2, branch, channels_in, channels_out, squeeze_excite=True)
            images = tf.constant(normal(2, 4, 4, channels_in))
            forward = ForwardPass(training=True)
            with tf.GradientTape() as tape:
                with cells.unstacked(forward) as (first, second):
                    outputs = first(images), second(images)
                total = tf.add_n([tf.reduce_sum(output**2) for output in outputs])
            assert outputs[0].shape == (2, 4 * factor, 4 * factor, channels_out)
            gradients = tape.gradient(total, cells.trainable_weights)
            assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
            forward.commit()
            assert all(np.all(np.isfinite(weight)) for weight in cells.weights)


def test_training_records_every_norm_once(normal):
    cells = ResidualCells(2, InvertedBranch(5, 3), 4, 4, squeeze_excite=True)
    norms = [layer for layer in cells._flatten_layers() if isinstance(layer, StackedBatchNormalization)]
    forward = ForwardPass(training=True)
    with cells.unstacked(forward) as (first, second):
        second(first(normal(2, 4, 4, 4)))
    updated = [id(variable) for variable, _ in forward.updates]
    expected = [id(variable) for norm in norms for variable in (norm.moving_mean, norm.moving_variance)]
    assert len(norms) == 4
    assert sorted(updated) == sorted(expected)
