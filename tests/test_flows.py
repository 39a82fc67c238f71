import itertools

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.flows import FlowCells, FlowPairs
from nvae_tf.layers import ForwardPass

HEIGHT, WIDTH, CHANNELS = 3, 4, 2


def moved(layer):
    """The layer with weights that are large enough for every dependence to be seen."""
    generator = np.random.default_rng(5)
    for variable in layer.weights:
        variable.assign(variable + 0.3 * generator.normal(size=variable.shape))
    return layer


def jacobian(layer, latent):
    """d outputs / d inputs as a matrix over (row, column, channel), for one image."""
    size = latent.size
    with tf.GradientTape(persistent=True) as tape:
        inputs = tf.constant(latent[None])
        tape.watch(inputs)
        outputs = layer.single(inputs, ForwardPass())
    matrix = tape.jacobian(outputs, inputs, experimental_use_pfor=False)
    return tf.reshape(matrix, (size, size)).numpy()


def places(mirrored):
    """The place of every (row, column, channel) in the order in which a cell may look at them."""
    grid = list(itertools.product(range(HEIGHT), range(WIDTH), range(CHANNELS)))
    order = sorted(grid, key=lambda place: (-place[0], -place[1], place[2]) if mirrored else place)
    rank = {place: index for index, place in enumerate(order)}
    return np.array([rank[place] for place in grid])


@pytest.fixture
def latent():
    return np.random.default_rng(1).normal(size=(HEIGHT, WIDTH, CHANNELS)).astype(np.float32)


@pytest.mark.parametrize("mirrored", [False, True], ids=["plain", "mirrored"])
def test_a_cell_depends_on_earlier_places_only(mirrored, latent):
    matrix = jacobian(moved(FlowCells(1, CHANNELS, mirrored)), latent)
    rank = places(mirrored)
    later = rank[None, :] > rank[:, None]
    assert not np.any(matrix[later])
    np.testing.assert_array_equal(np.diag(matrix), np.ones(latent.size))
    # And on all of them that its 3x3 and 5x5 filters can reach: within three pixels.
    earlier = rank[None, :] < rank[:, None]
    assert np.count_nonzero(matrix[earlier]) > 0.9 * np.count_nonzero(earlier)


def test_a_pair_sees_every_other_pixel_and_its_log_determinant_is_zero(latent):
    matrix = jacobian(moved(FlowPairs(1, CHANNELS)), latent)
    sign, log_determinant = np.linalg.slogdet(matrix.astype(np.float64))
    assert sign == 1.0 and abs(log_determinant) < 1e-4
    by_pixel = np.abs(matrix).reshape(HEIGHT * WIDTH, CHANNELS, HEIGHT * WIDTH, CHANNELS).sum(axis=(1, 3))
    assert np.all(by_pixel > 0.0)


def test_the_last_convolution_of_a_cell_starts_small():
    for part, factor in zip(FlowCells(2, 3, mirrored=False).parts, (1.0, 1.0, 0.1), strict=True):
        lengths = np.sqrt(np.sum((part.kernel.numpy() * part.mask) ** 2, axis=(1, 2, 3)))
        np.testing.assert_allclose(np.exp(part.log_norm), factor * (lengths + 1e-2), rtol=1e-4)
