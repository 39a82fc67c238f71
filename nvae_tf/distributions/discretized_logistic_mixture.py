"""The discretized mixture of logistics, autoregressive over a pixel's channels (Salimans et al. 2017, section 2)."""

import math

import tensorflow as tf
import tensorflow_probability as tfp

from nvae_tf.layers.cpu_kernels import expm1, fan_out

tfd = tfp.distributions

_NAME = "DiscretizedLogisticMixture"
_MINIMUM_LOG_SCALE = -7.0
# The published edge bins, on the [-1, 1] scale. At 8 bits level 254 (0.9922) lies past the upper one.
_PUBLISHED_LOWER_EDGE, _PUBLISHED_UPPER_EDGE = -0.999, 0.99
_LOG_SMALL_MASS = math.log(1e-5)  # published scores replace masses below it by density times bin width
# Below this the bin width, in units of the scale, underflows on its way through the logarithm's gradient.
_MINIMUM_RELATIVE_WIDTH = 1e-30
# Half the step of float32 uniforms, which never reach 1: keeps them off 0 too, so that logarithms are finite.
_SMALLEST_UNIFORM = 2.0**-24
# Of the variance: beyond it nearly all values are 0 or 1 anyway, and in float32 differences would vanish.
_LARGEST_LOG_SCALE = math.log(100.0)
# Channels before its own that a channel's mean depends on. Of 8-channel patches (two photos' RGB, their squares and
# differences) the bits a value after equal training were 5.93 with none, 5.70 with 3 and 5.37 with all 7; of 32
# channels all would make 5,610 numbers a pixel, and these 2,610.
_MOST_COUPLED = 7


def num_mixture_parameters(channels: int, num_mixtures: int) -> int:
    """Numbers a pixel for M components: a logit, means, log-scales and `num_coefficients`; 10 M for RGB."""
    return num_mixtures * (1 + 2 * channels + num_coefficients(channels))


def num_coefficients(channels: int) -> int:
    """How many coefficients between channels a component has: C(C-1)/2 of up to 8 channels, 7 more for each further."""
    return sum(len(coupled_channels(channel)) for channel in range(channels))


def coupled_channels(channel: int) -> list[tuple[int, int]]:
    """The channels before `channel` that its mean depends on, at most 7, and the row of each one's coefficient."""
    lower = range(max(0, channel - _MOST_COUPLED), channel)
    first = sum(min(each, _MOST_COUPLED) for each in range(channel))
    return [(each, first + row) for row, each in enumerate(lower)]


def split_mixture_parameters(
    parameters: tf.Tensor, channels: int, num_mixtures: int, num_bits: int = 8
) -> tuple[tf.Tensor, ...]:
    """Cuts a network's output `[..., num_mixture_parameters(C, M)]` into parameters of `DiscretizedLogisticMixture`.

    Log-scales are at least -7, the published floor; beyond 8 bits it is lower by as much as bins are narrower.
    """
    # M logits come first, then channel after channel M means and M log-scales, and then all coefficients.

    def rows(flat: tf.Tensor, *shape: int) -> tf.Tensor:
        return tf.reshape(flat, tf.concat([tf.shape(flat)[:-1], [*shape, num_mixtures]], axis=0))

    parameters = tf.cast(parameters, tf.float32)
    if channels == 3:  # as published: after each channel's means and log-scales M of the coefficients
        logits, rest = tf.split(parameters, [num_mixtures, -1], axis=-1)
        means, log_scales, coefficients = tf.unstack(rows(rest, channels, 3), axis=-2)
    else:
        logits, rest, coefficients = tf.split(parameters, [num_mixtures, 2 * channels * num_mixtures, -1], axis=-1)
        means, log_scales = tf.unstack(rows(rest, channels, 2), axis=-2)
        coefficients = rows(coefficients, num_coefficients(channels))
    floor = _MINIMUM_LOG_SCALE - math.log((2 ** max(8, num_bits) - 1) / 255)
    return logits, means, tf.maximum(log_scales, floor), tf.math.tanh(coefficients)


