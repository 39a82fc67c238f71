import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.latent_plan import CELL_SETS
from nvae_tf.layers import ForwardPass, Packing, ResidualCells, StackedConvolution, StackShare, run_steps
from tests.tiny_model import assert_near

BRANCHES = sorted({branch for cells in CELL_SETS.values() for branch in cells}, key=str)
STEPS, CHANNELS = 3, 8


def results(cells, mixers, images, inputs, scanned, training):
    """Of steps with two cells each, and a convolution that the first step has alone: all that a pass makes."""

    def step(layers, state, given):
        (mixer,) = layers[2]
        for cell in layers[0]:
            state = cell(state)
        return state + mixer(given), state * given

    @tf.function(autograph=False)
    def traced(images):
        forward = ForwardPass(training, scanned=scanned)
        with tf.GradientTape() as tape:
            tape.watch([images, inputs])
            parts = [StackShare(cells, 2), StackShare(None, 0), StackShare(mixers)]
            state, outputs, stacked = run_steps(parts, step, images, tf.unstack(inputs), forward, lambda y: [y])
            outputs = [*outputs, *(output for each in stacked for output in tf.unstack(each))]
            total = tf.reduce_sum(state**2) + sum(index * tf.reduce_sum(each) for index, each in enumerate(outputs))
        weights = [*cells.trainable_weights, *mixers.trainable_weights]
        gradients = tape.gradient(total, [images, inputs, *weights])
        return [state, *outputs], gradients, {variable.path: value for variable, value in forward.updates()}

    concrete = traced.get_concrete_function(tf.TensorSpec((None, *images.shape[1:])))
    assert any(node.op in ("While", "StatelessWhile") for node in concrete.graph.as_graph_def().node) == scanned
    return tf.nest.flatten(concrete(images))


@pytest.mark.slow
@pytest.mark.parametrize(("branch", "training"), [*((branch, True) for branch in BRANCHES), (BRANCHES[0], False)])
def test_a_loop_over_steps_is_the_same_as_one_after_another(branch, training, normal, shaken):
    cells = shaken(ResidualCells(2 * STEPS, branch, CHANNELS, CHANNELS, squeeze_excite=True))
    mixers = shaken(StackedConvolution(STEPS + 1, CHANNELS, CHANNELS, 1))
    images, inputs = tf.constant(normal(2, 4, 4, CHANNELS)), tf.constant(normal(STEPS + 1, 2, 4, 4, CHANNELS))
    expected, found = (results(cells, mixers, images, inputs, scanned, training) for scanned in (False, True))
    assert_near(found, expected, rtol=1e-5)


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
