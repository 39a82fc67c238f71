"""Codes of the latents: in coordinates whitened by the prior, on a grid, with the posterior and with the prior.

A latent is `z = prior mean + prior sigma * k * bin`. So its prior is the same for every image, N(0, 1) on the grid, and
only the posterior's mean and sigma, relative to the prior's, are outputs of the network that decide a code.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.compression.rounding import Rounder, categorical, frequencies
from nvae_tf.distributions.soft_clamped_normal import soft_clamped_normal
from nvae_tf.models.latents import GroupLayers, LatentSample

NOT_CODED = "."  # a channel that stays at the prior's mean
_FINEST = 9  # bins of 2^-9 sigma
_MEANS_PER_BIN, _SIGMAS_PER_OCTAVE = 2, 4
# A posterior's sigma, as log2 of bins in steps of a quarter, and the farthest that a latent is from its mean, in bins.
_LEAST_SIGMA, _LARGEST_SIGMA, REACH = -8, 12, 48
_FARTHEST_MEAN = 8  # in sigmas of the prior


class CodedSource(NamedTuple):
    """The source of a group's latents that code on the host decides, while the pass waits for it.

    `decide` gets the posterior's means and log2 of its sigmas, relative to the prior, `[batch, height, width, coded]`,
    or nothing where there is no bottom-up `feature`. It returns the latents in sigmas of the prior.
    """

    decide: Callable[..., np.ndarray]
    channels: np.ndarray  # the coded ones
    feature: tf.Tensor | None = None

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        """The latent of the group whose layers and incoming state these are."""
        parameters, outputs = layers.prior(state), []
        prior = soft_clamped_normal(parameters)
        if self.feature is not None:
            posterior = soft_clamped_normal(layers.posterior(state, self.feature, parameters))
            ratio = tf.math.log(posterior.scale / prior.scale) / math.log(2.0)
            both = (posterior.loc - prior.loc) / prior.scale, ratio
            outputs = [tf.gather(each, self.channels, axis=-1) for each in both]
        coded = tf.numpy_function(self.decide, outputs, tf.float32)
        coded = tf.ensure_shape(coded, [*prior.loc.shape[:3], len(self.channels)])
        # The other channels take the zeros behind the last.
        places = np.full(prior.loc.shape[3], len(self.channels))
        places[self.channels] = np.arange(len(self.channels))
        z = prior.loc + prior.scale * tf.gather(tf.pad(coded, [(0, 0)] * 3 + [(0, 1)]), places, axis=-1)
        return LatentSample(z, z, prior)


class Posterior(NamedTuple):
    """The rounded posteriors of a group's latents, int32 `[batch, height, width, coded]`."""

    centers: np.ndarray  # the bin of the mean, or that below
    rows: np.ndarray  # of the table of frequencies


