"""Files that hold one picture each: finding them, their headers, their pixels. Reading is Pillow's."""

import os
import pathlib
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
_ORIENTATION = ExifTags.Base.Orientation
# What turns a picture of this orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow's modes of pictures with 1 to 4 channels.
CHANNEL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "I;16B": 1, "LA": 2, "La": 2, "RGB": 3, "CMYK": 3, "YCbCr": 3}
# Where a PNG file says its bits per channel, and then its color type; and the channels of these types.
_PNG_FORM_AT = 24
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
# How a whole file ends; what follows the end in some files makes them only suspect.
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b"\x3b"}


class BadPicture(ValueError):
    """A file can't be used; the message has its name and why."""


class PictureHeader(NamedTuple):
    """What a picture's header says: its size in pixels, its channels, and bits per channel (8 or 16)."""

    height: int
    width: int
    channels: int
    bits: int


def list_pictures(folder: str | os.PathLike) -> list[str]:
    """The names of all pictures in a tree of folders, relative to it and in order; hidden ones are left out.

    Raises:
      ValueError: a folder can't be read.
    """
    names, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_refuse_unreadable):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            # A link back into the tree.
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        names += (
            os.path.relpath(os.path.join(place, name), folder)
            for name in files
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        )
    return sorted(names)


def read_header(path: str | os.PathLike) -> PictureHeader:
    """Reads a picture's header, and looks whether the file has its end.

    Raises:
      BadPicture: it is not a picture, or was cut off.
    """
    with _opened(path) as picture:
        height, width = (
            (picture.width, picture.height) if _lies_on_its_side(picture) else (picture.height, picture.width)
        )
        header = PictureHeader(height, width, *_form(picture, path))
        if not _seems_whole(picture, path):
            # Only decoding tells: some cameras write more behind the end.
            _decode(picture, path)
    return header


def read_picture(path: str | os.PathLike, channels: int) -> Image.Image:
    """Reads a picture of 8 bits with this many channels, upright; of an animation the first frame.

    Of 16 bits the upper 8 are taken: the b-bit levels that follow, b <= 8, are those of the 16-bit values.

    Raises:
      BadPicture: it is not a picture, was cut off, or is damaged.
    """
    with _opened(path) as picture:
        _decode(picture, path)
        turn = _TURNS.get(_orientation(picture))
        return as_eight_bits(picture if turn is None else picture.transpose(turn), channels)


def as_eight_bits(picture: Image.Image, channels: int) -> Image.Image:
    """A picture of 8 bits with 1 to 4 channels, see `read_picture`."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    mode = CHANNEL_MODES[channels]
    return picture.copy() if picture.mode == mode else picture.convert(mode)


def _refuse_unreadable(error):
    raise ValueError(f"{error.filename}: this folder can't be read ({error.strerror}); its pictures would be missing")


def _opened(path):
    if not os.path.isfile(path):
        raise BadPicture(f"{path}: no file, or a link to nothing")
    try:
        return Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError:
        raise BadPicture(f"{path}: {_what_else(path)}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadPicture(f"{path}: can't be read ({error})") from None


def _decode(picture, path):
    try:
        picture.load()
    # Pillow's decoders raise errors of many kinds for damaged files, SyntaxError among them.
    except Exception as error:
        raise BadPicture(f"{path}: a damaged or cut-off {picture.format} file ({error})") from None


def _what_else(path):
    size = pathlib.Path(path).stat().st_size
    if not size:
        return "an empty file"
    kinds = ", ".join(suffix.strip(".").upper() for suffix in SUFFIXES)
    return f"not a picture, whatever its name says, or one of another kind than {kinds}"


def _form(picture, path):
    """Channels and bits."""
    if picture.format == "PNG":
        with open(path, "rb") as file:
            bits, color_type = file.read(_PNG_FORM_AT + 2)[_PNG_FORM_AT:]
        if bits == 16:
            # Pillow does not show that there are 16 bits, nor that gray has an alpha channel.
            return _PNG_CHANNELS[color_type], 16
    mode = picture.mode
    if mode == "P":
        # Some formats have their palette among the pixels.
        _decode(picture, path)
        return _palette_channels(picture), 8
    return _CHANNELS.get(mode, 4), 8


def _palette_channels(picture):
    if "transparency" in picture.info:
        return 4
    if picture.mode != "P":
        return _CHANNELS[picture.mode]
    colors = np.reshape(picture.getpalette(), (-1, 3))
    return 1 if (colors == colors[:, :1]).all() else 3


def _orientation(picture):
    """1 is upright; 5 to 8 lie on their side (EXIF). Cameras write it, into these formats."""
    try:
        orientation = picture.getexif().get(_ORIENTATION, 1) if picture.format in ("JPEG", "MPO", "WEBP") else 1
    # What Pillow raises for odd metadata; the pixels may be whole.
    except Exception:
        return 1
    return orientation if orientation in _TURNS else 1


def _lies_on_its_side(picture):
    return _orientation(picture) >= 5


def _seems_whole(picture, path):
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        if picture.format == "WEBP":
            return int.from_bytes(file.read(8)[4:], "little") + 8 <= size
        if picture.format not in _ENDS:
            # A BMP's size may be left out of its header; decoding is quick.
            return False
        end = _ENDS[picture.format]
        file.seek(-len(end), os.SEEK_END)
        return file.read() == end
