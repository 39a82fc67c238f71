"""Picture files: finding them, their headers, their pixels (by Pillow), and how they come to the model's size."""

import contextlib
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from nvae_tf.config import MAX_PIXELS, DataSpec, check
from nvae_tf.errors import first_line, wrap_read_errors
from nvae_tf.progress import Report

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
# Those that may hold several frames or pages. (What follows the first in a JPEG file is for the camera's own use.)
_FORMATS_WITH_FRAMES = ("PNG", "WEBP", "GIF", "TIFF")
# Pillow's modes of pictures with 1 to 4 channels.
_CHANNEL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
# By channels and bits.
_FORM_NAMES = {(1, 8): "gray", (2, 8): "gray with alpha", (3, 8): "RGB", (4, 8): "RGBA"}
_FORM_NAMES |= {(channels, 16): f"16-bit {name}" for (channels, _), name in _FORM_NAMES.items()}
_CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "I;16B": 1, "LA": 2, "La": 2, "RGB": 3, "CMYK": 3, "YCbCr": 3}
# Where a PNG file has its bits per channel, and then its color type; and the channels of these types.
_PNG_FORM_AT = 24
_PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}
# How complete files end; a file with something behind its end is decoded to be sure.
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b"\x3b"}
_PNG_TAIL = 4096
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# TIFF's numbers for what a sample means, and for where the channels lie.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK = 0, 1, 2, 3, 5
_UNSIGNED, _CHANNEL_BY_CHANNEL = 1, 2
# None, LZW, Deflate by its two numbers, and PackBits. Damaged JPEG data in a TIFF file may go unnoticed.
_TIFF_COMPRESSIONS = (1, 5, 8, 32946, 32773)
_ODD_TIFF = (
    "a damaged TIFF file, or one of a form that is not read: it must have whole numbers of 8 or 16 bits a channel "
    "(gray with alpha: of 8), and no compression but LZW, Deflate or PackBits; save it as a PNG file"
)
# Larger pictures are decoded one at a time.
_LARGE = 16_000_000
_ONE_LARGE_PICTURE = threading.Lock()


class BadPicture(ValueError):
    """A file can't be used; the message has its name and why."""


class PictureHeader(NamedTuple):
    """A picture's size in pixels, its channels, and bits per channel (8 or 16)."""

    height: int
    width: int
    channels: int
    bits: int


def list_pictures(folder: str | os.PathLike) -> list[str]:
    """The sorted relative names of all pictures in a tree of folders, hidden ones left out."""

    def refuse(error):
        raise ValueError(f"{error.filename}: this folder can't be read ({error.strerror}); its pictures are missing")

    names, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
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


def read_header(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> PictureHeader:
    """A picture's header; BadPicture for other files, several frames, too many pixels, a cut-off file."""
    with _opened(path, max_pixels) as picture:
        channels, bits = _form(picture, path)
        has_palette = picture.mode == "P"
        if not has_palette and _seems_complete(picture, path):
            return _upright_header(picture, channels, bits)
        # Some formats have their palette among the pixels; and only decoding shows whether a file without its end
        # mark is complete, since some cameras write more behind it.
        palette_channels = _palette_channels if has_palette else lambda picture: channels
        return _of_decoded(picture, path, lambda: _upright_header(picture, palette_channels(picture), bits))


def read_picture(
    path: str | os.PathLike,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    fit: Callable[[Image.Image], Image.Image] | None = None,
    alpha: str = "keep",
) -> Image.Image:
    """A picture of 8 bits with 1 to 4 channels, upright; BadPicture as in `read_header`, and for damaged pixels.

    Of 16 bits the upper 8 are kept: the b-bit levels that follow, b <= 8, are those of the 16-bit values. Of large
    pictures only one is in memory at a time, however many threads read; `fit` is applied before the next is decoded.
    `alpha` is that of `DataSpec`.
    """
    with _opened(path, max_pixels) as picture:

        def upright_and_fit():
            if _orientation(picture) > 1:
                # What fails on odd metadata is writing them, when the pixels are turned.
                with contextlib.suppress(Exception):
                    ImageOps.exif_transpose(picture, in_place=True)
            upright = as_eight_bits(picture, channels, alpha)
            result = upright if fit is None else fit(upright)
            return result.copy() if result is picture else result

        fitted = _of_decoded(picture, path, upright_and_fit)
    fitted.filename = os.fspath(path)  # converted copies have none; errors name the picture by it
    return fitted


def as_eight_bits(picture: Image.Image, channels: int, alpha: str = "keep") -> Image.Image:
    """The picture with 8 bits and 1 to 4 channels, see `read_picture`; ValueError for more."""
    check(channels in _CHANNEL_MODES, f"pictures for a model of {channels} channels: it takes arrays alone")
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if alpha != "keep" and picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if alpha != "drop":
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, alpha), picture)
        picture = picture.convert("RGB")
    mode = _CHANNEL_MODES[channels]
    return picture if picture.mode == mode else picture.convert(mode)


