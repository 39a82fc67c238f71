"""The stack of bits that images are coded on, and the codes of latents and pixels on it.

All numbers that decide a code are rounded in a way that every machine repeats, see `rounded`.

A latent is `z = prior mean + prior sigma * k * bin`. So its prior is the same for every image, N(0, 1) on the grid, and
only the posterior's mean and sigma, relative to the prior's, are outputs of the network that decide a code.

A pixel is a chain of binary decisions, whose log-odds are rounded. A Bernoulli value is one decision. A value of a
mixture of logistics is found by halving the range of levels, as often as it has bits, by the exact masses of both
halves; the channels follow one after another, as the mixture has them.
"""

import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.distributions.discretized_logistic_mixture import autoregressive_mean, split_mixture_parameters
from nvae_tf.distributions.image_likelihood import ImageLikelihood
from nvae_tf.errors import require

stream = require("constriction", "compress").stream
# The bits that the first images of a chunk draw their latents with. Both sides know them.
_SUPPLY = np.frombuffer(hashlib.shake_256(b"nvae_tf").digest(4 * (2**16 - 1)), "<u4").astype(np.uint32)
_NOT_CODED = "."  # a channel that stays at the prior's mean
_FINEST, _LEAST_KL = 9, 0.1  # bins of 2^-9 sigma; nats of an image
_PER_BIN, _PER_OCTAVE = 4, 4  # the grids of means and of sigmas
# A posterior's sigma in bins; the farthest that a latent is from the posterior's center, in bins; the farthest mean, in
# sigmas of the prior. The coder gives each symbol 2^-24 at least: a longer reach would draw latents that are far away.
_LEAST_SIGMA, _LARGEST_SIGMA, _REACH, _FARTHEST_MEAN = 0.5, 8.0, 32, 8
# The surer a decision is, the less a rounded log-odds costs.
_LOG_ODDS = np.array([0, 0.6, 1.2, 1.8, 2.4, 3, 3.7, 4.6, 6, 9])
_LOG_ODDS = np.concatenate([-_LOG_ODDS[:0:-1], _LOG_ODDS])
_position = functools.partial(np.interp, xp=_LOG_ODDS, fp=np.arange(len(_LOG_ODDS)))
_PROBABILITIES = 1.0 / (1.0 + np.exp(-_LOG_ODDS))
# The fraction of marked numbers, of latents and of decisions, in tolerances; a wrong one only costs bits.
_MARKED = {"latents": 16.0, "bernoulli": 6.0, "logistic_mixture": 35.0}
_LEAST_MASS = 1e-30


class Stack:
    """Asymmetric numeral systems (Duda 2009): what is pushed last is popped first, at `-log2 p` bits a symbol.

    Popping from a model draws from it: the bits below are the source of randomness. Pushing gives the same bits back.
    At first the stack has a fixed supply of random words, then a checksum. `data` lacks the undrawn part of the supply.
    """

    def __init__(self, checksum: int = 0, data: bytes | None = None):
        if data is None:  # the coder's last word must not be zero
            data = len(_SUPPLY).to_bytes(2, "little") + checksum.to_bytes(4, "little") + b"\1"
        stored = np.frombuffer(data[2:] + bytes(-len(data[2:]) % 4), "<u4")
        words = np.concatenate([_SUPPLY[: int.from_bytes(data[:2], "little")], stored])
        self.mark_bits = 0  # what all marks took
        self._coder = stream.stack.AnsCoder(words.astype(np.uint32))

    def push(self, symbols: np.ndarray, model: Any, *parameters: Any) -> int:
        """Encodes whole numbers, and returns how many bits they take; parameters are broadcast to their shape."""
        rows = (np.broadcast_to(each, symbols.shape).ravel() for each in parameters)
        before = self._coder.num_valid_bits()
        self._coder.encode_reverse(symbols.ravel().astype(np.int32), model, *rows)
        return self._coder.num_valid_bits() - before

    def pop(self, shape: tuple[int, ...], model: Any, *parameters: Any) -> np.ndarray:
        """Decodes whole numbers, int32 of this shape."""
        rows = [np.broadcast_to(each, shape).ravel() for each in parameters]
        return np.reshape(self._coder.decode(model, *rows or [math.prod(shape)]), shape)

    def data(self) -> tuple[bytes, int]:
        """The stack for a file, and the number of bits that the first images' draws took of the supply."""
        words = self._coder.get_compressed()
        untouched = int(np.append(words[: len(_SUPPLY)] != _SUPPLY[: len(words)], True).argmax())
        # The last word is not zero: its zero bytes need not be stored.
        data = untouched.to_bytes(2, "little") + words[untouched:].astype("<u4").tobytes().rstrip(b"\0")
        return data, 32 * (len(_SUPPLY) - untouched)


