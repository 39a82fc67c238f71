import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.flows import FlowCells
from nvae_tf.layers import ForwardPass, StackedConvolution, cpu_kernels
from nvae_tf.objective import SpectralRegularizer
from tests.tiny_model import assert_same, values


@pytest.fixture(autouse=True, params=[False, True], ids=["CPU", "GPU"])
def has_gpus(request, monkeypatch):
    """The forms of both."""
    monkeypatch.setattr(cpu_kernels, "has_gpus", lambda: request.param)


def convolutions():
    """Stacks of several shapes and kinds, among them two of the same shape."""
    plain = dict(use_bias=False, weight_normalized=False)
    return [
        StackedConvolution(3, 4, 6, 3),
        StackedConvolution(2, 4, 6, 3, **plain),
        StackedConvolution(1, 8, 2, 1),
        StackedConvolution(2, 5, 5, 5, groups=5, **plain),
        *FlowCells(1, 2, mirrored=False).parts,
    ]


def pass_of(stacks):
    forward = ForwardPass(training=True)
    for stack in stacks:
        stack.make_weights(forward)
    return forward


def test_norms_against_singular_values():
    stacks = convolutions()
    regularizer = SpectralRegularizer(stacks)
    norms = tf.function(lambda: regularizer.norms(pass_of(stacks), iterations=1000))()
    for stack, found in zip(stacks, norms, strict=True):
        # The largest singular value of each kernel as a matrix [out, in * height * width].
        kernels = stack.effective_kernels().numpy().astype(np.float64)
        matrices = kernels.transpose(0, 4, 3, 1, 2).reshape(len(kernels), kernels.shape[-1], -1)
        np.testing.assert_allclose(found, np.linalg.svd(matrices, compute_uv=False)[:, 0], rtol=2e-3)


def estimates(matrix, start, counts):
    """The norm that power iteration estimates after each of the numbers of iterations."""
    right, found = start.astype(np.float64), {}
    for iteration in range(1, max(counts) + 1):
        left = matrix @ right
        left /= max(np.linalg.norm(left), 1e-3)
        right = matrix.T @ left
        found[iteration] = np.linalg.norm(right)
        right /= max(found[iteration], 1e-3)
    return [found[count] for count in counts]


def test_forty_iterations_at_first_then_four_a_pass_from_where_they_ended():
    # One kernel whose two largest singular values are near: after some iterations the norm is not yet there.
    generator = np.random.default_rng(2)
    (left, _), (right, _) = (np.linalg.qr(generator.normal(size=(size, 4))) for size in (9 * 2, 4))
    matrix = left @ np.diag([1.0, 0.99, 0.97, 0.9]) @ right.T
    stack = StackedConvolution(1, 2, 4, 3, use_bias=False, weight_normalized=False)
    stack.kernel.assign(matrix.reshape(1, 3, 3, 2, 4).astype(np.float32))
    regularizer = SpectralRegularizer([stack])
    (start,) = regularizer.vectors[0].numpy()
    found = []
    for _ in range(4):
        forward = pass_of([stack])
        before = [weight.numpy() for weight in regularizer.weights]
        found.append(float(regularizer.norms(forward)[0][0]))
        assert_same(values(regularizer.weights), before)
        forward.commit()
    counts = [40, 44, 48, 52]
    expected = estimates(matrix, start, counts)
    # Far enough apart to distinguish the numbers of iterations.
    assert np.diff(expected).min() > 1e-5 and expected[-1] < 1.0
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_kernel_of_zeros_is_harmless():
    stack = StackedConvolution(1, 3, 4, 3, use_bias=False, weight_normalized=False)
    stack.kernel.assign(tf.zeros_like(stack.kernel))
    regularizer = SpectralRegularizer([stack])
    with tf.GradientTape() as tape:
        forward = pass_of([stack])
        norm = regularizer.norms(forward)[0]
    assert np.all(np.isfinite(tape.gradient(norm, stack.kernel.value)))
    assert float(norm[0]) == 0.0
    forward.commit()
    assert np.all(np.isfinite(regularizer.vectors[0]))
