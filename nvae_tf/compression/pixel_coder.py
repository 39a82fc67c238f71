"""Codes of the pixels given the latents: each value is a chain of binary decisions, whose log-odds are rounded.

A Bernoulli value is one decision. A value of a mixture of logistics is found by halving the range of levels, as often
as it has bits, by the exact masses of both halves; the channels follow one after another, as the mixture has them.
"""

import functools

import numpy as np
import tensorflow as tf

from nvae_tf.compression.rounding import Rounder, categorical, frequencies
from nvae_tf.distributions.discretized_logistic_mixture import split_mixture_parameters
from nvae_tf.distributions.image_likelihood import ImageLikelihood

# The surer a decision is, the less a rounded log-odds costs.
_LOG_ODDS = np.array([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.6, 4.3, 5.2, 6.4, 8.4, 11, 15])


class PixelCoder:
    """Codes the levels of images, uint8 `[batch, height, width, channels]`, by a likelihood's parameters."""

    def __init__(self, likelihood: ImageLikelihood, height: int, width: int):
        if likelihood.name not in ("bernoulli", "logistic_mixture"):
            raise ValueError(f"model.likelihood = {likelihood.name}: it has a density and no masses of pixel values")
        self._likelihood, self._is_mixture = likelihood, likelihood.name == "logistic_mixture"
        # One step decides one bit of every value: of one channel's, or of all where none depends on another.
        channels, bits = range(likelihood.channels), reversed(range(likelihood.num_bits))
        self._steps = [(slice(channel, channel + 1), bit) for bit in bits for channel in channels]
        self._steps.sort(key=lambda step: step[0].start)
        self._steps = self._steps if self._is_mixture else [(slice(None), 0)]
        self.count = height * width * likelihood.channels * (likelihood.num_bits if self._is_mixture else 1)
        # Masses of many levels have decisions of small log-odds, for which finer steps save more than they cost.
        parts = 2 if self._is_mixture else 1
        places = np.arange((len(_LOG_ODDS) - 1) * parts + 1) / parts
        positive = np.interp(places, np.arange(len(_LOG_ODDS)), _LOG_ODDS)
        self._odds = np.concatenate([-positive[:0:-1], positive])
        logs = np.minimum(self._odds[:, np.newaxis] * [-1.0, 1.0], 0.0)  # of the masses of 0 and 1
        self._table = frequencies(logs, 2.0**22).astype(np.float32)

    def push(self, stack, rounder: Rounder, first: int, parameters: tf.Tensor, levels: np.ndarray, tolerance: float):
        """Encodes levels; the places of the decisions begin at `first`."""
        coded = []
        for channels, bit in self._steps:
            decided = levels[..., channels].astype(np.int32)
            low = decided >> (bit + 1) << (bit + 1)
            odds, slack = self._log_odds(parameters, levels, channels, low, bit, tolerance)
            rows = rounder.rounded(first, *map(self._positions, (odds, odds - slack, odds + slack)))
            coded.append(((decided >> bit & 1).reshape(-1), self._table[rows.reshape(-1)]))
            first += rows.size
        for decisions, table in reversed(coded):
            stack.encode_reverse(decisions, categorical(), table)

    def pop(self, stack, rounder: Rounder, first: int, parameters: tf.Tensor) -> np.ndarray:
        """Decodes levels."""
        levels = np.zeros((*parameters.shape[:3], self._likelihood.channels), np.uint8)
        for channels, bit in self._steps:
            odds, _ = self._log_odds(parameters, levels, channels, levels[..., channels].astype(np.int32), bit)
            rows = rounder.rounded(first, *[self._positions(odds)] * 3)
            decisions = stack.decode(categorical(), self._table[rows.reshape(-1)])
            levels[..., channels] |= (decisions.reshape(rows.shape) << bit).astype(np.uint8)
            first += rows.size
        return levels

    def _positions(self, odds: np.ndarray) -> np.ndarray:
        """Log-odds as rows of the table, with fractions."""
        return np.interp(odds, self._odds, np.arange(len(self._odds)))

    def _log_odds(self, parameters, levels, channels: slice, low, bit: int, tolerance: float | None = None):
        """The log-odds of a bit, `[batch, height, width, channels]`, and how far they may be off elsewhere."""
        if self._is_mixture:
            form = self._likelihood.channels, self._likelihood.num_mixtures, self._likelihood.num_bits
            odds = _mixture_odds(parameters, levels, low[..., 0], tf.constant(2**bit), tolerance, channels.start, *form)
            odds, slack = (each.numpy()[..., np.newaxis] for each in odds)
        else:
            odds, slack = tf.cast(parameters, tf.float64).numpy(), 0.0
        return odds, slack + (tolerance or 0.0) * (1.0 + np.abs(odds))


@functools.partial(tf.function, autograph=False, reduce_retracing=True)
def _mixture_odds(parameters, levels, low, half, tolerance, channel: int, channels: int, mixtures: int, num_bits: int):
    """The log-odds that `channel` is in the upper `half` of the levels `low ... low + 2 half - 1`, in float64, and how
    much they change where the network's means and log-scales change by the tolerance; `levels` has the channels below.
    """
    split = split_mixture_parameters(parameters, channels, mixtures)
    log_weights, means, log_scales, coefficients = (tf.cast(each, tf.float64) for each in split)
    values = 2.0 * tf.cast(levels, tf.float64)[..., tf.newaxis] / (2**num_bits - 1) - 1.0
    log_weights = tf.math.log_softmax(log_weights)
    for each in range(channel + 1):
        mean, first = means[..., each, :], each * (each - 1) // 2
        for lower in range(each):
            mean += coefficients[..., first + lower, :] * values[..., lower, :]
        if each < channel:
            level = tf.cast(levels[..., each], tf.int32)
            log_weights += _log_mass(mean, log_scales[..., each, :], level, level + 1, num_bits)

    def odds(mean, log_scale):
        upper = log_weights + _log_mass(mean, log_scale, low + half, low + 2 * half, num_bits)
        lower = log_weights + _log_mass(mean, log_scale, low, low + half, num_bits)
        return tf.reduce_logsumexp(upper, axis=-1) - tf.reduce_logsumexp(lower, axis=-1)

    log_scale = log_scales[..., channel, :]
    exact = odds(mean, log_scale)
    if tolerance is None:
        return exact, tf.zeros_like(exact)
    moved = odds(mean + tolerance * (1.0 + tf.abs(mean)), log_scale)
    wider = odds(mean, log_scale + tolerance * (1.0 + tf.abs(log_scale)))
    return exact, tf.abs(moved - exact) + tf.abs(wider - exact)


def _log_mass(mean, log_scale, first, last, num_bits: int):
    """The log of each logistic's mass of the levels `first ... last - 1`, whole numbers `[batch, height, width]`."""
    highest = 2**num_bits - 1

    def edge(level):
        value = (2.0 * tf.cast(level, tf.float64) - 1.0) / highest - 1.0
        infinity = tf.constant(np.inf, tf.float64)
        value = tf.where(level <= 0, -infinity, tf.where(level > highest, infinity, value))
        return (value[..., tf.newaxis] - mean) * tf.exp(-log_scale)

    low, high = edge(first), edge(last)
    return tf.math.log_sigmoid(high) + tf.math.log_sigmoid(-low) + tf.math.log(-tf.math.expm1(low - high))