class GroupCoder:
    """Codes the latents of one group `[height, width, channels]`, which are whole numbers of bins.

    `bins` has a character for each channel: a digit, for bins of `2^-digit` of the prior's sigma, or `NOT_CODED`.
    """

    def __init__(self, bins: str, shape: tuple[int, int, int]):
        self.channels = np.array([channel for channel, digit in enumerate(bins) if digit != NOT_CODED], np.int64)
        self._exponents = np.array([int(bins[channel]) for channel in self.channels], np.int64)
        self._bins_per_sigma = np.ldexp(1.0, self._exponents)
        self.shape = (*shape[:2], len(self.channels))
        self.count = math.prod(self.shape)

    def posterior(self, rounder: Rounder, first: int, mean: np.ndarray, ratio: np.ndarray, tolerance: float):
        """The `Posterior` of whitened means and log2 sigmas; the places of the values begin at `first`."""
        steps = _MEANS_PER_BIN * self._bins_per_sigma

        def rounded(first, outputs, position):
            outputs = outputs.astype(np.float64)
            slack = tolerance * (1.0 + np.abs(outputs))
            return rounder.rounded(first, *map(position, (outputs, outputs - slack, outputs + slack)))

        means = rounded(first, mean, lambda means: np.clip(means, -_FARTHEST_MEAN, _FARTHEST_MEAN) * steps)
        sigmas = rounded(
            first + mean.size,
            ratio,
            lambda ratios: np.clip(_SIGMAS_PER_OCTAVE * (ratios + self._exponents), _LEAST_SIGMA, _LARGEST_SIGMA),
        )
        rows = means % _MEANS_PER_BIN * (_LARGEST_SIGMA - _LEAST_SIGMA + 1) + sigmas - _LEAST_SIGMA
        return Posterior(means // _MEANS_PER_BIN, rows)

    def pop_posterior(self, stack, posterior: Posterior) -> np.ndarray:
        """Latents drawn from the posterior, with bits of the stack."""
        order = stack.decode(categorical(), _posterior_table()[posterior.rows.reshape(-1)])
        return _offsets()[order].reshape(posterior.centers.shape) + posterior.centers

    def push_posterior(self, stack, latents: np.ndarray, posterior: Posterior) -> None:
        """Gives the stack the bits of the draw back."""
        offset = (latents - posterior.centers).reshape(-1)
        if (np.abs(offset) > REACH).any():
            raise ValueError("its bits give latents that no encoder draws")
        order = np.where(offset > 0, 2 * offset - 1, -2 * offset).astype(np.int32)
        stack.encode_reverse(order, categorical(), _posterior_table()[posterior.rows.reshape(-1)])

    def push_prior(self, stack, latents: np.ndarray) -> None:
        """Encodes latents with the prior."""
        for channel, exponent in reversed([*enumerate(self._exponents.tolist())]):
            stack.encode_reverse(latents[..., channel].reshape(-1) + _farthest(exponent), _prior_model(exponent))

    def pop_prior(self, stack, batch: int) -> np.ndarray:
        """Decodes latents with the prior."""
        latents = np.zeros((batch, *self.shape), np.int32)
        for channel, exponent in enumerate(self._exponents.tolist()):
            symbols = stack.decode(_prior_model(exponent), batch * math.prod(self.shape[:2]))
            latents[..., channel] = symbols.reshape(latents.shape[:3]) - _farthest(exponent)
        return latents

    def whitened(self, latents: np.ndarray) -> np.ndarray:
        """Latents in sigmas of the prior, float32."""
        return (latents / self._bins_per_sigma).astype(np.float32)

    def bits_of_draw(self, ratios: np.ndarray) -> float:
        """The mean bits of an image's latents, for posteriors with these sigmas `[batch, height, width, channels]`."""
        sigmas = ratios[..., self.channels] * self._bins_per_sigma
        return float(np.sum(np.mean(np.log2(math.sqrt(2.0 * math.pi * math.e) * sigmas), axis=0)))


def bins_of_channels(kl: np.ndarray, ratios: np.ndarray, chunk: int) -> str:
    """The `bins` of a group, from the mean KL of its channels in nats, and sigmas `[batch, height, width, channels]`.

    The first image of a chunk pays for its latents in full. A channel is coded where it saves more in a chunk than it
    costs there. Its bins are half as wide as the sigmas of its narrow posteriors: wider ones cost bits on digits.
    """
    saved, cost = chunk * kl / math.log(2.0), 2.4 * math.prod(ratios.shape[1:3])
    exponents = np.ceil(1.0 - np.log2(np.quantile(ratios, 0.1, axis=(0, 1, 2)))).clip(0, _FINEST).astype(int)
    return "".join(str(each) if gain > cost else NOT_CODED for each, gain in zip(exponents, saved, strict=True))


def _farthest(exponent: int) -> int:
    """The largest bin that a latent may have."""
    return _FARTHEST_MEAN * 2**exponent + REACH


@functools.cache
def _prior_model(exponent: int):
    """The model of latents in bins of `2^-exponent` sigma: N(0, 1) at the middles of the bins."""
    sigmas = np.arange(-_farthest(exponent), _farthest(exponent) + 1) / 2.0**exponent
    return categorical(frequencies(-sigmas * sigmas / 2.0, 2.0**24))


@functools.cache
def _offsets() -> np.ndarray:
    """The symbols of posteriors as bins from the center: 0, 1, -1, 2, ...

    An empty stack gives the first symbol, so that the first image of a chunk has the likeliest latents.
    """
    symbols = np.arange(2 * REACH + 1, dtype=np.int32)
    return np.where(symbols % 2, symbols // 2 + 1, -symbols // 2).astype(np.int32)


@functools.cache
def _posterior_table() -> np.ndarray:
    """The frequencies of the symbols, float32 `[rows, symbols]`; a row for each fraction of a mean and each sigma."""
    quarters, root = np.arange(_LEAST_SIGMA, _LARGEST_SIGMA + 1), math.sqrt(2.0)
    # Square roots alone, since a library's 2^x may differ between machines.
    sigmas = np.ldexp(np.array([1.0, math.sqrt(root), root, root * math.sqrt(root)])[quarters % 4], quarters // 4)
    fractions = np.arange(_MEANS_PER_BIN)[:, np.newaxis, np.newaxis] / _MEANS_PER_BIN
    distances = (_offsets() - fractions) / sigmas[:, np.newaxis]
    return frequencies(-distances * distances / 2.0, 2.0**16).reshape(-1, 2 * REACH + 1).astype(np.float32)
