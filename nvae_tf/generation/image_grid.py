"""Images for people: grids, animations, a file per image; and arrays of images as pixels, Pillow images, PNG files."""

import collections
import io
import math
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from nvae_tf.config import check
from nvae_tf.files import atomic_file

# Files with a figure, see `nvae_tf.reports.figures`, and those with an animation.
FIGURES = (".png", ".svg", ".pdf")
ANIMATION_FORMATS = {".gif": "GIF", ".webp": "WEBP"}
_VISIBLE_SIDE = 64  # the shortest side, in pixels, at which a person sees what an image shows
_GAP = 6  # white pixels between images


def image_grid(images: np.ndarray, columns: int | None = None, enlarge: int | None = 1) -> np.ndarray:
    """Lays images out in rows, from the top left: uint8 `[grid height, grid width, channels]`, white between images.

    There are `columns` in a row (None: nearly a square), and each pixel is repeated `enlarge` times (None: until the
    shorter side has 64 pixels). Images are uint8 or in [0, 1], `[count, height, width, channels]`; those that are
    `displayed` are laid out. ValueError for images that are not finite.
    """
    images = displayed(np.asarray(images))
    check_finite(images)
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    enlarge = max(1, math.ceil(_VISIBLE_SIDE / min(height, width))) if enlarge is None else enlarge
    pixels = pixels_of(images).repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    rows = math.ceil(count / columns)
    cells = np.pad(pixels, [(0, rows * columns - count), (0, _GAP), (0, _GAP), (0, 0)], constant_values=255)
    cells = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    return cells.reshape(rows * cells.shape[1], -1, channels)[:-_GAP, :-_GAP]


def check_finite(images: np.ndarray) -> None:
    """ValueError for images of a model that are not finite."""
    fault = "the model has diverged, the temperature is too high, or the mean of its likelihood is not finite"
    check(bool(np.isfinite(images).all()), f"a value of an image is not finite: {fault}")


def displayed(images: np.ndarray, channels: Sequence[int] = ()) -> np.ndarray:
    """The channels of images `[..., channels]` that are shown: those numbered, all of up to 4, or else the first 3."""
    return images[..., list(channels)] if channels else images[..., :3] if images.shape[-1] > 4 else images


def read_images(path: pathlib.Path, width: int, columns: int) -> np.ndarray:
    """The images `[count, height, width, channels]` in a figure or grid, a PNG file; they were `width` wide before."""
    with Image.open(path) as picture:
        # A figure's file says how much the images are enlarged, their height, and their places.
        enlarged, height, *places = map(int, picture.info.get("images", "0 0").split())
        pixels = np.atleast_3d(np.asarray(picture))[..., :3]
    if not places:
        pitch = (pixels.shape[1] + _GAP) // columns
        enlarged, rows = (pitch - _GAP) // width, (pixels.shape[0] + _GAP) // columns
        height = (rows - _GAP) // enlarged
        places = [n for y in range(0, pixels.shape[0], rows) for x in range(0, pixels.shape[1], pitch) for n in (x, y)]
    down, right = height * enlarged, width * enlarged
    corners = zip(places[::2], places[1::2], strict=True)
    return np.array([pixels[y : y + down : enlarged, x : x + right : enlarged] for x, y in corners])


def write_png(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes uint8 `[height, width, 1 to 4 channels]`, or uint16 of 1, atomically; the folder is made if missing."""
    with atomic_file(path) as partial:
        _picture(array).save(partial, format="PNG")


def write_animation(path: pathlib.Path, frames: np.ndarray, milliseconds: int, loop: bool) -> None:
    """Writes a GIF (at most 256 colors a frame) or a lossless WebP file, as the name says, atomically.

    Frames `[frames, height, width, 1 to 4 channels]` are enlarged as by `image_grid`, shown once or in a loop.
    """
    ending = path.suffix.lower()
    pictures = [_picture(image_grid(frame[np.newaxis], enlarge=None)) for frame in frames]
    # Neither format has gray with alpha.
    pictures = [picture.convert("RGBA") if picture.mode == "LA" else picture for picture in pictures]
    # Pillow's number of turns: 0 for no end; a GIF without the number is shown once.
    turns = {"loop": 0 if loop else 1} if loop or ending == ".webp" else {}
    # A GIF ignores `lossless`.
    options = {"save_all": True, "append_images": pictures[1:], "duration": milliseconds, "lossless": True} | turns
    with atomic_file(path) as partial:
        pictures[0].save(partial, format=ANIMATION_FORMATS[ending], **options)


def write_pictures(folder: pathlib.Path, images: np.ndarray, names: Sequence[str]) -> None:
    """Writes images `[count, height, width, channels]`, or `[count, variants, ...]` with numbers, as PNG files.

    They are uint8 or in [0, 1], or of one channel and uint16: such files have 16 bits.
    """
    for name, image in zip(picture_names(names), images, strict=True):
        for number, variant in enumerate(image if image.ndim == 4 else [image]):
            file = f"{name.removesuffix('.png')}_{number:03d}.png" if image.ndim == 4 else name
            write_png(folder / file, variant if variant.dtype == np.uint16 else image_grid(variant[np.newaxis]))


def picture_names(names: Sequence[str]) -> list[str]:
    """Names of PNG files: `a.jpg` becomes `a.png`, or `a.jpg.png` beside an `a.webp`; ValueError for equal names."""
    for name in names:
        path = pathlib.PurePath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"a picture is called {name}, which leads out of the folder")
    short = [str(pathlib.PurePath(name).with_suffix(".png")) for name in names]
    counts = collections.Counter(short)
    files = [file if counts[file] == 1 else f"{name}.png" for file, name in zip(short, names, strict=True)]
    for file, count in collections.Counter(files).items():
        if count > 1:
            raise ValueError(f"two pictures would be called {file}; rename one, or give the folder above both")
    return files


def pixels_of(images: np.ndarray) -> np.ndarray:
    """The uint8 pixels of images that are uint8 or in [0, 1]."""
    return images if images.dtype == np.uint8 else np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)


def pil_images(images: np.ndarray) -> list[Image.Image]:
    """The Pillow images of images `[count, height, width, 1 to 4]`, uint8 or float in [0, 1]."""
    return list(map(_picture, pixels_of(images)))


def png_files(pixels: np.ndarray) -> np.ndarray:
    """The bytes of a PNG file for each of uint8 images `[count, height, width, 1 to 4]`: an object array `[count]`."""
    streams = [io.BytesIO() for _ in pixels]
    for image, stream in zip(pil_images(pixels), streams, strict=True):
        image.save(stream, format="PNG")
    return np.array([stream.getvalue() for stream in streams], object)


def pixels_of_files(files: Iterable[bytes]) -> np.ndarray:
    """The pixels of PNG files; the inverse of `png_files`."""
    return np.stack([np.atleast_3d(np.asarray(Image.open(io.BytesIO(file)))) for file in files])


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
