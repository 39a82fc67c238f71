import dataclasses
import types

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf

from nvae_tf.generation.sampling import restore_images
from nvae_tf.models import restoration
from nvae_tf.models.restoration import Mask, Separable, downsampling, gaussian_blur, measured
from tests import refuses
from tests.models.test_coding import near
from tests.tiny_model import images_of, shaken, tiny_model

SIZE = 6, 4
# Of the images of the tests' model.
SQUARE = 6, 6
HOLE = np.zeros(SQUARE, bool)
HOLE[1:4, 2:4] = True
OPERATORS = {
    "hole": Mask(HOLE[:, :4]),
    "channels": Mask(np.stack([HOLE[:, :4], ~HOLE[:, :4]], axis=-1)),
    "denoising": Mask(),
    "downsampling": downsampling(SIZE, 2),
    "blur": gaussian_blur(SIZE, 0.8),
    "tensors": Separable(tf.eye(6), tf.constant([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]])),
}


def dense(operator, shape):
    """A as a matrix `[measurements, pixels]`."""
    unit_images = np.eye(np.prod(shape), dtype=np.float32).reshape(-1, *shape)
    return np.reshape(operator.apply(unit_images), [len(unit_images), -1]).T.astype(np.float64)


def test_what_the_operators_do():
    image = np.arange(36, dtype=np.float32).reshape(1, *SQUARE, 1)
    near(downsampling(SQUARE, 3).apply(image)[0, ..., 0], image.reshape(2, 3, 2, 3).mean(axis=(1, 3)))
    near(gaussian_blur(SQUARE, 2.0).apply(np.ones_like(image)), np.ones_like(image))
    spread = gaussian_blur((31, 31), 1.5).rows[15]
    assert np.sum(spread * np.square(np.arange(31) - 15)) == pytest.approx(1.5**2, rel=0.01)
    near(Mask(HOLE).apply(image)[0, ..., 0], np.where(HOLE, 0, image[0, ..., 0]))
    images = np.tile(image, (300, 1, 1, 1))
    many = measured(Mask(HOLE), images, 0.2, seed=1)
    np.testing.assert_array_equal(many[:2], measured(Mask(HOLE), images[:2], 0.2, seed=1))
    assert (many - images)[:, ~HOLE].std() == pytest.approx(0.2, rel=0.02) and not many[:, HOLE].any()


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_the_linear_steps_are_those_of_gaussians(operator, sigma=0.1):
    generator = np.random.default_rng(0)
    images, variances = np.float32(generator.uniform(size=(2, *SIZE, 2))), generator.uniform(0.01, 0.2, (2, *SIZE, 2))
    matrix = dense(operator, images.shape[1:])
    values = measured(operator, images, sigma)
    problem = restoration._Measured(operator, values, tf.constant(sigma))

    def expected(mean, covariance):
        flat = mean.reshape(-1).astype(np.float64)
        inner = matrix @ covariance @ matrix.T + max(sigma, 1e-4) ** 2 * np.eye(len(matrix))
        residual = values[0].reshape(-1) - matrix @ flat
        return np.clip(flat + covariance @ matrix.T @ np.linalg.solve(inner, residual), 0.0, 1.0)

    mean = np.full_like(images, 0.4)
    found = problem.with_data(tf.constant(mean), tf.constant(variances, tf.float32))
    np.testing.assert_allclose(np.ravel(found[0]), expected(mean[0], np.diag(variances[0].reshape(-1))), atol=2e-3)
    # Pixels along rows and columns are alike, channels are not.
    rows, columns = (0.9 ** np.abs(np.subtract.outer(np.arange(size), np.arange(size))) for size in SIZE)
    covariance = 0.1 * np.kron(np.kron(rows, columns), np.eye(2))
    white = matrix.sum(axis=1)
    mean = np.full_like(images, white @ values[0].reshape(-1) / (white @ white))
    found = problem.linear_estimate((*SIZE, 2))
    np.testing.assert_allclose(np.ravel(found[0]), expected(mean[0], covariance), atol=0.01)


def test_the_descent_is_that_of_keras_adam():
    target, steps = tf.constant([[1.0, -2.0], [0.5, 3.0]]), 12
    variable = tf.Variable(tf.zeros([2, 2]))
    adam = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.1, steps), epsilon=1e-8)
    for _ in range(steps):
        adam.apply([2.0 * (variable - target) ** 3], [variable])
    (found,) = restoration._minimized(lambda z: tf.reduce_sum(0.5 * (z[0] - target) ** 4), [tf.zeros([2, 2])], steps)
    near(found, variable, atol=1e-4)


@pytest.mark.slow
def test_latents_begin_at_the_posterior_and_are_whitened(model, images):
    """So much noise that the data say nothing, and no step: the reconstruction of the linear estimate."""
    gray = np.full_like(images, 0.3)
    for seed, mean in ((None, True), (2, False)):
        found = model.restore(gray, Mask(), 1e4, steps=0, seed=seed)
        near(found, model.decode(model.encode(gray, seed=seed or 0, mean=mean)), atol=1e-4)


@pytest.mark.slow
def test_what_is_measured_without_noise_is_exact(model, images):
    values = measured(Mask(HOLE), images, 0.0)
    # What is in the hole does not matter.
    given = np.where(HOLE[..., np.newaxis], np.nan, values)
    found = model.restore(given, Mask(HOLE), 0.0, steps=2, pnp_steps=2).numpy()
    np.testing.assert_allclose(found[:, ~HOLE], images[:, ~HOLE], atol=2e-3)
    assert np.min(found) >= 0.0 and np.max(found) <= 1.0


