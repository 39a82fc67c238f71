import dataclasses
import math

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

from nvae_tf.config import ModelConfig, ObjectiveConfig
from nvae_tf.distributions.soft_clamped_normal import soft_clamped_normal
from nvae_tf.flows import FlowCells
from nvae_tf.latent_plan import latent_plan
from nvae_tf.layers import ForwardPass, StackedConvolution, cpu_kernels
from nvae_tf.models.latents import LatentSample
from nvae_tf.objective import ImportanceWeighting, SpectralRegularizer, add_samples
from nvae_tf.objective import elbo as bound
from tests.tiny_model import assert_same, values

SCHEDULE = ObjectiveConfig(total_steps=100_000)
RECONSTRUCTION = np.float32([10.0, 20.0])
KL = np.float32([[3.0, 0.0, -1.0], [5.0, 0.0, 3.0]])
PLAN = latent_plan(ModelConfig(num_latent_scales=3, num_groups_per_scale=1))
ALPHA = (1.0, 4.0, 16.0)


def test_the_analytic_kl():
    """Whatever was drawn."""
    generator = np.random.default_rng(0)
    posterior, prior = (soft_clamped_normal(np.float32(generator.normal(size=(2, 3, 2, 8)))) for _ in range(2))
    (q, q_scale), (p, p_scale) = ((each.loc.numpy(), each.scale.numpy()) for each in (posterior, prior))
    expected = np.log(p_scale / q_scale) + (q_scale**2 + (q - p) ** 2) / (2.0 * p_scale**2) - 0.5
    for z in (posterior.loc, prior.loc):
        kl = bound.kl_per_channel([LatentSample(z, z, prior, posterior)])
        np.testing.assert_allclose(kl[:, 0], expected.sum(axis=(1, 2)), rtol=1e-4)


def test_the_weights_of_the_kl_in_the_warm_up_and_after_it():
    # (13 - 10) / 30000 is just the smallest weight
    for step, beta in {0: 1e-4, 13: 1e-4, 3_010: 0.1, 30_009: 29_999 / 30_000, 30_010: 1.0, 99_999: 1.0}.items():
        assert float(bound.kl_weight(tf.constant(np.int64(step)), SCHEDULE)) == pytest.approx(beta, rel=1e-4)
    at_once = dataclasses.replace(SCHEDULE, kl_anneal_portion=0.0, kl_constant_portion=0.0)
    assert float(bound.kl_weight(tf.constant(1), at_once)) == 1.0
    # The scales' weights hold after the warm-up.
    plan = latent_plan(ModelConfig(num_latent_scales=2, num_groups_per_scale=2))
    assert bound.final_kl_weights(ObjectiveConfig(), plan) == (1.0,) * 4
    assert bound.balancing_scales(plan) == (1.0, 1.0, 4.0, 4.0)
    objective = ObjectiveConfig(kl_final_weight=0.5, kl_scale_weights=(2, 0.5))
    assert bound.final_kl_weights(objective, plan) == (1.0, 1.0, 0.25, 0.25)


def test_regularization_is_constant_or_annealed_on_a_log_scale():
    assert float(bound.regularization_weight(tf.constant(0.0), ObjectiveConfig(regularization=0.3))) == np.float32(0.3)
    config = ObjectiveConfig(regularization=0.01, anneal_regularization=True, regularization_initial=10.0)
    found = [float(bound.regularization_weight(tf.constant(beta), config)) for beta in (0.0, 0.3, 1.0)]
    expected = math.exp(0.7 * math.log(10.0) + 0.3 * math.log(0.01))
    assert found == pytest.approx([10.0, expected, 0.01], rel=1e-5)


@pytest.mark.parametrize("final", [(), (0.7, 0.35, 2.0)], ids=["plain", "final weights"])
@pytest.mark.parametrize("beta", [1e-4, 0.5, 0.9999, 1.0])
def test_the_training_loss_and_its_gradient(beta, final):
    """Balancing ends with the warm-up, whatever the final weights; no gradient goes through the weights."""
    reconstruction, kl = tf.constant(RECONSTRUCTION), tf.constant(KL)
    with tf.GradientTape() as tape:
        tape.watch([reconstruction, kl])
        elbo = bound.Elbo(reconstruction, kl)
        config = ObjectiveConfig(kl_scale_weights=final)
        loss = bound.training_loss(elbo, tf.constant(beta), tf.constant(0.1 * 7.0), config, PLAN)
    coefficients = (np.abs(KL).mean(axis=0) + 0.01) / np.array(ALPHA) if beta < 1.0 else np.ones(3)
    weights = beta * coefficients / coefficients.mean()
    balancing = bound.group_weights(kl, tf.constant(beta), ALPHA).numpy()
    np.testing.assert_allclose(balancing, weights, rtol=1e-5)
    weights = balancing * np.float32(final or 1.0)
    assert float(loss) == pytest.approx(np.mean(RECONSTRUCTION + KL @ weights) + 0.1 * 7.0)
    gradients = tape.gradient(loss, [reconstruction, kl])
    np.testing.assert_allclose(gradients[0], [0.5, 0.5])
    np.testing.assert_allclose(gradients[1], np.tile(weights / 2.0, (2, 1)), rtol=1e-6)