def _model_of_marks(kind: str, tolerance: float) -> Any:
    rate = min(_MARKED[kind] * tolerance, 0.5)
    return stream.model.Categorical(np.array([1.0 - rate, rate / 2.0, rate / 2.0]), perfect=False)


def rounded(values: np.ndarray, slack: np.ndarray, position: Callable, marks: np.ndarray | None = None) -> tuple:
    """The whole numbers nearest to the `position` of values, int32, and marks (after Tian et al., arXiv 2309.11276).

    Other machines compute values up to `slack` away. The encoder marks a number that they may round to the other side:
    1 if it is even, 2 if it is odd, 0 where none may. The decoder gives its `marks`, and gets the same numbers.
    """
    values = np.nan_to_num(np.asarray(values, np.float64))
    exact = position(values)
    numbers = np.rint(exact).astype(np.int32)
    if marks is None:
        may_differ = np.rint(position(values - slack)) != np.rint(position(values + slack))
        return numbers, np.where(may_differ, 1 + numbers % 2, 0)
    is_other = (marks > 0) & (numbers % 2 != marks - 1)
    return numbers + np.where(is_other, np.where(exact > numbers, 1, -1), 0).astype(np.int32), marks


class LatentCoder:
    """Codes the latents of all groups, whole numbers of bins: rows `[batch, values]`, group after group.

    `bins` of a group has a character a channel: a digit, for bins of `2^-digit` of the prior's sigma, or a point for a
    channel that is not coded. `shapes` are with all channels.
    """

    def __init__(self, bins: Sequence[str], shapes: Sequence[tuple[int, int, int]], tolerance: float):
        self.channels = [np.flatnonzero([digit != _NOT_CODED for digit in each]) for each in bins]
        digits = [each.replace(_NOT_CODED, "") * math.prod(size) for each, (*size, _) in zip(bins, shapes, strict=True)]
        self.exponents = np.array([*"".join(digits)], np.int32)  # of all values
        ends = itertools.accumulate(map(len, digits), initial=0)
        self.groups = [slice(*each) for each in itertools.pairwise(ends)]
        self._tolerance, self.marks = tolerance, _model_of_marks("latents", tolerance)
        self._offset = stream.model.QuantizedGaussian(-_REACH, _REACH)
        farthest = _FARTHEST_MEAN * 2**_FINEST + _REACH
        # N(0, 1) in bins: the model of the latents, its means and its sigmas
        self.prior = stream.model.QuantizedGaussian(-farthest, farthest), 0.0, 2.0**self.exponents

    def _posterior(self, outputs: np.ndarray, group: slice, marks=None) -> tuple[tuple, np.ndarray]:
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

    def draw(self, stack: Stack, drawn: list, outputs: np.ndarray, group: slice) -> np.ndarray:
        """Whitened latents of a group by bits of the stack; `drawn` gets the latents and the marks of the posterior."""
        (center, *parameters), marks = self._posterior(outputs, group)
        drawn.append((center + stack.pop(center.shape, self._offset, *parameters), marks))
        return self.whitened(drawn[-1][0], group)

    def give_back(self, stack: Stack, latents: np.ndarray, outputs: np.ndarray, marks: np.ndarray) -> None:
        """Gives the stack the bits of the draws of all groups back."""
        (center, *parameters), _ = self._posterior(outputs, slice(None), marks)
        offsets = np.clip(latents - center, -_REACH, _REACH)  # beyond are only latents of a damaged file
        for group in reversed(self.groups):
            stack.push(offsets[:, group], self._offset, *(each[:, group] for each in parameters))

    def whitened(self, latents: np.ndarray, group: slice = slice(None)) -> np.ndarray:
        """Latents of a group, or of all, in sigmas of the prior, float32."""
        return (latents / 2.0 ** self.exponents[group]).astype(np.float32)


def bins_and_draws(kl: np.ndarray, ratios: np.ndarray, tolerance: float) -> tuple[str, float]:
    """The `bins` of a group, and the bits of the draws of an image, from KL in nats and sigmas relative to the prior's.

    Both are `[batch, height, width, channels]`. A channel with hardly any KL says nothing, and the first image of a
    chunk would pay for it in full. Bins are about as wide as the sigmas of a channel's narrow posteriors, and so wide
    that the tolerance moves no mean by half a step of its grid: a mark tells the step below from the step above.
    """
    is_coded = kl.sum(axis=(1, 2)).mean(axis=0) > _LEAST_KL
    finest = min(_FINEST, int(-math.log2(2.0 * _PER_BIN * (1.0 + _FARTHEST_MEAN) * tolerance)))
    exponents = np.rint(-np.log2(np.quantile(ratios, 0.1, axis=(0, 1, 2)))).clip(0, finest).astype(int)
    bits = np.log2(math.sqrt(2.0 * math.pi * math.e) * ratios * 2.0**exponents)[..., is_coded]
    bins = [str(each) if coded else _NOT_CODED for each, coded in zip(exponents, is_coded, strict=True)]
    return "".join(bins), float(bits.sum() / len(bits))


