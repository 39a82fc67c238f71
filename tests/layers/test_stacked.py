"""What all stacks have in common: one layer as a function of its slice, in eager mode and in a graph."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.latent_plan import ConvolutionBranch, InvertedBranch
from nvae_tf.layers import ForwardPass, ResidualCells, StackedConvolution, stack_of, unstacked


@pytest.fixture
def cells(shaken):
    return shaken(ResidualCells(3, InvertedBranch(3, 2), 4, 4, squeeze_excite=True))


def through(cells, images, forward):
    with cells.unstacked(forward) as layers:
        for layer in layers:
            images = layer(images)
    return images


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_eager_and_graph_agree(training, cells, normal):
    images = tf.constant(normal(2, 4, 4, 4))
    updated = []

    def values_and_gradients():
        forward = ForwardPass(training)
        with tf.GradientTape() as tape:
            outputs = through(cells, images, forward)
            total = tf.reduce_sum(outputs**2)
        updated[:] = [id(variable) for variable, _ in forward.updates]
        gradients = tape.gradient(total, cells.trainable_weights)
        return outputs, gradients, [value for _, value in forward.updates]

    eager = values_and_gradients()
    eager_updated = list(updated)
    compiled = tf.function(values_and_gradients)()
    assert updated == eager_updated
    assert len(updated) == (8 if training else 0)
    for mine, theirs in zip(tf.nest.flatten(compiled), tf.nest.flatten(eager), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-4)


def test_layers_may_be_used_in_any_order(cells, normal):
    images = tf.constant(normal(2, 4, 4, 4))
    results = []
    for order in ((0, 1, 2), (2, 0, 1)):
        forward = ForwardPass(training=True)
        with cells.unstacked(forward) as layers:
            outputs = {index: layers[index](images).numpy() for index in order}
        results.append(([outputs[index] for index in range(3)], [value.numpy() for _, value in forward.updates]))
    for first, second in zip(*map(tf.nest.flatten, results), strict=True):
        np.testing.assert_array_equal(first, second)


def test_commit_assigns_what_was_gathered():
    variable = tf.Variable([1.0, 2.0])
    forward = ForwardPass(updates=[(variable, tf.constant([3.0, 4.0]))])
    np.testing.assert_array_equal(variable, [1.0, 2.0])
    forward.commit()
    np.testing.assert_array_equal(variable, [3.0, 4.0])


def test_the_kernels_of_all_convolutions_are_left_with_the_pass(cells, normal):
    forward = ForwardPass()
    through(cells, normal(1, 4, 4, 4), forward)
    convolutions = {layer for layer in cells._flatten_layers() if isinstance(layer, StackedConvolution)}
    assert set(forward.kernels) == convolutions
    for convolution, kernels in forward.kernels.items():
        np.testing.assert_array_equal(kernels, convolution.effective_kernels())


def test_a_stack_of_none_is_no_stack():
    branch = ConvolutionBranch(("elu", "elu"))
    assert stack_of(ResidualCells, 0, branch, 4, 4, False) is None
    assert stack_of(ResidualCells, 2, branch, 4, 4, False).count == 2
    with unstacked(None, ForwardPass()) as layers:
        assert layers == []
