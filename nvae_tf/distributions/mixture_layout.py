"""Where the parameters of a mixture of logistics stand in the last axis of a network's output."""

from typing import NamedTuple

import tensorflow as tf

MAXIMUM_CHANNELS = 4
MINIMUM_LOG_SCALE = -7.0


class MixtureParameters(NamedTuple):
    """Constrained parameters of M logistics over C channels, float32, on the [-1, 1] pixel scale."""

    mixture_logits: tf.Tensor  # [..., M]
    means: tf.Tensor  # [..., C, M]
    log_scales: tf.Tensor  # [..., C, M], at least -7
    coefficients: tf.Tensor  # [..., C(C-1)/2, M], in (-1, 1)


def num_mixture_parameters(channels: int, num_mixtures: int) -> int:
    """Numbers a pixel for M components and C channels: `M (1 + 2C + C(C-1)/2)`, which is 10 M for RGB."""
    return num_mixtures * (1 + 2 * channels + _num_coefficients(channels))


def channels_of_width(width: int, num_mixtures: int) -> int:
    """The number of image channels for which a network's output is `width` numbers a pixel.

    Raises:
      ValueError: if no number of channels from 1 to 4 has that width.
    """
    widths = {num_mixture_parameters(channels, num_mixtures): channels for channels in range(1, MAXIMUM_CHANNELS + 1)}
    if width not in widths:
        raise ValueError(
            f"No mixture of {num_mixtures} logistics has {width} parameters a pixel; "
            f"1 to {MAXIMUM_CHANNELS} channels have {', '.join(map(str, widths))}."
        )
    return widths[width]


def split_mixture_parameters(parameters: tf.Tensor, channels: int, num_mixtures: int) -> MixtureParameters:
    """Cuts a network's output into constrained mixture parameters.

    The last axis holds M logits first. For RGB the rest is the published layout, channel after channel:
    M means, M log-scales, M coefficients, so that the coefficient rows c0, c1, c2 (green from red, blue from
    red, blue from green) are the three channels' in order. For 1, 2 and 4 channels, which the published model
    does not have: channel after channel M means, M log-scales; then all C(C-1)/2 coefficient rows of M,
    row by row of the strict lower triangle.

    Log-scales are raised to at least -7; coefficients pass through tanh.

    Args:
      parameters: `[..., num_mixture_parameters(channels, num_mixtures)]`, any floating type.
      channels: C, from 1 to 4.
      num_mixtures: M.

    Raises:
      ValueError: if `channels` is out of range or the last axis has another width.
    """
    if not 1 <= channels <= MAXIMUM_CHANNELS:
        raise ValueError(f"A mixture of logistics has 1 to {MAXIMUM_CHANNELS} image channels, got {channels}.")
    expected = num_mixture_parameters(channels, num_mixtures)
    if parameters.shape[-1] != expected:
        raise ValueError(
            f"{num_mixtures} logistics over {channels} channels need {expected} parameters a pixel, "
            f"which the last axis of shape {parameters.shape} does not have. Check num_mixtures, and that "
            "channels are last."
        )
    parameters = tf.cast(parameters, tf.float32)
    if channels == 3:
        logits, rest = tf.split(parameters, [num_mixtures, -1], axis=-1)
        means, log_scales, coefficients = tf.unstack(_rows(rest, [channels, 3], num_mixtures), axis=-2)
    else:
        per_channel = 2 * channels * num_mixtures
        logits, rest, coefficients = tf.split(
            parameters, [num_mixtures, per_channel, expected - num_mixtures - per_channel], axis=-1
        )
        means, log_scales = tf.unstack(_rows(rest, [channels, 2], num_mixtures), axis=-2)
        coefficients = _rows(coefficients, [_num_coefficients(channels)], num_mixtures)
    return MixtureParameters(logits, means, tf.maximum(log_scales, MINIMUM_LOG_SCALE), tf.math.tanh(coefficients))


def _num_coefficients(channels: int) -> int:
    return channels * (channels - 1) // 2


def _rows(flat: tf.Tensor, rows: list[int], num_mixtures: int) -> tf.Tensor:
    """Reshapes the last axis to `[*rows, num_mixtures]`."""
    return tf.reshape(flat, tf.concat([tf.shape(flat)[:-1], [*rows, num_mixtures]], axis=0))
