import numpy as np
import tensorflow as tf

from nvae_tf import layers
from nvae_tf.flows import FlowPairs
from nvae_tf.latent_plan import InvertedBranch
from nvae_tf.layers import ForwardPass, ResidualCells
from tests.layers.layer_tests import CHANNELS, LayerTests
from tests.tiny_model import assert_same


class TestFlowPairs(LayerTests):
    KINDS = {"pairs": lambda count, **dtype: FlowPairs(count, CHANNELS, **dtype)}


def test_layers_may_be_used_in_any_order(normal, shaken):
    cells, images = shaken(ResidualCells(3, InvertedBranch(3, 2), 4, 4, True)), tf.constant(normal(2, 4, 4, 4))
    found = []
    for order in ((0, 1, 2), (2, 0, 1)):
        forward = ForwardPass(training=True)
        functions = cells.layers(forward)
        outputs = {index: functions[index](images) for index in order}
        found.append([*(outputs[index] for index in range(3)), *(value for _, value in forward.updates)])
    assert_same(*found)


def test_the_kernels_of_all_convolutions_are_left_with_the_pass():
    cells, forward = ResidualCells(3, InvertedBranch(3, 2), 4, 4, squeeze_excite=True), ForwardPass()
    cells.layers(forward)
    convolutions = {layer for layer in cells._flatten_layers() if isinstance(layer, layers.StackedConvolution)}
    assert set(forward.kernels) == convolutions
    for convolution, kernels in forward.kernels.items():
        np.testing.assert_array_equal(kernels, convolution.effective_kernels())


def test_where_batch_norms_start():
    layer = layers.StackedBatchNormalization(2, 6)
    assert [weight.name for weight in layer.weights] == ["gamma", "beta", "moving_mean", "moving_variance"]
    assert [weight.name for weight in layer.trainable_weights] == ["gamma", "beta"]
    for weight, start in zip(layer.weights, (1.0, 0.0, 0.0, 1.0), strict=True):
        np.testing.assert_array_equal(weight, np.full((2, 6), start))