class PixelCoder:
    """Codes the levels of images, uint8 `[batch, height, width, channels]`, by a likelihood's parameters."""

    def __init__(self, likelihood: ImageLikelihood, tolerance: float):
        self._likelihood, self._tolerance = likelihood, tolerance
        self._marks, self._decision = _model_of_marks(likelihood.name, tolerance), stream.model.Bernoulli(perfect=False)

    def push(self, stack: Stack, parameters: tf.Tensor, levels: np.ndarray) -> None:
        """Encodes levels."""
        coded = []
        for channels, bit, odds, slack in self._decisions(parameters, levels):
            numbers, marks = rounded(odds, self._tolerance * slack, _position)
            coded.append((levels[..., channels] >> bit & 1, _PROBABILITIES[numbers], marks))
        for decisions, probabilities, marks in reversed(coded):
            stack.push(decisions, self._decision, probabilities)
            stack.mark_bits += stack.push(marks, self._marks)

    def pop(self, stack: Stack, parameters: tf.Tensor) -> np.ndarray:
        """Decodes levels."""
        levels = np.zeros((*parameters.shape[:3], self._likelihood.channels), np.uint8)
        for channels, bit, odds, slack in self._decisions(parameters, levels):
            numbers, _ = rounded(odds, slack, _position, stack.pop(odds.shape, self._marks))
            decisions = stack.pop(odds.shape, self._decision, _PROBABILITIES.take(numbers, mode="clip"))
            levels[..., channels] |= (decisions << bit).astype(np.uint8)
        return levels

    def _decisions(self, parameters: tf.Tensor, levels: np.ndarray) -> Iterator[tuple]:
        """Channels, a bit of their levels, its log-odds `[batch, height, width, channels]`, and what a tolerance of 1
        would change of them, in turn. `levels` must have the bits before by then.
        """
        likelihood, num_bits = self._likelihood, self._likelihood.num_bits
        if likelihood.name == "bernoulli":
            odds = parameters.numpy()
            yield slice(None), 0, odds, 2.0 * (1.0 + np.abs(odds))
            return
        split = split_mixture_parameters(parameters, likelihood.channels, likelihood.num_mixtures)
        logits, *rows = (tf.cast(each, tf.float64) for each in split)  # on the [-1, 1] scale
        means, log_scales, coefficients = (tf.unstack(each, axis=-2) for each in rows)
        weights, values = tf.nn.softmax(logits), []
        edges = (2.0 * np.arange(2**num_bits + 1) - 1.0) / (2**num_bits - 1) - 1.0
        edges[[0, -1]] = -1e9, 1e9  # the outer levels have whole tails
        for channel, log_scale in enumerate(log_scales):
            level = levels[..., channel, np.newaxis]  # a view
            logistics = autoregressive_mean(channel, means, coefficients, values), tf.exp(-log_scale)
            for bit in reversed(range(num_bits)):
                low = level.astype(int) >> bit + 1 << bit + 1
                between = edges[np.stack([low + (each << bit) for each in range(3)])]
                *both, shares = _log_odds(weights, *logistics, between)
                yield slice(channel, channel + 1), bit, *(each.numpy() for each in both)
            weights = tf.where(level % 2 == 1, shares[1], shares[0])  # given the channels so far
            values.append(2.0 * level / (2**num_bits - 1) - 1.0)


@functools.partial(tf.function, autograph=False, reduce_retracing=True)
def _log_odds(weights, means, inverse_scales, edges) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
    """The log-odds `[..., 1]` of the upper of two ranges of levels, between three `edges` `[3, ..., 1]`, by logistics
    `[..., each]`; about how much they change, relative to the tolerance, where the network's outputs change by it; and
    the share that each logistic has in the mass of each range.
    """
    # Edge by edge: broadcasting all three at once takes longer.
    scaled = [(edge - means) * inverse_scales for edge in tf.unstack(edges)]
    # From the side of the smaller tail: differences of small numbers.
    sign = tf.where(scaled[1] > 0.0, tf.constant(-1.0, tf.float64), 1.0)
    cumulative = [sign * tf.sigmoid(sign * each) for each in scaled]
    joint = [weights * (_LEAST_MASS + (high - low)) for low, high in itertools.pairwise(cumulative)]
    masses = [tf.reduce_sum(each, axis=-1, keepdims=True) for each in joint]
    odds, shares = tf.math.log(masses[1] / masses[0]), [each / mass for each, mass in zip(joint, masses, strict=True)]
    # The log of a mass changes by at most its inverse scale with a mean; errors of several outputs do not add up.
    moved = tf.norm(tf.maximum(*shares) * inverse_scales, axis=-1, keepdims=True)
    return odds, 1.0 + tf.abs(odds) + moved, shares
