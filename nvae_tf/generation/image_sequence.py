"""Images one after the other: an animation, or a file each in a folder."""

import collections
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from nvae_tf.files import atomic_file
from nvae_tf.generation.image_grid import image_grid, write_png

ANIMATION_FORMATS = {".gif": "GIF", ".webp": "WEBP"}


def write_animation(
    path: str | os.PathLike, frames: np.ndarray | Sequence[np.ndarray], milliseconds: int = 80, loop: bool = True
) -> None:
    """Writes a GIF or a WebP file, as the name says; a reader sees the old file or the whole new one.

    GIF has at most 256 colors a frame; WebP is written without loss.

    Args:
      path: the file; its folder is made where it is missing.
      frames: `[frames, height, width, channels]` with 1 to 4 channels, all of one size: uint8 is written as it is,
        floats in [0, 1] are enlarged until they can be seen (`image_grid`).
      milliseconds: how long each frame is shown, from 20; GIF counts in tens.
      loop: whether it begins again for ever, or ends.

    Raises:
      ValueError: another ending, no frames, frames of different or impossible shapes, or too short a time.
    """
    path = pathlib.Path(path)
    if path.suffix.lower() not in ANIMATION_FORMATS:
        raise ValueError(f"{path}: an animation is a file whose name ends in {' or '.join(ANIMATION_FORMATS)}")
    if milliseconds < 20:
        raise ValueError(f"milliseconds = {milliseconds}: must be at least 20; shorter frames are not shown as such")
    frames = [np.asarray(frame) for frame in frames]
    if not frames or len({frame.shape for frame in frames}) != 1:
        raise ValueError(f"{path}: an animation needs at least one frame, and all of one size")
    pictures = [_picture(frame) for frame in frames]
    options = {"lossless": True} if path.suffix.lower() == ".webp" else {}
    # Pillow's number of turns: 0 for no end; a GIF without the number is shown once.
    if loop or path.suffix.lower() == ".webp":
        options["loop"] = 0 if loop else 1
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        pictures[0].save(
            partial,
            format=ANIMATION_FORMATS[path.suffix.lower()],
            save_all=True,
            append_images=pictures[1:],
            duration=milliseconds,
            **options,
        )


def write_pictures(folder: str | os.PathLike, images: np.ndarray, names: Sequence[str]) -> list[pathlib.Path]:
    """Writes every image of `[count, height, width, channels]` in [0, 1] as a PNG of its own size.

    Args:
      folder: is made where it is missing.
      images: see `image_grid`.
      names: of the images, with sub-folders or without; `cat.jpg` becomes `cat.png`, or `cat.jpg.png` where there is
        a `cat.webp` too.

    Returns:
      The files.

    Raises:
      ValueError: two names are the same, one leads out of the folder, or the images can't be shown.
    """
    paths = [pathlib.Path(folder, name) for name in picture_names(names)]
    for path, image in zip(paths, images, strict=True):
        write_png(path, image_grid(image[np.newaxis]))
    return paths


def picture_names(names: Sequence[str]) -> list[str]:
    """Names of PNG files for pictures with these names, all different, see `write_pictures`.

    Raises:
      ValueError: two names are the same, or one leads out of the folder.
    """
    outside = [name for name in names if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts]
    if outside:
        raise ValueError(f"a picture is called {outside[0]}, which leads out of the folder")
    briefly = [str(pathlib.PurePath(name).with_suffix(".png")) for name in names]
    counts = collections.Counter(briefly)
    files = [brief if counts[brief] == 1 else f"{name}.png" for brief, name in zip(briefly, names, strict=True)]
    (most, count) = collections.Counter(files).most_common(1)[0] if files else ("", 1)
    if count > 1:
        raise ValueError(f"two pictures would be called {most}: one would replace the other; rename one")
    return files


def _picture(frame: np.ndarray) -> Image.Image:
    if frame.dtype != np.uint8:
        frame = image_grid(frame[np.newaxis], enlarge=None)
    if frame.ndim != 3 or frame.shape[2] not in (1, 2, 3, 4):
        raise ValueError(f"a frame has shape {list(frame.shape)}; it must be [height, width, 1 to 4]")
    picture = Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame)
    # Neither format has gray with alpha.
    return picture.convert("RGBA") if picture.mode == "LA" else picture
