"""Power iteration against singular values."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.objective.power_iteration import power_iteration

SHAPES = [(7, 12, 5), (3, 4, 9), (1, 6, 6)]


@pytest.fixture
def stacks():
    return [tf.random.stateless_normal(shape, seed=[1, index]) for index, shape in enumerate(SHAPES)]


@pytest.fixture
def starts():
    return [tf.random.stateless_normal([count, 1, out], seed=[2, out]) for count, _, out in SHAPES]


def test_many_iterations_find_the_largest_singular_value(stacks, starts):
    for matrices, (v, u) in zip(stacks, power_iteration(stacks, starts, 500), strict=True):
        found = tf.matmul(tf.matmul(v, matrices), u, transpose_b=True)[:, 0, 0]
        np.testing.assert_allclose(found, np.linalg.svd(matrices, compute_uv=False)[:, 0], rtol=1e-4)
