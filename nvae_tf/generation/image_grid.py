"""Many images as one picture, for people to look at."""

import math
import os
import pathlib

import numpy as np
from PIL import Image

from nvae_tf.files import atomic_file

# The shortest side, in pixels, at which a person sees what an image shows.
_VISIBLE_SIDE = 64
# Mid-gray, so that the borders of black and of white images are seen.
_GAP_VALUE = 128
_CHANNELS = (1, 2, 3, 4)
_WITH_ALPHA = (2, 4)


def image_grid(images: np.ndarray, columns: int | None = None, enlarge: int | None = 1, gap: int = 6) -> np.ndarray:
    """Lays images out in rows, from the top left.

    Args:
        images: float `[count, height, width, channels]` in [0, 1], with 1 to 4 channels (gray, RGB, each with
            alpha or without); values outside are clipped.
        columns: images per row; None for a nearly square grid.
        enlarge: whole factor by which each pixel is repeated; None for the smallest that makes the images'
            shorter side at least 64 pixels.
        gap: gray pixels between images, not enlarged.

    Returns:
        uint8 `[grid height, grid width, channels]`, places left over are gray.

    Raises:
        ValueError: another shape, no image, values that are not finite, or a number out of range.
    """
    images = np.asarray(images, dtype=np.float32)
    _check_images(images)
    count, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    enlarge = max(1, math.ceil(_VISIBLE_SIDE / min(height, width))) if enlarge is None else enlarge
    if columns < 1 or enlarge < 1 or gap < 0:
        raise ValueError(f"An image grid needs columns, enlarge >= 1 and gap >= 0, not {columns}, {enlarge} and {gap}.")
    pixels = np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    pixels = pixels.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    rows = math.ceil(count / columns)
    row_pitch, column_pitch = height * enlarge + gap, width * enlarge + gap
    grid = np.full([rows * row_pitch - gap, columns * column_pitch - gap, channels], _GAP_VALUE, dtype=np.uint8)
    if channels in _WITH_ALPHA:
        grid[..., -1] = 255
    for number, picture in enumerate(pixels):
        top, left = number // columns * row_pitch, number % columns * column_pitch
        grid[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return grid


def write_png(path: str | os.PathLike, array: np.ndarray) -> None:
    """Writes a PNG file; a reader sees the old file or the whole new one, never a part.

    Args:
        path: the file; its folder is made where it is missing.
        array: uint8 `[height, width, channels]` with 1 to 4 channels.

    Raises:
        ValueError: the array has another type or shape.
    """
    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in _CHANNELS or not array.size:
        raise ValueError(
            f"A PNG is written from uint8 [height, width, 1 to 4], not {array.dtype} {list(array.shape)} ({path})."
        )
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).save(partial, format="PNG")


def _check_images(images):
    if images.ndim != 4 or images.shape[3] not in _CHANNELS or not images.size:
        raise ValueError(f"An image grid is made of [count, height, width, 1 to 4], not of {list(images.shape)}.")
    if not np.isfinite(images).all():
        bad = int((~np.isfinite(images)).any(axis=(1, 2, 3)).sum())
        raise ValueError(
            f"{bad} of {len(images)} images hold values that are not finite: the model that made them has diverged."
        )
