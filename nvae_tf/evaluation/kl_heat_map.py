"""A picture of the KL of every latent channel."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_CELL = 16
_MARGIN = 8
_TEXT_WIDTH, _TEXT_HEIGHT = 110, 16
_FONT_SIZE = 12
# From dark to light with even steps of lightness, as `viridis` has it: RGB at equal distances.
_COLOURS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float64)
# Nats of an image and position; below the first all is dark.
_DARKEST, _LIGHTEST = 1e-3, 1e1


def kl_heat_map(kl_per_channel_nats: np.ndarray, latent_shapes: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """One row a group, the top one first, one column a latent channel; channels in descending order in each row.

    The color is the logarithm of the KL of an image and position, from 0.001 nats (dark) to 10 nats (light): groups of
    different sizes can be compared.

    Args:
      kl_per_channel_nats: `[groups, latent channels]`, means over images, summed over height and width.
      latent_shapes: `(height, width, latent channels)` of every group.

    Returns:
      uint8 `[height, width, 3]`.
    """
    positions = np.array([[height * width] for height, width, _ in latent_shapes])
    ordered = -np.sort(-kl_per_channel_nats / positions, axis=1)
    cells = _colored(ordered).repeat(_CELL, axis=0).repeat(_CELL, axis=1)
    groups, channels = ordered.shape
    legend = _colored(np.geomspace(_DARKEST, _LIGHTEST, max(cells.shape[1], 160))[np.newaxis]).repeat(_CELL, axis=0)
    width = _MARGIN + _TEXT_WIDTH + max(cells.shape[1], legend.shape[1]) + 2 * _MARGIN
    top = _MARGIN + _TEXT_HEIGHT
    height = top + cells.shape[0] + 2 * _MARGIN + _TEXT_HEIGHT + _CELL + _MARGIN
    picture = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT_SIZE)
    left = _MARGIN + _TEXT_WIDTH
    draw.text((left, _MARGIN), f"KL of {channels} latent channels, the largest first", "black", font)
    picture.paste(Image.fromarray(cells), (left, top))
    for group, (rows, columns, _) in enumerate(latent_shapes):
        draw.text((_MARGIN, top + group * _CELL), f"group {group} ({rows}x{columns})", "black", font)
    below = top + cells.shape[0] + _MARGIN
    draw.text((_MARGIN, below + _TEXT_HEIGHT), "nats a position", "black", font)
    for place, value in ((0.0, "0.001"), (0.75, "1")):
        draw.text((left + place * legend.shape[1], below), value, "black", font)
    draw.text((left + legend.shape[1], below), "10", "black", font, anchor="ra")
    picture.paste(Image.fromarray(legend), (left, below + _TEXT_HEIGHT))
    return np.asarray(picture)


def _colored(values: np.ndarray) -> np.ndarray:
    logarithms = np.log(np.clip(values, _DARKEST, _LIGHTEST) / _DARKEST) / np.log(_LIGHTEST / _DARKEST)
    places = np.linspace(0.0, 1.0, len(_COLOURS))
    channels = [np.interp(logarithms, places, _COLOURS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
