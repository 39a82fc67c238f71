"""Power iteration in parts against that of whole stacks, and both against singular values."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.objective import power_iteration as module
from nvae_tf.objective.power_iteration import power_iteration

SHAPES = [(7, 12, 5), (3, 4, 9), (1, 6, 6)]


@pytest.fixture
def stacks():
    return [tf.random.stateless_normal(shape, seed=[1, index]) for index, shape in enumerate(SHAPES)]


@pytest.fixture
def starts():
    return [tf.random.stateless_normal([count, 1, out], seed=[2, out]) for count, _, out in SHAPES]


@pytest.mark.parametrize("few", [60, 130, 1], ids=["one at a time", "two at a time", "less than one"])
def test_a_stack_in_parts_gives_the_same_vectors(stacks, starts, monkeypatch, few):
    expected = power_iteration(stacks, starts, 3)
    # The first stack has 420 numbers, the others fewer than 120.
    monkeypatch.setattr(module, "_MANY", 200)
    monkeypatch.setattr(module, "_FEW", few)
    in_parts = []

    def recorded(matrices, *others, iterate=module._iterate_in_parts):
        in_parts.append(tuple(matrices.shape))
        return iterate(matrices, *others)

    monkeypatch.setattr(module, "_iterate_in_parts", recorded)
    found = tf.function(lambda: power_iteration(stacks, starts, tf.constant(3)))()
    assert in_parts == [SHAPES[0]]
    for vectors, targets in zip(found, expected, strict=True):
        for value, target in zip(vectors, targets, strict=True):
            np.testing.assert_allclose(value, target, rtol=1e-5, atol=1e-6)


def test_many_iterations_find_the_largest_singular_value(stacks, starts):
    for matrices, (v, u) in zip(stacks, power_iteration(stacks, starts, 500), strict=True):
        found = tf.matmul(tf.matmul(v, matrices), u, transpose_b=True)[:, 0, 0]
        np.testing.assert_allclose(found, np.linalg.svd(matrices, compute_uv=False)[:, 0], rtol=1e-4)


def test_large_stacks_alone(stacks, starts, monkeypatch):
    expected = power_iteration(stacks[:1], starts[:1], 2)
    monkeypatch.setattr(module, "_MANY", 0)
    ((v, u),) = power_iteration(stacks[:1], starts[:1], 2)
    np.testing.assert_allclose(v, expected[0][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(u, expected[0][1], rtol=1e-5, atol=1e-6)