class DiscretizedLogisticMixture(tfd.Distribution):
    """One pixel of C channels, each on the grid `k / (2^num_bits - 1)` in [0, 1].

    On the [-1, 1] scale, with component m drawn from `softmax(mixture_logits)`, channel c is

        x_c = round(mu_mc + sum_j coefficient_mcj x_j + exp(log_scale_mc) * logistic noise)

    where j are up to 7 channels before c, so its mass is `sum_m pi_m prod_c [F(x_c + h) - F(x_c - h)]` with F the
    logistic cumulative distribution and h half the width of a bin; the lowest and highest bin take F's whole tails.
    Unless `exact_edges`, it has the quirks of the published scores: values above 0.99 (at 8 bits level 254 too) take
    the upper tail, and masses below 1e-5 become density at the bin's center times its width. Samples are continuous in
    [0, 1]. `mean` for RGB is each channel in turn from softmax-weighted means and coefficients, clamped to [-1, 1]; for
    other channels it is the mean of the clamped noise. `variance` is exact where no channel that others depend
    on is clamped. All is in float32. Beyond 8 bits edges are always exact, and values count as the nearest level.

    Args:
      mixture_logits: `[..., M]`, unnormalized log-weights of the M components.
      means, log_scales: `[..., C, M]`, on the [-1, 1] scale; log-scales down to `split_mixture_parameters`' floor
        are safe in float32.
      coefficients: `[..., num_coefficients(C), M]`, row by row of the strict lower triangle, see `coupled_channels`.
      num_bits: bits a channel, 1 to 16.
    """

    def __init__(self, mixture_logits, means, log_scales, coefficients, num_bits: int = 8, exact_edges: bool = False):
        parameters = dict(locals())
        self._mixture_logits, self._means, self._log_scales, self._coefficients = (
            tf.cast(value, tf.float32) for value in (mixture_logits, means, log_scales, coefficients)
        )
        self._channels = self._means.shape[-2]
        self._half_width = 1.0 / (2**num_bits - 1)
        self._is_deep = num_bits > 8
        self._exact_edges = exact_edges or self._is_deep
        super().__init__(tf.float32, tfd.NOT_REPARAMETERIZED, False, True, parameters=parameters, name=_NAME)

    @classmethod
    def _parameter_properties(cls, dtype, num_classes=None):
        event_ndims = {"mixture_logits": 1, "means": 2, "log_scales": 2, "coefficients": 2}
        return {name: tfp.util.ParameterProperties(event_ndims=ndims) for name, ndims in event_ndims.items()}

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape([self._channels])

    def _log_prob(self, value: tf.Tensor) -> tf.Tensor:
        observed = 2.0 * tf.cast(value, tf.float32)[..., tf.newaxis] - 1.0
        values = tf.unstack(observed, num=self._channels, axis=-2)
        means, coefficients, log_scales = (
            tf.unstack(rows, axis=-2) for rows in (self._means, self._coefficients, self._log_scales)
        )
        log_weighted = tf.math.log_softmax(self._mixture_logits, axis=-1)
        for channel, (channel_value, log_scale) in enumerate(zip(values, log_scales, strict=True)):
            mean = autoregressive_mean(channel, means, coefficients, values)
            log_weighted += self._log_bin_mass(channel_value, mean, log_scale)
        return tf.math.reduce_logsumexp(log_weighted, axis=-1)

    def _log_bin_mass(self, value: tf.Tensor, mean: tf.Tensor, log_scale: tf.Tensor) -> tf.Tensor:
        """The log of each logistic's mass in the bin around `value`: `[..., 1]`, `[..., M]` -> `[..., M]`."""
        # By F(a) - F(b) = F(a) F(-b) (1 - exp(b - a)): no difference of nearly equal numbers; and every branch of the
        # `where`s has finite values and gradients, so none can poison the one chosen.
        inverse_scale = tf.math.exp(-log_scale)
        # In pairs: no tensor has more than two uses, see `fan_out`.
        centered, centered_in_density = fan_out(self._less_mean(value, mean) * inverse_scale, 2)
        half_width, half_of_relative_width = fan_out(self._half_width * inverse_scale, 2)
        log_lower_tail = tf.math.log_sigmoid(centered + half_width)
        log_upper_tail = tf.math.log_sigmoid(half_width - centered)
        relative_width = tf.maximum(2.0 * half_of_relative_width, _MINIMUM_RELATIVE_WIDTH)
        log_inner = log_lower_tail + log_upper_tail + tf.math.log(-expm1(-relative_width))
        if self._exact_edges:
            # Observed values lie on the grid up to rounding, so half a bin separates the edges safely.
            is_lowest, is_highest = value < self._half_width - 1.0, value > 1.0 - self._half_width
        else:
            is_lowest, is_highest = value < _PUBLISHED_LOWER_EDGE, value > _PUBLISHED_UPPER_EDGE
            both_tails = tf.math.log_sigmoid(centered_in_density) + tf.math.log_sigmoid(-centered_in_density)
            log_at_center = both_tails - log_scale + math.log(2.0 * self._half_width)
            log_inner = tf.where(log_inner < _LOG_SMALL_MASS, log_at_center, log_inner)
        return tf.where(is_lowest, log_lower_tail, tf.where(is_highest, log_upper_tail, log_inner))

    def _less_mean(self, value: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
        if not self._is_deep:
            return value - mean
        # Near 1 float32 has too few digits for bins this narrow. Whole numbers of levels are exact, so that all bins
        # share their edges and the masses sum to 1.
        levels, mean_levels = ((x + 1.0) * (0.5 / self._half_width) for x in (value, mean))
        levels += tf.stop_gradient(tf.round(levels) - levels)
        return (levels - mean_levels) * (2.0 * self._half_width)

    def _sample_n(self, n: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        # Not salted with self.name, which graphs make unique: one seed must draw the same there as eagerly.
        component_seed, noise_seed = tfp.random.split_seed(seed, n=2, salt=_NAME)
        pixel_shape = tf.concat([[n], self.batch_shape_tensor()], axis=0)

        def uniform(depth: int, seed: tf.Tensor) -> tf.Tensor:
            return tf.random.stateless_uniform(tf.concat([pixel_shape, [depth]], 0), seed, _SMALLEST_UNIFORM, 1.0)

        num_mixtures = self._means.shape[-1]
        gumbel = -tf.math.log(-tf.math.log(uniform(num_mixtures, component_seed)))
        # One row of weights a pixel, so that the same contraction serves the sample and the mean.
        weights = tf.one_hot(tf.argmax(self._mixture_logits + gumbel, axis=-1), num_mixtures)
        quantile = uniform(self._channels, noise_seed)
        noise = tf.math.log(quantile) - tf.math.log1p(-quantile)
        return self._chain(weights, noise * tf.math.exp(_select(self._log_scales, weights)))

    def _mean(self) -> tf.Tensor:
        weights = tf.nn.softmax(self._mixture_logits)
        if self._channels == 3:
            return self._chain(weights, tf.zeros_like(self._means[..., 0]))
        # Where most values are black or white, as in alpha, a component's mean may be far from what is drawn.
        means, coefficients, values = tf.unstack(self._means, axis=-2), tf.unstack(self._coefficients, axis=-2), []
        for channel, scale in enumerate(tf.unstack(tf.math.exp(self._log_scales), axis=-2)):
            mean = autoregressive_mean(channel, means, coefficients, values)
            values.append(tf.reduce_sum(weights * _clamped_mean(mean, scale), axis=-1, keepdims=True))
        return (tf.concat(values, axis=-1) + 1.0) / 2.0

    def _variance(self) -> tf.Tensor:
        weights = tf.nn.softmax(self._mixture_logits)
        means, coefficients = tf.unstack(self._means, axis=-2), tf.unstack(self._coefficients, axis=-2)
        scales = tf.unstack(tf.math.exp(tf.minimum(self._log_scales, _LARGEST_LOG_SCALE)), axis=-2)
        # Given the component a channel is linear in the logistic noise of its own and the lower channels. Their sum is
        # taken for one logistic with the same variance; `loads` has how much of each channel's noise is in a channel.
        lower_means, loads, variances = [], [], []
        for channel in range(self._channels):
            pairs = coupled_channels(channel)
            load = [
                sum(coefficients[row] * loads[j][noise] for j, row in pairs if j >= noise) for noise in range(channel)
            ]
            load.append(1.0)
            squares = [tf.square(part * scale) for part, scale in zip(load, scales, strict=False)]
            scale = tf.sqrt(tf.add_n(squares)) if channel else scales[0]
            mean, variance = _clamped_moments(autoregressive_mean(channel, means, coefficients, lower_means), scale)
            between = tf.square(mean - tf.reduce_sum(weights * mean, axis=-1, keepdims=True))
            variances.append(tf.reduce_sum(weights * (variance + between), axis=-1))
            lower_means.append(mean)
            loads.append(load)
        return tf.stack(variances, axis=-1) / 4.0

    def _chain(self, weights: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        """Channel after channel: component weights `[..., M]`, noise `[..., C]` -> `[..., C]` in [0, 1]."""
        means = tf.unstack(_select(self._means, weights), axis=-1)
        coefficients = tf.unstack(_select(self._coefficients, weights), axis=-1)
        values = []
        for channel, channel_noise in enumerate(tf.unstack(noise, num=self._channels, axis=-1)):
            mean = autoregressive_mean(channel, means, coefficients, values)
            values.append(tf.clip_by_value(mean + channel_noise, -1.0, 1.0))
        return (tf.stack(values, axis=-1) + 1.0) / 2.0


def autoregressive_mean(channel: int, means: list, coefficients: list, values: list) -> tf.Tensor:
    """The mean of `channel` given the `values` of the channels below it, all on the [-1, 1] scale."""
    mean = means[channel]
    for lower, row in coupled_channels(channel):
        mean += coefficients[row] * values[lower]
    return mean


def _clamped_mean(mean: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """The mean of a logistic variable that is clamped to [-1, 1]: 1 less the integral of its F between."""

    def softplus(x: tf.Tensor) -> tf.Tensor:  # made of operations that TensorFlow Lite has
        return tf.maximum(x, 0.0) + tf.math.log(1.0 + tf.math.exp(-tf.abs(x)))

    return 1.0 - scale * (softplus((1.0 - mean) / scale) - softplus((-1.0 - mean) / scale))


def _clamped_moments(mean: tf.Tensor, scale: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Mean and variance of a logistic variable that is clamped to [-1, 1]."""
    # For d = x + 1 they follow from the integrals of 1 - F and 2d (1 - F) over [0, 2], by way of softplus and its
    # integral, the dilogarithm: nothing cancels where nearly all mass is below the lower edge.
    above_lower, above_upper = (mean + 1.0) / scale, (mean - 1.0) / scale
    distance = scale * (tf.nn.softplus(above_lower) - tf.nn.softplus(above_upper))
    integrals = _softplus_integral(above_lower) - _softplus_integral(above_upper)
    square = 2.0 * tf.square(scale) * integrals - 4.0 * scale * tf.nn.softplus(above_upper)
    # The bounds are for rounding: far beyond the upper edge large numbers cancel.
    variance = tf.clip_by_value(square - tf.square(distance), 0.0, tf.maximum(distance * (2.0 - distance), 0.0))
    return distance - 1.0, variance


def _softplus_integral(x: tf.Tensor) -> tf.Tensor:
    """The integral of softplus from minus infinity, `-Li2(-exp(x))`."""
    tail = -tf.math.special.spence(1.0 + tf.math.exp(-tf.abs(x)))
    return tf.where(x > 0.0, tf.square(x) / 2.0 + math.pi**2 / 6.0 - tail, tail)


def _select(parameter: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """The weighted sum over components: `[..., rows, M]` with `[..., M]` -> `[..., rows]`."""
    return tf.reduce_sum(parameter * weights[..., tf.newaxis, :], axis=-1)
