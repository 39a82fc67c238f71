"""Which latents of a model carry information about an image: active units, and a heat map of the KL per channel."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Nats per image and position.
ACTIVE_FROM = 0.01
# Of the heat map, in pixels.
_CELL = 16
_MARGIN = 8
_TEXT_WIDTH, _TEXT_HEIGHT = 110, 16
_FONT_SIZE = 12
# From dark to light with even steps of lightness, as `viridis` has it: RGB at equal distances.
_COLORS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float64)
# Nats per image and position; below the first all is dark.
_DARKEST, _LIGHTEST = 1e-3, 1e1


def active_units(kl_per_channel_nats: np.ndarray, latent_shapes: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """The number of active units of every group, int `[groups]`.

    A unit is a latent channel of a group. It is active where the KL of posterior and prior, given latents of the groups
    above that are drawn from the posterior, exceeds 0.01 nats in the mean over images and positions. Vahdat & Kautz
    (2020) count from 0.1 nats on; units between both say little at a position and much in an image. Channels that the
    model has given up lie far below.

    Args:
      kl_per_channel_nats: `[groups, latent channels]`, see `Likelihood`; with flows, which mix channels, a channel's
        part of the estimate.
      latent_shapes: `(height, width, latent channels)` of every group, in the same order.
    """
    positions = np.array([height * width for height, width, _ in latent_shapes])
    return np.sum(kl_per_channel_nats / positions[:, np.newaxis] > ACTIVE_FROM, axis=1)


def kl_heat_map(kl_per_channel_nats: np.ndarray, latent_shapes: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """One row per group, the top one first, one column per latent channel; channels in descending order in each row.

    The color is the logarithm of the KL per image and position, from 0.001 nats (dark) to 10 nats (light): groups of
    different sizes can be compared. Arguments as for `active_units`; returns uint8 `[height, width, 3]`.
    """
    positions = np.array([[height * width] for height, width, _ in latent_shapes])
    ordered = -np.sort(-kl_per_channel_nats / positions, axis=1)
    cells = _colored(ordered).repeat(_CELL, axis=0).repeat(_CELL, axis=1)
    channels = ordered.shape[1]
    legend = _colored(np.geomspace(_DARKEST, _LIGHTEST, max(cells.shape[1], 160))[np.newaxis]).repeat(_CELL, axis=0)
    left, top = _MARGIN + _TEXT_WIDTH, _MARGIN + _TEXT_HEIGHT
    below = top + cells.shape[0] + _MARGIN
    width = left + max(cells.shape[1], legend.shape[1]) + 2 * _MARGIN
    picture = Image.new("RGB", (width, below + _MARGIN + _TEXT_HEIGHT + _CELL + _MARGIN), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT_SIZE)
    draw.text((left, _MARGIN), f"KL of {channels} latent channels, the largest first", "black", font)
    picture.paste(Image.fromarray(cells), (left, top))
    for group, (rows, columns, _) in enumerate(latent_shapes):
        draw.text((_MARGIN, top + group * _CELL), f"group {group} ({rows}x{columns})", "black", font)
    draw.text((_MARGIN, below + _TEXT_HEIGHT), "nats a position", "black", font)
    for place, value in ((0.0, "0.001"), (0.75, "1")):
        draw.text((left + place * legend.shape[1], below), value, "black", font)
    draw.text((left + legend.shape[1], below), "10", "black", font, anchor="ra")
    picture.paste(Image.fromarray(legend), (left, below + _TEXT_HEIGHT))
    return np.asarray(picture)


def _colored(values: np.ndarray) -> np.ndarray:
    logarithms = np.log(np.clip(values, _DARKEST, _LIGHTEST) / _DARKEST) / np.log(_LIGHTEST / _DARKEST)
    places = np.linspace(0.0, 1.0, len(_COLORS))
    channels = [np.interp(logarithms, places, _COLORS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
