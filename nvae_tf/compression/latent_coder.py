"""Codes of the latents: in coordinates whitened by the prior, on a grid, with the posterior and with the prior.

A latent is `z = prior mean + prior sigma * k * bin`. So its prior is the same for every image, N(0, 1) on the grid, and
only the posterior's mean and sigma, relative to the prior's, are outputs of the network that decide a code.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.compression.stack import Stack, rounded, stream
from nvae_tf.distributions.soft_clamped_normal import soft_clamped_normal
from nvae_tf.models.latents import GroupLayers, LatentSample, Shapes

_NOT_CODED = "."  # a channel that stays at the prior's mean
_FINEST, _LEAST_KL = 9, 0.1  # bins of 2^-9 sigma; nats of an image
_PER_BIN, _PER_OCTAVE = 4, 4  # the grids of means and of sigmas
# A posterior's sigma in bins; the farthest that a latent is from the posterior's center, in bins; the farthest mean, in
# sigmas of the prior. The coder gives each symbol 2^-24 at least: a longer reach would draw latents that are far away.
_LEAST_SIGMA, _LARGEST_SIGMA, _REACH, _FARTHEST_MEAN = 0.5, 8.0, 32, 8
_MARKED = 16.0  # the fraction of marked numbers, in tolerances; a wrong one only costs bits


class WhitenedSource(NamedTuple):
    """The source of a group's latents, which `choose` gives in sigmas of the prior, `[batch, values]`.

    It gets the posterior's means and log2 of its sigmas, both relative to the prior, `[2, batch, values]`; None without
    a bottom-up `feature`.
    """

    choose: Callable[[tf.Tensor | None], tf.Tensor]
    channels: np.ndarray  # the coded ones
    feature: tf.Tensor | None

    def draw(self, layers: GroupLayers, state: tf.Tensor) -> LatentSample:
        """The latent of the group whose layers and incoming state these are."""
        parameters, outputs, batch = layers.prior(state), None, tf.shape(state)[0]
        prior = soft_clamped_normal(parameters)
        if self.feature is not None:
            posterior = soft_clamped_normal(layers.posterior(state, self.feature, parameters))
            ratio = tf.math.log(posterior.scale / prior.scale) / math.log(2.0)
            both = tf.stack([(posterior.loc - prior.loc) / prior.scale, ratio])
            outputs = tf.reshape(tf.gather(both, self.channels, axis=-1), [2, batch, -1])
        chosen = tf.reshape(self.choose(outputs), [batch, *prior.loc.shape[1:3], len(self.channels)])
        to_all = np.eye(prior.loc.shape[3], dtype=np.float32)[self.channels]  # zeros for the other channels
        z = prior.loc + prior.scale * tf.tensordot(chosen, to_all, 1)
        return LatentSample(z, z, prior)


class LatentCoder:
    """Codes the latents of all groups, whole numbers of bins: rows `[batch, values]`, group after group.

    `bins` of a group has a character a channel: a digit, for bins of `2^-digit` of the prior's sigma, or a point for a
    channel that is not coded. `shapes` are those of all channels.
    """

    def __init__(self, bins: Sequence[str], shapes: Shapes, tolerance: float):
        self.channels = [np.flatnonzero([digit != _NOT_CODED for digit in each]) for each in bins]
        pairs = zip(bins, shapes, strict=True)
        digits = [list(each.replace(_NOT_CODED, "")) * math.prod(shape[:2]) for each, shape in pairs]
        self.exponents = np.concatenate(digits).astype(np.int32)  # of all values
        ends = np.cumsum([0, *map(len, digits)]).tolist()
        self.groups = [slice(*each) for each in itertools.pairwise(ends)]
        self._tolerance, self.rate = tolerance, _MARKED * tolerance
        self._offset = stream.model.QuantizedGaussian(-_REACH, _REACH)
        farthest = _FARTHEST_MEAN * 2**_FINEST + _REACH
        self._prior = stream.model.QuantizedGaussian(-farthest, farthest)

    def posterior(self, outputs: np.ndarray, group: slice, marks=None) -> tuple[tuple, np.ndarray]:
        """The posterior of a group's whitened means and log2 sigmas `[2, batch, values]`, rounded, and their marks.

        It is the whole bin below the mean, the mean from there, and sigma, in bins, each `[batch, values]`.
        """
        exponents, octaves = self.exponents[group], np.log2([_LEAST_SIGMA, _LARGEST_SIGMA])

        def position(both: np.ndarray) -> np.ndarray:
            means = np.clip(both[0], -_FARTHEST_MEAN, _FARTHEST_MEAN) * 2.0**exponents
            return np.stack([means * _PER_BIN, np.clip(both[1] + exponents, *octaves) * _PER_OCTAVE])

        (means, sigmas), marks = rounded(outputs, self._tolerance * (1.0 + np.abs(outputs)), position, marks)
        # Bins of width 1 add 1/12 to the variance.
        sigmas = np.sqrt(4.0 ** (sigmas / _PER_OCTAVE) - 1.0 / 12.0)
        return (means // _PER_BIN, means % _PER_BIN / _PER_BIN, sigmas), marks

    def draw(self, stack: Stack, posterior: tuple) -> np.ndarray:
        """Latents drawn from the posterior of a group, with bits of the stack."""
        center, *parameters = posterior
        return center + stack.pop(center.shape, self._offset, *parameters)

    def give_back(self, stack: Stack, latents: np.ndarray, posterior: tuple) -> None:
        """Gives the stack the bits of the draws of all groups back."""
        center, *parameters = posterior
        offsets = np.clip(latents - center, -_REACH, _REACH)  # beyond are only latents of a damaged file
        for group in reversed(self.groups):
            stack.push(offsets[:, group], self._offset, *(each[:, group] for each in parameters))

    def push(self, stack: Stack, latents: np.ndarray) -> None:
        """Encodes latents with the prior."""
        stack.push(latents, self._prior, np.zeros(latents.shape), np.broadcast_to(2.0**self.exponents, latents.shape))

    def pop(self, stack: Stack, batch: int) -> np.ndarray:
        """Decodes latents with the prior."""
        shape = batch, len(self.exponents)
        return stack.pop(shape, self._prior, np.zeros(shape), np.broadcast_to(2.0**self.exponents, shape))

    def whitened(self, latents: np.ndarray, group: slice = slice(None)) -> np.ndarray:
        """Latents of a group, or of all, in sigmas of the prior, float32."""
        return (latents / 2.0 ** self.exponents[group]).astype(np.float32)


def bins_and_draws(kl: np.ndarray, ratios: np.ndarray) -> tuple[str, float]:
    """The `bins` of a group, and the bits of the draws of an image, from KL in nats and sigmas relative to the prior's.

    Both are `[batch, height, width, channels]`. A channel with hardly any KL says nothing, and the first image of a
    chunk would pay for it in full. Bins are about as wide as the sigmas of a channel's narrow posteriors.
    """
    is_coded = kl.sum(axis=(1, 2)).mean(axis=0) > _LEAST_KL
    exponents = np.rint(-np.log2(np.quantile(ratios, 0.1, axis=(0, 1, 2)))).clip(0, _FINEST).astype(int)
    bits = np.log2(math.sqrt(2.0 * math.pi * math.e) * ratios * 2.0**exponents)[..., is_coded]
    bins = [str(each) if coded else _NOT_CODED for each, coded in zip(exponents, is_coded, strict=True)]
    return "".join(bins), float(bits.sum() / len(bits))
