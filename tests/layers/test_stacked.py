import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.flows import FlowPairs
from nvae_tf.latent_plan import CELL_SETS, ConvolutionBranch, InvertedBranch
from nvae_tf.layers import (
    DataDependentConvolution,
    ForwardPass,
    ResidualCells,
    StackedBatchNormalization,
    StackedConvolution,
    StackedSqueezeExcite,
    stack_of,
    unstacked,
)
from tests.tiny_model import assert_same

BRANCHES = sorted({branch for cells in CELL_SETS.values() for branch in vars(cells).values()}, key=str)
KINDS = {
    "convolution": lambda count: StackedConvolution(count, 8, 4, 3),
    "data-dependent": lambda count: DataDependentConvolution(count, 8, 4, 3),
    "batch norm": lambda count: StackedBatchNormalization(count, 8),
    "gate": lambda count: StackedSqueezeExcite(count, 8),
    "flows": lambda count: FlowPairs(count, 8),
    "cell of half the size": lambda count: ResidualCells(count, BRANCHES[0], 8, 16, squeeze_excite=True),
    "cell of twice the size": lambda count: ResidualCells(count, BRANCHES[-1], 8, 4, squeeze_excite=True),
    **{str(branch): lambda count, branch=branch: ResidualCells(count, branch, 8, 8, True) for branch in BRANCHES},
}


# Settings of a pass, and whether it is that of a graph, which has one function for all layers made of parts.
PASSES = {
    "inference": (dict(training=False), False),
    "training": (dict(training=True), False),
    "training in a graph": (dict(training=True), True),
    "first batch in a graph": (dict(training=True, initializing=True), True),
}


def results(stack, images, settings):
    """Outputs, gradients of the weights, and the updates of one pass, in which every layer has its own images."""
    forward = ForwardPass(**settings)
    with tf.GradientTape() as tape:
        with stack.unstacked(forward) as layers:
            outputs = [layer(image) for layer, image in zip(layers, images, strict=True)]
        total = tf.add_n([tf.reduce_sum(output**2) for output in outputs])
    gradients = [each for each in tape.gradient(total, stack.trainable_weights) if each is not None]
    return tf.stack(outputs), gradients, [value for _, value in forward.updates]


@pytest.mark.parametrize("kind_of_pass", PASSES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_stack_equals_separate_layers(kind, kind_of_pass, normal, shaken):
    stack, (settings, in_graph) = shaken(KINDS[kind](2)), PASSES[kind_of_pass]
    images = [tf.constant(normal(2, 4, 4, 8)) for _ in range(2)]
    found = (tf.function(results, autograph=False) if in_graph else results)(stack, images, settings)
    separate = []
    for index in range(2):
        single = KINDS[kind](1)
        for mine, theirs in zip(single.weights, stack.weights, strict=True):
            mine.assign(theirs[index : index + 1])
        separate.append(tf.nest.flatten(results(single, images[index : index + 1], settings)))
    for value, *parts in zip(tf.nest.flatten(found), *separate, strict=True):
        # A bias right before a norm has a gradient of zero in theory: hence the floor of the tolerance.
        tolerance = 1e-4 * max(np.max(np.abs(value)), 0.1)
        np.testing.assert_allclose(value, tf.concat(parts, axis=0), rtol=1e-3, atol=tolerance)


def test_layers_may_be_used_in_any_order(normal, shaken):
    cells, images = shaken(ResidualCells(3, InvertedBranch(3, 2), 4, 4, True)), tf.constant(normal(2, 4, 4, 4))
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        forward = ForwardPass(training=True)
        with cells.unstacked(forward) as layers:
            outputs = {index: layers[index](images) for index in order}
        found.append([*(outputs[index] for index in range(3)), *(value for _, value in forward.updates)])
    assert_same(*found)


def test_the_kernels_of_all_convolutions_are_left_with_the_pass():
    cells, forward = ResidualCells(3, InvertedBranch(3, 2), 4, 4, squeeze_excite=True), ForwardPass()
    with cells.unstacked(forward):
        pass
    convolutions = {layer for layer in cells._flatten_layers() if isinstance(layer, StackedConvolution)}
    assert set(forward.kernels) == convolutions
    for convolution, kernels in forward.kernels.items():
        np.testing.assert_array_equal(kernels, convolution.effective_kernels())


def test_where_batch_norms_start_and_a_stack_of_none_is_no_stack():
    layer = StackedBatchNormalization(2, 6)
    starts = {"gamma": 1.0, "beta": 0.0, "moving_mean": 0.0, "moving_variance": 1.0}
    assert [weight.name for weight in layer.weights] == list(starts)
    assert [weight.name for weight in layer.trainable_weights] == ["gamma", "beta"]
    for weight, start in zip(layer.weights, starts.values(), strict=True):
        np.testing.assert_array_equal(weight, np.full((2, 6), start))
    branch = ConvolutionBranch(("elu", "elu"))
    assert stack_of(ResidualCells, 0, branch, 4, 4, False) is None
    assert stack_of(ResidualCells, 2, branch, 4, 4, False).count == 2
    with unstacked(None, ForwardPass()) as layers:
        assert layers == []
