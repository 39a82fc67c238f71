"""Codes of the pixels given the latents: each value is a chain of binary decisions, whose log-odds are rounded.

A Bernoulli value is one decision. A value of a mixture of logistics is found by halving the range of levels, as often
as it has bits, by the exact masses of both halves; the channels follow one after another, as the mixture has them.
"""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.compression.stack import Stack, rounded, stream
from nvae_tf.distributions.discretized_logistic_mixture import autoregressive_mean, split_mixture_parameters
from nvae_tf.distributions.image_likelihood import ImageLikelihood

# The surer a decision is, the less a rounded log-odds costs.
_LOG_ODDS = np.array([0, 0.6, 1.2, 1.8, 2.4, 3, 3.7, 4.6, 6, 9])
_LOG_ODDS = np.concatenate([-_LOG_ODDS[:0:-1], _LOG_ODDS])
_position = functools.partial(np.interp, xp=_LOG_ODDS, fp=np.arange(len(_LOG_ODDS)))
_PROBABILITIES = 1.0 / (1.0 + np.exp(-_LOG_ODDS))
# The fraction of marked decisions, in tolerances; a wrong one only costs bits.
_MARKED = {"bernoulli": 6.0, "logistic_mixture": 35.0}
_LEAST_MASS = 1e-30


class PixelCoder:
    """Codes the levels of images, uint8 `[batch, height, width, channels]`, by a likelihood's parameters."""

    def __init__(self, likelihood: ImageLikelihood, tolerance: float):
        self._likelihood, self._tolerance = likelihood, tolerance
        self._rate, self._decision = _MARKED[likelihood.name] * tolerance, stream.model.Bernoulli(perfect=False)

    def push(self, stack: Stack, parameters: tf.Tensor, levels: np.ndarray) -> None:
        """Encodes levels."""
        coded = []
        for channels, bit, odds, slack in self._decisions(parameters, levels):
            numbers, marks = rounded(odds, self._tolerance * slack, _position)
            coded.append((levels[..., channels] >> bit & 1, _PROBABILITIES[numbers], marks))
        for decisions, probabilities, marks in reversed(coded):
            stack.push(decisions, self._decision, probabilities)
            stack.push_marks(marks, self._rate)

    def pop(self, stack: Stack, parameters: tf.Tensor) -> np.ndarray:
        """Decodes levels."""
        levels = np.zeros((*parameters.shape[:3], self._likelihood.channels), np.uint8)
        for channels, bit, odds, slack in self._decisions(parameters, levels):
            numbers, _ = rounded(odds, slack, _position, stack.pop_marks(odds.shape, self._rate))
            decisions = stack.pop(odds.shape, self._decision, _PROBABILITIES.take(numbers, mode="clip"))
            levels[..., channels] |= (decisions << bit).astype(np.uint8)
        return levels

    def _decisions(self, parameters: tf.Tensor, levels: np.ndarray) -> Iterator[tuple]:
        """Channels, a bit of their levels, its log-odds `[batch, height, width, channels]`, and what a tolerance of 1
        would change of them, in turn. `levels` must have the bits before by then.
        """
        if self._likelihood.name == "bernoulli":
            odds = parameters.numpy()
            yield slice(None), 0, odds, 2.0 * (1.0 + np.abs(odds))
            return
        for channel in range(self._likelihood.channels):
            mixture = _conditional_mixture(parameters, levels, channel, self._likelihood)
            for bit in reversed(range(self._likelihood.num_bits)):
                half = tf.constant(2.0**bit, tf.float64)
                both = _log_odds(mixture, levels[..., channel], half, self._likelihood.num_bits)
                yield slice(channel, channel + 1), bit, *(each.numpy()[..., np.newaxis] for each in both)


class _Mixture(NamedTuple):
    """The logistics of a channel given those before, on the [-1, 1] scale: float64 `[batch, height, width, each]`."""

    weights: tf.Tensor
    means: tf.Tensor
    inverse_scales: tf.Tensor

    def shares(self, low: tf.Tensor, high: tf.Tensor, num_bits: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The mass of the levels `low ... high - 1`, and the share that each logistic has in it."""
        lower, upper = (self._scaled_edge(level, num_bits) for level in (low, high))
        # On the side of the smaller tail: as a difference of small numbers.
        sign = tf.where(lower > 0.0, tf.constant(-1.0, tf.float64), 1.0)
        each = sign * (tf.sigmoid(sign * upper) - tf.sigmoid(sign * lower))
        joint = self.weights * (_LEAST_MASS + each)
        mass = tf.reduce_sum(joint, axis=-1, keepdims=True)
        return mass[..., 0], joint / mass

    def _scaled_edge(self, level: tf.Tensor, num_bits: int) -> tf.Tensor:
        """The lower edge of levels, from the means, in units of the scales; the outer bins have whole tails."""
        value = (2.0 * level - 1.0) / (2**num_bits - 1) - 1.0
        far = tf.constant(1e9, tf.float64)
        value = tf.where(level <= 0.0, -far, tf.where(level >= 2.0**num_bits, far, value))
        return (value[..., tf.newaxis] - self.means) * self.inverse_scales


@functools.partial(tf.function, autograph=False, reduce_retracing=True)
def _conditional_mixture(parameters, levels, channel: int, likelihood: ImageLikelihood) -> _Mixture:
    logits, *rows = split_mixture_parameters(parameters, likelihood.channels, likelihood.num_mixtures)
    means, log_scales, coefficients = (tf.unstack(tf.cast(each, tf.float64), axis=-2) for each in rows)
    levels, weights = tf.cast(levels, tf.float64), tf.nn.softmax(tf.cast(logits, tf.float64))
    values = tf.unstack(2.0 * levels[..., tf.newaxis] / (2**likelihood.num_bits - 1) - 1.0, axis=-2)
    for each in range(channel + 1):
        mean = autoregressive_mean(each, means, coefficients, values)
        mixture = _Mixture(weights, mean, tf.exp(-log_scales[each]))
        if each < channel:
            _, weights = mixture.shares(levels[..., each], levels[..., each] + 1.0, likelihood.num_bits)
    return mixture


@functools.partial(tf.function, autograph=False, reduce_retracing=True)
def _log_odds(mixture: _Mixture, levels, half, num_bits: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The log-odds that a channel is in the upper `half` of the levels `low ... low + 2 half - 1`, which has `levels`;
    and about how much they change, relative to the tolerance, where the network's outputs change by it.
    """
    low = tf.floor(tf.cast(levels, tf.float64) / (2.0 * half)) * 2.0 * half
    below, shares = mixture.shares(low, low + half, num_bits)
    above, others = mixture.shares(low + half, low + 2.0 * half, num_bits)
    odds = tf.math.log(above / below)
    # The log of a mass changes by at most its inverse scale with a mean; errors of several outputs do not add up.
    moved = tf.norm(tf.maximum(shares, others) * mixture.inverse_scales, axis=-1)
    return odds, 1.0 + tf.abs(odds) + moved
