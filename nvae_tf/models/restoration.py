"""Restoration: images from noisy linear measurements of them, with the trained model as the prior.

The measurement is `A x + sigma * noise`. The result is the maximum a posteriori over whitened latents
`e = (z - prior mean) / prior sigma`. With mean u and variance V of the likelihood given e, Adam lowers, in nats,
`sum of r^2 / 2W + log W / 2, plus WEIGHT / 2 |e|^2;  r = y - A u,  W = (A * A) V + sigma^2`
from the latents of a linear estimate. Before that, where there is little noise, the encoder's and the data's turns
alternate (PnP-HVAE: Prost et al. 2023, arXiv 2303.11217). At the end comes the linear step
`u + V A' (A V A' + sigma^2)^-1 r` of the data, so that what was measured without noise is exact.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from scipy.linalg import toeplitz

from nvae_tf.config import ModelConfig, check, real_number, whole_number
from nvae_tf.models.images import as_tensor, boolean_mask
from nvae_tf.models.latents import PosteriorSource, PriorSource, batch_size_of, image_seeds, noise_per_image
from nvae_tf.models.passes import inference_pass, pass_of_loop, top_down_pass

# Chosen on gray Fashion-MNIST; docs/restoration.md has what they give.
WEIGHT_OF_PRIOR, LEARNING_RATE = 2.0, 0.1
PNP_STEPS, PNP_TEMPERATURE = 20, 0.7
PNP_MOST_NOISE = 0.1  # the encoder has never seen noise: from this sigma on PnP steps do harm
SMALLEST_SIGMA = 0.02  # in the loss: an exact measurement would leave the prior no say
_TINY_SIGMA, _SMALLEST_VARIANCE = 1e-4, 1e-4  # of linear steps: in float32 noiseless pixels are exact to 1e-4
# The classical image model of the linear estimate: an autoregression along rows and columns.
_VARIANCE, _CORRELATION = 0.1, 0.9
_CONJUGATE_STEPS = 40
_BETAS, _EPSILON = (0.9, 0.999), 1e-8


# What is measured of an image: any object with the methods of `Separable`, which are checked together.
LinearOperator = Any


def _fixed(values: Any) -> np.ndarray:
    # A copy that does not change: graphs of restorations with an operator are kept.
    values = np.array(values)
    values.flags.writeable = False
    return values


@dataclasses.dataclass(frozen=True, eq=False)
class Mask:
    """Inpainting: all pixels are measured but `missing`, true in `[height, width]` or with channels."""

    missing: np.ndarray | tf.Tensor | bool = False

    def __post_init__(self):
        missing = boolean_mask(self.missing, "the mask of missing pixels")
        missing = missing[..., np.newaxis] if missing.ndim == 2 else missing
        object.__setattr__(self, "missing", missing if tf.is_tensor(missing) else _fixed(missing))

    def apply(self, images: tf.Tensor) -> tf.Tensor:
        given, expected = tuple(self.missing.shape), tuple(images.shape[1:])
        if given not in ((), expected, (*expected[:2], 1)):
            raise ValueError(f"the mask has shape {given}; it must be [height, width] of images {expected}")
        return tf.where(self.missing, 0.0, images)

    adjoint = squared = apply


@dataclasses.dataclass(frozen=True, eq=False)
class Separable:
    """`R X C'` of every channel X: `rows` R `[measured height, height]`, `columns` C `[measured width, width]`."""

    rows: np.ndarray
    columns: np.ndarray

    def __post_init__(self):
        for name in ("rows", "columns"):
            object.__setattr__(self, name, _fixed(getattr(self, name)))

    def apply(self, images: tf.Tensor) -> tf.Tensor:
        """`A x`: images `[batch, height, width, channels]` -> measurements `[batch, ...]`."""
        return _separable(self.rows, self.columns, images)

    def adjoint(self, measurements: tf.Tensor) -> tf.Tensor:
        """`A' y`: measurements -> images."""
        return _separable(self.rows.T, self.columns.T, measurements)

    def squared(self, variances: tf.Tensor) -> tf.Tensor:
        """`(A * A) v`, with every weight squared: the measurements' variances where pixels have these."""
        return _separable(self.rows**2, self.columns**2, variances)