@contextlib.contextmanager
def _opened(path, max_pixels):
    """The picture, its header read, if Pillow decodes it to the right pixels."""
    if not os.path.isfile(path):
        raise BadPicture(f"{path}: no file, or a link to nothing")
    try:
        picture = Image.open(path, formats=_FORMATS)
    except UnidentifiedImageError:
        raise BadPicture(f"{path}: {_what_else(path)}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPicture(f"{path}: too large ({first_line(error)}); scale it down") from None
    # Pillow raises errors of many kinds for damaged files.
    except Exception as error:
        raise BadPicture(f"{path}: can't be read ({first_line(error)})") from None
    with picture:
        with _naming_damage(picture, path):
            problem = _problem(picture, max_pixels)
        if problem:
            raise BadPicture(f"{path}: {problem}")
        yield picture


def _problem(picture, max_pixels):
    """Why a picture is not decoded, by its header; None if it is."""
    pixels = _decoded_pixels(picture)
    if pixels > max_pixels:
        size = f"is {picture.height}x{picture.width} (height x width), {pixels:,} pixels"
        most = f"which is more than data.max_pixels = {max_pixels:,}"
        return f"{size}, {most}; scale it down, or raise data.max_pixels"
    if picture.format == "TIFF" and not _is_plain_tiff(picture.tag_v2):
        return _ODD_TIFF
    if picture.format in _FORMATS_WITH_FRAMES and picture.is_animated:
        return "has several frames or pages, but one file is one picture; save those that you want as single files"
    return None


def _decoded_pixels(picture):
    pixels = picture.width * picture.height
    if picture.format == "TIFF":
        # One tile may be larger than the picture, and is decoded as one.
        tags = picture.tag_v2
        pixels = max(pixels, tags.get(ExifTags.Base.TileWidth, 0) * tags.get(ExifTags.Base.TileLength, 0))
    return pixels


def _is_plain_tiff(tags):
    """Whether Pillow decodes a TIFF file of this form to the right pixels; it decodes some wrongly without an error."""
    base = ExifTags.Base
    bits = set(tags.get(base.BitsPerSample, (1,)))
    meaning = tags.get(base.PhotometricInterpretation, _WHITE_IS_ZERO)
    if bits == {16}:
        bits_are_read = meaning != _WHITE_IS_ZERO and tags.get(base.FillOrder, 1) == 1
    else:
        bits_are_read = bits <= {1, 2, 4, 8}
    return (
        bits_are_read
        and meaning in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK)
        and set(tags.get(base.SampleFormat, (_UNSIGNED,))) == {_UNSIGNED}
        and tags.get(base.Compression, 1) in _TIFF_COMPRESSIONS
        and (tags.get(base.PlanarConfiguration) != _CHANNEL_BY_CHANNEL or (meaning == _RGB and bits == {8}))
    )