def test_the_energy_is_that_of_a_gaussian():
    mean, variance, values = np.random.default_rng(0).uniform(0.1, 1.0, (3, 2, 4, 4, 1)).astype(np.float32)
    found = restoration._Measured(Mask(), tf.constant(values), tf.constant(0.3)).energy(mean, variance)
    expected = -scipy.stats.norm.logpdf(values, mean, np.sqrt(variance + 0.09)).sum() - 16 * np.log(2 * np.pi)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_where_nothing_is_measured_an_image_stays():
    nothing = restoration._Measured(Mask(True), tf.zeros([1, 2, 2, 1]), tf.constant(0.0))
    assert np.all(np.isfinite(nothing.linear_estimate((2, 2, 1))))
    near(nothing.with_data(tf.fill([1, 2, 2, 1], 0.3), tf.ones([1, 2, 2, 1])), np.full([1, 2, 2, 1], 0.3))


def test_the_start_is_kept_where_the_descent_went_away_from_the_measurement():
    values = tf.zeros([3, 2, 2, 1])
    first, last = tf.constant([0.3, 0.1, 0.1]), tf.constant([0.2, 0.4, 0.4])
    images = [tf.reshape(of_images, [3, 1, 1, 1]) * tf.ones([2, 2, 1]) for of_images in (first, last)]
    for sigma, expected in ((0.0, [0.2, 0.1, 0.1]), (0.5, [0.2, 0.4, 0.4])):
        problem = restoration._Measured(Mask(), values, tf.constant(sigma))
        mean, variance = problem.closer(*((image, 10.0 * image) for image in images))
        near(mean[:, 0, 0, 0], expected)
        near(variance, 10.0 * mean)


@pytest.mark.slow
def test_an_image_depends_on_its_measurement_its_place_and_the_seed(model, images, monkeypatch):
    operator = Mask(HOLE)
    values = measured(operator, images, 0.1)
    how = dict(steps=2, pnp_steps=1, seed=3)
    whole = model.restore(values, operator, 0.1, **how)
    # The graph is kept for the operator, whose arrays can't change.
    with monkeypatch.context() as patch:
        patch.setattr(model.top_down, "run", None)
        near(model.restore(values, operator, 0.1, batch_size=2, **how), whole, atol=1e-4)
    found, deviation = restore_images(model, values[:1], operator, 0.1, steps=2, starts=2)
    near(found, model.restore(values[:1], operator, 0.1, steps=2), atol=1e-4)
    near(restore_images(model, values[:2], operator, 0.1, steps=2, starts=2)[1][:1], deviation, atol=1e-4)
    assert deviation.shape == found.shape and deviation[:, HOLE].mean() > deviation[:, ~HOLE].mean() > 0.0


@pytest.mark.slow
def test_colors_and_classes():
    model = shaken(tiny_model(image_channels=3, num_bits=8, likelihood="logistic_mixture", num_classes=3))
    operator = gaussian_blur((4, 4), 1.0)
    values, how = measured(operator, images_of(model.config), 0.02), dict(steps=3, pnp_steps=2)
    found, other = (model.restore(values, operator, 0.02, **how, labels=[0, label, 2, -1]) for label in (1, 2))
    assert [bool(np.abs(one).max() > 1e-4) for one in (found - other).numpy()] == [False, True, False, False]


def test_mistakes_are_one_line(model, images):
    small = downsampling(SQUARE, 2)
    values = measured(small, images, 0.0)

    def operator(**other):
        methods = {name: getattr(small, name) for name in ("apply", "adjoint", "squared")}
        return types.SimpleNamespace(**methods | other)

    own = operator(adjoint=lambda y: y)
    for arguments, message in (
        ((images, small, 0.1), r"has shape \(4, 6, 6, 1\); this operator makes \[batch, 3, 3, 1\] of the model's"),
        ((values, small, -0.1), "sigma = -0.1: must be the noise's"),
        ((values, small, 0.1, 1, -1), "pnp_steps = -1"),
        ((np.uint8(values), small, 0.1), "the measurement is of type uint8: give floats; divide"),
        ((values, downsampling((8, 8), 2), 0.1), "is for images of another size than the model's"),
        ((values, operator(adjoint=lambda y: 2.0 * small.adjoint(y)), 0.1), "not the adjoint of apply"),
        ((values, own, 0.1), r"operator.adjoint makes \(2, 3, 3, 1\) of measurements, not images"),
        ((values, operator(squared=small.apply), 0.1), "operator.squared is not `apply` with squared weights"),
        ((values, np.eye(3), 0.1), "lacks apply, adjoint, squared"),
        ((images, Mask(HOLE[:4]), 0.1), r"the mask has shape \(4, 6, 1\); it must be .* of images \(6, 6, 1\)"),
    ):
        refuses(message, model.restore, *arguments)
    with pytest.raises(dataclasses.FrozenInstanceError):  # graphs are kept for operators
        small.rows = small.columns
    for make, message in (
        (lambda: Mask(np.where(HOLE, np.nan, 0.0)), "the mask of missing pixels has values other than False and True"),
        (lambda: downsampling(SQUARE, 4), "scale 4: must divide"),
        (lambda: restore_images(model, values, small, 0.1, starts=1), "starts = 1: a deviation needs two or more"),
    ):
        refuses(message, make)