def test_free_nats_replace_what_is_below_and_its_gradient():
    """Means over the images are 4, 0 and 1; the second image's KL of the last group is above 2, its mean is not."""
    kl = tf.constant(KL)
    with tf.GradientTape() as tape:
        tape.watch(kl)
        elbo = bound.Elbo(tf.constant(RECONSTRUCTION), kl)
        config = ObjectiveConfig(kl_scale_weights=(1.0, 0.5, 0.25), free_nats=2.0)
        loss = bound.training_loss(elbo, tf.constant(1.0), tf.constant(0.0), config, PLAN)
    assert float(loss) == pytest.approx(15.0 + 4.0 + 0.5 * 2.0 + 0.25 * 2.0)
    np.testing.assert_allclose(tape.gradient(loss, kl), [[0.5, 0.0, 0.0]] * 2)


def weighted(log_weights, numbers, samples_at_once=1, ends=()):
    """All samples of a table `[samples, batch]`; `ends` are where some are added before the others."""
    table = tf.constant(log_weights, tf.float32)
    count, batch_size = table.shape
    padded = tf.pad(table, [(0, samples_at_once), (0, 0)], constant_values=1e6)
    weighting, first = ImportanceWeighting.begun(batch_size, len(numbers)), 0
    rows = lambda indices: tf.transpose(tf.gather(padded, indices))  # noqa: E731
    for end in (*ends, count):
        not_reached = np.isnan(weighting.bounds[0])
        assert np.array_equal(not_reached, np.array(numbers) > first)
        weighting = add_samples(rows, weighting, numbers, first, end, samples_at_once)
        first = end
    return weighting


def bound_of(log_weights):
    return -(scipy.special.logsumexp(np.float32(log_weights), axis=0) - np.log(len(log_weights)))


@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize("offset", [-20_000.0, 300.0])
@pytest.mark.parametrize("samples_at_once", [1, 7])
def test_against_log_sum_exp(count, offset, samples_at_once):
    log_weights = 5.0 * np.random.default_rng(0).normal(size=(count, 3)) + offset
    log_weights[:3, 0] = [0.0, -500.0, 500.0][:count]  # of very different size
    found = weighted(log_weights, [count], samples_at_once).bounds[:, 0]
    np.testing.assert_allclose(found, bound_of(log_weights), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("ends", [(), (5, 6)], ids=["at once", "in parts"])
@pytest.mark.parametrize("samples_at_once", [1, 4, 30])
def test_bounds_on_the_way_are_those_of_fewer_samples(samples_at_once, ends):
    log_weights = 5.0 * np.random.default_rng(1).normal(size=(23, 3))
    numbers = [1, 4, 6, 10, 23]
    found = weighted(log_weights, numbers, samples_at_once, ends)
    expected = [bound_of(log_weights[:number]) for number in numbers]
    np.testing.assert_allclose(found.bounds, np.transpose(expected), rtol=1e-5, atol=1e-5)
    weights = np.exp(log_weights)
    np.testing.assert_allclose(found.effective_samples, weights.sum(axis=0) ** 2 / (weights**2).sum(axis=0), rtol=1e-4)


@pytest.fixture(params=[False, True], ids=["CPU", "GPU"])
def has_gpus(request, monkeypatch):
    """The forms of both."""
    monkeypatch.setattr(cpu_kernels, "gpus", lambda: request.param)


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


@pytest.mark.usefixtures("has_gpus")
def test_norms_against_singular_values():
    stacks = convolutions()
    regularizer = SpectralRegularizer(stacks)
    regularizer.FIRST_ITERATIONS = 1000
    norms = tf.function(lambda: regularizer.norms(pass_of(stacks)))()
    for stack, found in zip(stacks, norms, strict=True):
        # The largest singular value of each kernel as a matrix [out, in * height * width].
        kernels = stack.effective_kernels(ForwardPass()).numpy().astype(np.float64)
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


@pytest.mark.usefixtures("has_gpus")
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


@pytest.mark.usefixtures("has_gpus")
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
