"""Codes of the pixels given the latents: each value is a chain of binary decisions, whose log-odds are rounded.

A Bernoulli value is one decision. A value of a mixture of logistics is found by halving the range of levels, as often
as it has bits, by the exact masses of both halves; the channels follow one after another, as the mixture has them.
"""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.compression.rounding import Rounder, categorical, frequencies
from nvae_tf.distributions.discretized_logistic_mixture import split_mixture_parameters
from nvae_tf.distributions.image_likelihood import ImageLikelihood

# The surer a decision is, the less a rounded log-odds costs.
_LOG_ODDS = np.array([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.6, 4.3, 5.2, 6.4, 8.4, 11, 15])
_LEAST_MASS = 1e-30  # below all that can be told apart by log-odds up to 15


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
            odds, slack = self._log_odds(parameters, levels, channels, decided >> (bit + 1) << (bit + 1), bit)
            ends = odds - tolerance * slack, odds + tolerance * slack
            rows = rounder.rounded(first, *map(self._positions, (odds, *ends)))
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

    def _log_odds(
        self, parameters, levels, channels: slice, low: np.ndarray, bit: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The log-odds of a bit, float64 `[batch, height, width, channels]`, and what a tolerance of 1 would change."""
        if not self._is_mixture:
            odds = tf.cast(parameters, tf.float64).numpy()
            return odds, 1.0 + np.abs(odds)
        likelihood, channel = self._likelihood, channels.start
        if bit == likelihood.num_bits - 1:
            form = channel, likelihood.channels, likelihood.num_mixtures, likelihood.num_bits
            self._mixture = _conditional_mixture(parameters, levels, *form)
        odds = _log_odds(self._mixture, low[..., 0], tf.constant(2**bit), likelihood.num_bits)
        return tuple(each.numpy()[..., np.newaxis] for each in odds)


class _Mixture(NamedTuple):
    """The logistics of one channel given those below, on the [-1, 1] scale, float64 `[batch, height, width, each]`."""

    logits: tf.Tensor  # as the network gives them, without regard to the channels below
    weights: tf.Tensor
    means: tf.Tensor
    log_scales: tf.Tensor

    def edge(self, level: tf.Tensor, num_bits: int) -> "_Edge":
        """The edge below a level `[batch, height, width]`; the lowest and the highest bin have the tails."""
        value = (2.0 * tf.cast(level, tf.float64) - 1.0) / (2**num_bits - 1) - 1.0
        farthest = tf.constant(1e9, tf.float64)
        value = tf.where(level <= 0, -farthest, tf.where(level >= 2**num_bits, farthest, value))
        scaled = (value[..., tf.newaxis] - self.means) * tf.exp(-self.log_scales)
        return _Edge(scaled, tf.sigmoid(scaled), tf.sigmoid(-scaled))


class _Edge(NamedTuple):
    """An edge between two levels in units of each logistic's scale, and the masses below and above it."""

    scaled: tf.Tensor
    below: tf.Tensor
    above: tf.Tensor


def _mass(low: _Edge, high: _Edge) -> tf.Tensor:
    """Each logistic's mass between two edges, as a difference of small numbers."""
    return _LEAST_MASS + tf.where(low.scaled > 0, low.above - high.above, high.below - low.below)


@functools.partial(tf.function, autograph=False, reduce_retracing=True)
def _conditional_mixture(parameters, levels, channel: int, channels: int, mixtures: int, num_bits: int) -> _Mixture:
    split = split_mixture_parameters(parameters, channels, mixtures)
    logits, means, log_scales, coefficients = (tf.cast(each, tf.float64) for each in split)
    values = 2.0 * tf.cast(levels, tf.float64)[..., tf.newaxis] / (2**num_bits - 1) - 1.0
    weights = tf.nn.softmax(logits)
    for each in range(channel + 1):
        mean, first = means[..., each, :], each * (each - 1) // 2
        for lower in range(each):
            mean += coefficients[..., first + lower, :] * values[..., lower, :]
        mixture = _Mixture(logits, weights, mean, log_scales[..., each, :])
        if each < channel:
            level = tf.cast(levels[..., each], tf.int32)
            weights *= _mass(mixture.edge(level, num_bits), mixture.edge(level + 1, num_bits))
            weights /= tf.reduce_sum(weights, axis=-1, keepdims=True)
    return mixture


@functools.partial(tf.function, autograph=False, reduce_retracing=True)
def _log_odds(mixture: _Mixture, low, half, num_bits: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The log-odds that a channel is in the upper `half` of the levels `low ... low + 2 half - 1`; and by how much they
    change, relative to the tolerance, where the network's logits, means and log-scales change by it.
    """
    edges = [mixture.edge(low + number * half, num_bits) for number in range(3)]
    # The derivatives of the log of a mass are those of its mean and log-scale, with opposite signs, over the mass.
    density = [edge.below * edge.above for edge in edges]
    by_mean = tf.exp(-mixture.log_scales) * (1.0 + tf.abs(mixture.means))
    by_scale = 1.0 + tf.abs(mixture.log_scales)
    logs, shares, means, scales = [], [], [], []
    for number in range(2):
        joint = mixture.weights * _mass(edges[number], edges[number + 1])
        total = tf.reduce_sum(joint, axis=-1, keepdims=True)
        logs.append(tf.math.log(total[..., 0]))
        shares.append(joint / total)
        slopes = density[number + 1] - density[number]
        means.append(tf.reduce_sum(mixture.weights * by_mean * slopes / total, axis=-1))
        slopes = edges[number + 1].scaled * density[number + 1] - edges[number].scaled * density[number]
        scales.append(tf.reduce_sum(mixture.weights * by_scale * slopes / total, axis=-1))
    moved = tf.reduce_sum(tf.abs(shares[1] - shares[0]) * (1.0 + tf.abs(mixture.logits)), axis=-1)
    odds = logs[1] - logs[0]
    return odds, 1.0 + tf.abs(odds) + moved + tf.abs(means[1] - means[0]) + tf.abs(scales[1] - scales[0])