def _of_decoded(picture, path, make):
    """Returns `make()` of the decoded picture, whose pixels are freed afterwards."""

    def decode_and_make():
        with contextlib.closing(picture):
            with _naming_damage(picture, path):
                if picture.format == "PNG":
                    # Decoding ends with the last row, and checks no checksum before.
                    with Image.open(path, formats=("PNG",)) as same_picture:
                        same_picture.verify()
                picture.load()
            return make()

    if _decoded_pixels(picture) <= _LARGE:
        return decode_and_make()
    # In a thread that ends: memory that a thread frees may be kept for it, and many threads would keep much.
    with _ONE_LARGE_PICTURE, ThreadPoolExecutor(1) as thread:
        return thread.submit(decode_and_make).result()


def _naming_damage(picture, path):
    return wrap_read_errors(f"{path}: a damaged or cut-off {picture.format} file (", ")", BadPicture)


def _what_else(path):
    with open(path, "rb") as file:
        start = file.read(4)
    if not start:
        return "an empty file"
    if start in _TIFF_STARTS:
        return _ODD_TIFF
    kinds = ", ".join(suffix.strip(".").upper() for suffix in SUFFIXES)
    return f"not a picture, whatever its name says, or one of another kind than {kinds}"


def _form(picture, path):
    """Channels and bits; with a palette, not yet those of its colors."""
    if picture.format == "TIFF":
        bits = 16 if 16 in picture.tag_v2.get(ExifTags.Base.BitsPerSample, ()) else 8
        return _CHANNELS.get(picture.mode, 4), bits
    if picture.format == "PNG":
        with open(path, "rb") as file:
            bits, color_type = file.read(_PNG_FORM_AT + 2)[_PNG_FORM_AT:]
        if bits == 16 and color_type in _PNG_CHANNELS:
            # Pillow does not show that there are 16 bits, nor that gray has an alpha channel.
            return _PNG_CHANNELS[color_type], 16
    return _CHANNELS.get(picture.mode, 4), 8


def _palette_channels(picture):
    if "transparency" in picture.info:
        return 4
    if picture.mode != "P":
        return _CHANNELS[picture.mode]
    colors = np.reshape(picture.getpalette(), (-1, 3))
    return 1 if (colors == colors[:, :1]).all() else 3


def _upright_header(picture, channels, bits):
    # Orientations from 5 on lie on their side.
    size = picture.size if _orientation(picture) >= 5 else picture.size[::-1]
    return PictureHeader(*size, channels, bits)


def _orientation(picture):
    """The EXIF orientation, 1 for upright. Pillow turns a TIFF file itself."""
    if picture.format == "TIFF":
        return 1
    try:
        # PNG's own `getexif` decodes the picture, because metadata may follow the pixels.
        orientation = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
    # What Pillow raises for odd metadata; the pixels may be intact.
    except Exception:
        return 1
    return orientation if orientation in range(1, 9) else 1


def _seems_complete(picture, path):
    size = os.path.getsize(path)
    if picture.format == "TIFF":
        return _strips_lie_within(picture.tag_v2, size)
    with open(path, "rb") as file:
        if picture.format == "WEBP":
            return int.from_bytes(file.read(8)[4:], "little") + 8 <= size
        if picture.format not in _ENDS:
            # A BMP's size may be left out of its header; decoding is quick.
            return False
        file.seek(-min(size, _PNG_TAIL), os.SEEK_END)
        tail = file.read()
    # Metadata behind a PNG's pixels may say that it lies on its side.
    return tail.endswith(_ENDS[picture.format]) and not (picture.format == "PNG" and b"eXIf" in tail)


def _strips_lie_within(tags, size):
    base = ExifTags.Base
    try:
        name = base.TileOffsets if base.TileOffsets in tags else base.StripOffsets
        counts = base.TileByteCounts if name == base.TileOffsets else base.StripByteCounts
        return all(offset + count <= size for offset, count in zip(tags[name], tags[counts], strict=True))
    # What Pillow raises for tags that are missing or odd; the picture is decoded to be sure.
    except Exception:
        return False