def downsampling(size: tuple[int, int], factor: int) -> Separable:
    """Super-resolution: the means of `factor` x `factor` pixels of images of a size `(height, width)`."""
    if any(length % whole_number("factor", factor, 1) for length in size):
        raise ValueError(f"scale {factor}: must divide height and width of the images, {size[0]}x{size[1]}")
    return Separable(*(np.kron(np.eye(length // factor), np.full((1, factor), 1.0 / factor)) for length in size))


def gaussian_blur(size: tuple[int, int], deviation: float) -> Separable:
    """Deblurring: a Gaussian of this standard deviation in pixels, over the pixels of images `(height, width)`."""
    deviation = real_number("deviation", deviation, "must be above 0, in pixels", 1e-6, 1e6)
    kernels = [np.exp(-0.5 * np.square(toeplitz(np.arange(length)) / deviation)) for length in size]
    return Separable(*(kernel / kernel.sum(axis=1, keepdims=True) for kernel in kernels))


def measured(operator: LinearOperator, images: np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    """The measurement of known images `[batch, height, width, channels]`; the noise depends on seed and number."""
    images = tf.cast(images, tf.float32)
    exact = operator.apply(images)
    # The numbers of no latents with this seed.
    (noise,) = noise_per_image([tuple(exact.shape[1:])], image_seeds(seed, len(images), first=2**30))
    return np.asarray(tf.where(_seen(operator, images), exact + sigma * noise, 0.0))


def checked_measurement(measurement: Any, operator: LinearOperator, sigma: Any, config: ModelConfig) -> tuple:
    """The measurement as float32, and sigma; ValueError where they do not fit operator and model."""
    # What says nothing of any pixel, as the pixels that a mask leaves out, becomes 0.
    if not tf.is_symbolic_tensor(sigma):
        sigma = real_number("sigma", sigma, "must be the noise's standard deviation, from 0 to 1e6", 0.0, 1e6)
    lacking = [name for name in ("apply", "adjoint", "squared") if not callable(getattr(operator, name, None))]
    check(not lacking, f"an operator of type {type(operator).__name__} lacks {', '.join(lacking)}")
    measurement = as_tensor(measurement, "the measurement")
    is_floating = measurement.dtype.is_floating
    check(is_floating, f"the measurement is of type {measurement.dtype.name}: give floats; divide 8-bit values by 255")
    measurement = tf.cast(measurement, tf.float32)
    shape = config.image_shape
    images = tf.random.stateless_uniform([2, *shape], seed=(0, 1))
    try:
        expected = operator.apply(images)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"the operator is for images of another size than the model's, {shape}") from error
    given = measurement.shape
    if given.rank is None or given[1:] != expected.shape[1:] or given[0] == 0:
        form = f"makes [batch, {', '.join(map(str, expected.shape[1:]))}] of the model's images {shape}"
        raise ValueError(f"the measurement has shape {tuple(given)}; this operator {form}")
    measurement = tf.where(_seen(operator, images), measurement, 0.0)
    if tf.executing_eagerly():
        check(bool(tf.reduce_all(tf.math.is_finite(measurement))), "the measurement has values that are not finite")
        _check_operator(operator, images, expected)
    return measurement, sigma


def _check_operator(operator: LinearOperator, images: tf.Tensor, measured: tf.Tensor) -> None:
    # One pixel makes the only image whose squared measurement is `squared` of the squared image.
    pixel = np.zeros(images.shape, np.float32)
    pixel[:, images.shape[1] // 2, images.shape[2] // 2, 0] = 1.0
    same = np.allclose(tf.square(operator.apply(pixel)), operator.squared(tf.constant(pixel)), rtol=1e-3, atol=1e-5)
    check(same, "operator.squared is not `apply` with squared weights")
    other = tf.random.stateless_uniform(measured.shape, seed=(2, 3))
    back = operator.adjoint(other)
    check(back.shape == images.shape, f"operator.adjoint makes {tuple(back.shape)} of measurements, not images")
    products = _per_image(measured * other), _per_image(images * back)
    check(np.allclose(*products, rtol=1e-3, atol=1e-3), "operator.adjoint is not the adjoint of apply")


def restored(model, measurement, seeds, labels, operator, sigma, steps: int, pnp_steps: int, from_draws) -> tf.Tensor:
    """Images `[batch, height, width, channels]` of checked measurements; what a graph does of `NVAE.restore`."""
    forward = pass_of_loop(model, labels)
    count, shapes = batch_size_of(measurement), model.plan.latent_shapes()
    measured = _Measured(operator, measurement, tf.cast(sigma, tf.float32))
    start = measured.linear_estimate(model.config.image_shape)

    def moments(sources: Sequence[Any]) -> tuple[tf.Tensor, tf.Tensor]:
        likelihood = top_down_pass(model, sources, count, forward).likelihood
        return likelihood.mean(), likelihood.variance()

    def plug_and_play(_: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        return measured.with_data(*moments([TemperedSource(it) for it in model.bottom_up.features(images, forward)]))

    start = _repeated(plug_and_play, start, pnp_steps)
    noise = noise_per_image(shapes, seeds) if from_draws else [0.0] * len(shapes)
    inferred = inference_pass(model, start, noise, forward).latents
    latents = [(latent.z - latent.prior.loc) / latent.prior.scale for latent in inferred]

    def loss(latents: Sequence[tf.Tensor]) -> tf.Tensor:
        squared_norm = tf.add_n([tf.reduce_sum(tf.square(latent)) for latent in latents])
        return measured.energy(*moments(list(map(PriorSource, latents)))) + 0.5 * WEIGHT_OF_PRIOR * squared_norm

    first, last = (moments(list(map(PriorSource, each))) for each in (latents, _minimized(loss, latents, steps)))
    return measured.with_data(*measured.closer(first, last))


class TemperedSource(NamedTuple):
    """The mode of a posterior times its prior to the power of `1 / PNP_TEMPERATURE^2 - 1` (Prost et al. 2023)."""

    feature: tf.Tensor

    def draw(self, layers: Any, state: tf.Tensor) -> Any:
        latent = PosteriorSource(self.feature, 0.0).draw(layers, state)
        prior_weight = (PNP_TEMPERATURE**-2.0 - 1.0) * tf.square(latent.posterior.scale / latent.prior.scale)
        return latent._replace(z=(latent.z + prior_weight * latent.prior.loc) / (1.0 + prior_weight))


@dataclasses.dataclass
class _Measured:
    """Measurements `[batch, ...]`, and what follows from them for images of a mean and a variance."""

    operator: LinearOperator
    values: tf.Tensor
    sigma: tf.Tensor

    def residual(self, images: tf.Tensor) -> tf.Tensor:
        return self.values - self.operator.apply(images)

    def energy(self, mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        """The negative log-likelihood of all measurements in nats, up to a constant."""
        total = self.operator.squared(variance) + tf.square(tf.maximum(self.sigma, SMALLEST_SIGMA))
        return 0.5 * tf.reduce_sum(tf.square(self.residual(mean)) / total + tf.math.log(total))

    def with_data(self, mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
        """The images' mean given the measurement too, where pixels are independent, in [0, 1]."""
        variance = tf.maximum(variance, _SMALLEST_VARIANCE)
        return self._estimate(mean, lambda images: variance * images, variance)

    def linear_estimate(self, image_shape: tuple[int, int, int]) -> tf.Tensor:
        """The same under the classical image model, around the gray `[batch, 1, 1, 1]` that fits best; no network."""
        white = self.operator.apply(tf.ones([1, *image_shape]))
        # An operator may see nothing of it, as one of differences does.
        gray = tf.math.divide_no_nan(_per_image(self.values * white), _per_image(tf.square(white)))
        mean = tf.reshape(gray, [-1, 1, 1, 1]) * tf.ones(image_shape)
        # Toeplitz' matrix of 0, 1, 2 ... has the distances `|i - j|`.
        covariances = [_CORRELATION ** toeplitz(np.arange(length)) for length in image_shape[:2]]
        variance = tf.fill([1, *image_shape], _VARIANCE)
        return self._estimate(mean, lambda images: _VARIANCE * _separable(*covariances, images), variance)

    def _estimate(self, mean: tf.Tensor, covariance: Callable, variance: tf.Tensor) -> tf.Tensor:
        noise = tf.square(tf.maximum(self.sigma, _TINY_SIGMA))

        def times_covariance(weights: tf.Tensor) -> tf.Tensor:
            return self.operator.apply(covariance(self.operator.adjoint(weights))) + noise * weights

        diagonal = self.operator.squared(variance) + noise
        weights = _conjugate_gradients(times_covariance, self.residual(mean), diagonal)
        return tf.clip_by_value(mean + covariance(self.operator.adjoint(weights)), 0.0, 1.0)

    def closer(self, first: tuple[tf.Tensor, ...], last: tuple[tf.Tensor, ...]) -> list[tf.Tensor]:
        """The last mean and variance of each image; the first if nearer to the measurement, beyond its noise."""
        first_distance, last_distance = (_per_image(tf.square(self.residual(mean))) for mean, _ in (first, last))
        seen = tf.reduce_sum(tf.cast(_seen(self.operator, first[0][:1]), tf.float32))
        is_last = last_distance <= tf.maximum(first_distance, seen * tf.square(self.sigma))
        is_last = is_last[:, tf.newaxis, tf.newaxis, tf.newaxis]
        return [tf.where(is_last, after, before) for before, after in zip(first, last, strict=True)]


def _minimized(loss: Callable, variables: Sequence[tf.Tensor], steps: int) -> list[tf.Tensor]:
    """Tensors after `steps` of Adam (Kingma & Ba 2015) on `loss(variables)`, with cosine decay of the rate."""
    # An optimizer of Keras needs variables, and a graph may be for any number of images.

    def step(done: tf.Tensor, state: list) -> list:
        values = [value for value, _, _ in state]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            result = loss(values)
        done = tf.cast(done, tf.float32)
        rate = LEARNING_RATE * 0.5 * (1.0 + tf.cos(np.pi * done / steps))
        mean_correction, square_correction = (1.0 - beta ** (done + 1.0) for beta in _BETAS)
        new_state = []
        for (value, mean, square), gradient in zip(state, tape.gradient(result, values), strict=True):
            mean = _BETAS[0] * mean + (1.0 - _BETAS[0]) * gradient
            square = _BETAS[1] * square + (1.0 - _BETAS[1]) * gradient**2
            step_size = rate * (mean / mean_correction) / (tf.sqrt(square / square_correction) + _EPSILON)
            new_state.append((value - step_size, mean, square))
        return new_state

    start = [(value, tf.zeros_like(value), tf.zeros_like(value)) for value in variables]
    return [value for value, _, _ in _repeated(step, start, steps)]


def _conjugate_gradients(matrix: Callable, right: tf.Tensor, diagonal: tf.Tensor) -> tf.Tensor:
    """Solves `matrix(x) = right` for each image by itself, preconditioned by what is near the matrix' diagonal."""

    def products(one: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        return tf.reshape(_per_image(one * other), [-1] + [1] * (len(right.shape) - 1))

    def step(_: tf.Tensor, state: tuple) -> tuple:
        solution, residual, direction, product = state
        image = matrix(direction)
        length = tf.math.divide_no_nan(product, products(direction, image))
        solution, residual = solution + length * direction, residual - length * image
        scaled = residual / diagonal
        after = products(residual, scaled)
        return solution, residual, scaled + tf.math.divide_no_nan(after, product) * direction, after

    direction = right / diagonal
    return _repeated(step, (tf.zeros_like(right), right, direction, products(right, direction)), _CONJUGATE_STEPS)[0]


def _repeated(step: Callable, state: Any, count: int) -> Any:
    """The state after this number of times `state = step(number, state)`."""
    loop = (lambda number, _: number < count), (lambda number, state: (number + 1, step(number, state)))
    return tf.while_loop(*loop, (tf.constant(0), state), parallel_iterations=1)[1] if count else state


def _seen(operator: LinearOperator, images: tf.Tensor) -> tf.Tensor:
    """Which measurements say something of a pixel, `[1, ...]`."""
    return operator.squared(tf.ones_like(images[:1])) > 0.0


def _per_image(values: tf.Tensor) -> tf.Tensor:
    """Sums `[batch]`."""
    return tf.reduce_sum(values, axis=list(range(1, len(values.shape))))


def _separable(rows: np.ndarray, columns: np.ndarray, images: tf.Tensor) -> tf.Tensor:
    rows, columns = (tf.constant(matrix, tf.float32) for matrix in (rows, columns))
    return tf.einsum("ec,nacd->naed", columns, tf.einsum("ab,nbcd->nacd", rows, images))