def fitted(picture: Image.Image, spec: DataSpec, where: str = "a picture") -> Image.Image:
    """The picture cropped and resized as the data set has it, or BadPicture. Scaling is bilinear and antialiased."""
    check_size(where, picture.height, picture.width, spec)
    if spec.crop_box is not None:
        picture = picture.crop(spec.crop_box)
    if spec.resize == "crop" and min(picture.height / spec.height, picture.width / spec.width) == 1.0:
        # Nothing to scale: crop at whole pixels, where ImageOps.fit would crop at halves and blur.
        left, top = (picture.width - spec.width) // 2, (picture.height - spec.height) // 2
        return picture.crop((left, top, left + spec.width, top + spec.height))
    if spec.resize == "crop":
        return ImageOps.fit(picture, (spec.width, spec.height), Image.Resampling.BILINEAR)
    if spec.resize == "stretch":
        return picture.resize((spec.width, spec.height), Image.Resampling.BILINEAR)
    return picture


def check_size(where: str, height: int, width: int, spec: DataSpec) -> None:
    """Raises BadPicture for a picture that is smaller than the box, or of another size where nothing resizes it."""
    if spec.crop_box is not None:
        left, top, right, bottom = spec.crop_box
        if right > width or bottom > height:
            box = f"data.crop_box {spec.crop_box} (left, top, right, bottom)"
            raise BadPicture(f"{where} is {height}x{width} (height x width), too small for {box}: make the box smaller")
        height, width = bottom - top, right - left
    if spec.resize == "none" and (height, width) != (spec.height, spec.width):
        size = f"{height}x{width} (height x width), not {spec.height}x{spec.width}"
        flags = f"--config.data.height={spec.height} --config.data.width={spec.width}"
        fix = f"to bring all to one size set --config.data.resize=crop (or stretch) {flags}"
        raise BadPicture(f"{where} is {size}: {fix}")


def check_form(where: object, channels: int | None, bits: int, spec: DataSpec, *usual: int) -> None:
    """Raises BadPicture for images with other channels or bits than the spec's, unless they are converted.

    `usual` are the channels and the bits of most images of the set; if not given, those of these images.
    """
    form = spec.seen_channels(channels), bits
    names = zip(("channels", "bits a channel"), ("channels", "file_bits"), form, usual or form, strict=True)
    for what, setting, value, common in names:
        expected = getattr(spec, setting)
        if not spec.convert and value not in (None, expected):
            fix = "--config.data.convert=True converts images when they are read"
            fix += f", or set it to {common}, what most images have" if common != expected else ""
            raise BadPicture(f"{where}: has {value} {what}, but data.{setting} is {expected}; {fix}")


def report_conversion(forms: Mapping[tuple[int, int], int], spec: DataSpec, report: Report) -> None:
    """Reports in one line what is converted; `forms` has the number of pictures by their channels and bits."""
    target = spec.channels, spec.file_bits
    others = {form: count for form, count in sorted(forms.items()) if form != target}
    if others:
        kinds = [_FORM_NAMES[form] + (f" ({count:,})" if len(others) > 1 else "") for form, count in others.items()]
        numbers = f"{sum(others.values()):,} of {sum(forms.values()):,} pictures"
        report.keep(f"Converted {numbers} from {' and '.join(kinds)} to {_FORM_NAMES[target]}")


def fits(images: np.ndarray, spec: DataSpec) -> bool:
    """Whether nothing is to be done to images `[..., height, width, channels]`."""
    return spec.crop_box is None and spec.resize == "none" and images.shape[-3:] == spec.image_shape


def fit_pixels(pixels: np.ndarray, spec: DataSpec, where: str = "an image") -> np.ndarray:
    """Converts and resizes uint8 `[height, width, channels]`, 1 to 4 channels, to the spec's image shape."""
    if fits(pixels, spec):
        return pixels
    if pixels.shape[-1] != spec.channels:
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture = as_eight_bits(picture, spec.channels, spec.alpha)
        pixels = np.asarray(picture).reshape(*pixels.shape[:2], spec.channels)
    # Each channel by itself: Pillow would take the last of 2 or 4 for an alpha channel and multiply the others by it.
    channels = [fitted(Image.fromarray(channel), spec, where) for channel in np.moveaxis(pixels, -1, 0)]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)
