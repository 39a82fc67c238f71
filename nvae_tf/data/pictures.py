"""Picture files: finding them, their headers, their pixels (by Pillow), and how they come to the model's size."""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from nvae_tf.config import MAX_PIXELS, DataSpec, check
from nvae_tf.errors import wrap_read_errors

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
TIFF = (".tif", ".tiff")
_CHANNEL_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # Pillow's modes of pictures with 1 to 4 channels
_CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "I;16B": 1, "LA": 2, "La": 2, "RGB": 3, "CMYK": 3, "YCbCr": 3}
# How complete files end; a file with something behind its end is decoded to be sure.
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b"\x3b"}
# TIFF's numbers for what a sample means (the others: black is 0, a palette, CMYK), and for where the channels lie.
_WHITE_IS_ZERO, _RGB, _MEANINGS = 0, 2, (0, 1, 2, 3, 5)
_UNSIGNED, _CHANNEL_BY_CHANNEL = 1, 2
# None, LZW, Deflate by its two numbers, and PackBits. Damaged JPEG data in a TIFF file may go unnoticed.
_TIFF_COMPRESSIONS = (1, 5, 8, 32946, 32773)
_LARGE = 16_000_000  # pixels of a picture above which pictures are decoded two at a time
_TWO_LARGE_PICTURES = threading.Semaphore(2)


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
        raise ValueError(f"{error.filename}: this folder can't be read ({error.strerror})")

    names, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()  # a link back into the tree
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        files = [name for name in files if name.lower().endswith(SUFFIXES) and not name.startswith(".")]
        names += [os.path.relpath(os.path.join(place, name), folder) for name in files]
    return sorted(names)


def read_header(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> PictureHeader:
    """A picture's header; BadPicture for other files, several frames, too many pixels, a cut-off file."""

    def header(picture):
        # The name of the stored pixels. Pillow's mode does not show 16 bits, nor that gray has an alpha channel then.
        stored = picture.tile[0].args if picture.format in ("PNG", "TIFF") and picture.tile else ""
        stored = stored if isinstance(stored, str) else stored[0]
        channels = 2 if stored.startswith("LA;16") else _CHANNELS.get(picture.mode, 4)
        bits = 16 if ";16" in stored else 8
        has_palette = picture.mode == "P"
        # Some formats have their palette among the pixels; and only decoding shows whether a file without its end
        # mark is complete, since some cameras write more behind it.
        if has_palette or not _seems_complete(picture, path):
            _decode(picture, path)
        # Orientations from 5 on lie on their side.
        size = picture.size if _orientation(picture) >= 5 else picture.size[::-1]
        return PictureHeader(*size, _palette_channels(picture) if has_palette else channels, bits)

    return _read_opened(path, max_pixels, header)


def read_pixels(path: str | os.PathLike, spec: DataSpec) -> np.ndarray:
    """A picture as the data set has it, `[height, width, channels]` of type `spec.dtype`; BadPicture as it is read."""
    is_deep = spec.dtype != "uint8"
    picture = read_picture(path, spec.channels, spec.max_pixels, spec.alpha, is_deep)
    if is_deep:
        return fit_images(np.asarray(picture).reshape(1, picture.height, picture.width, -1), spec, path)[0]
    return np.asarray(fitted(picture, spec)).reshape(spec.image_shape)


def read_picture(
    path: str | os.PathLike, channels: int, max_pixels: int = MAX_PIXELS, alpha: str = "keep", is_deep: bool = False
) -> Image.Image:
    """A picture of 8 bits (of 16 the upper) with 1 to 4 channels, upright; BadPicture for damaged ones too.

    `alpha` is as in `DataSpec`. With `is_deep` gray of 16 bits keeps them.
    """

    def upright(picture):
        _decode(picture, path)
        if _orientation(picture) > 1:
            # What fails on odd metadata is writing them, when the pixels are turned.
            with contextlib.suppress(Exception):
                ImageOps.exif_transpose(picture, in_place=True)
        with _naming_damage(picture, path):
            return picture if is_deep and picture.mode.startswith("I;16") else as_eight_bits(picture, channels, alpha)

    result = _read_opened(path, max_pixels, upright)
    result.filename = os.fspath(path)  # converted copies have none; errors name the picture by it
    return result


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


def _read_opened(path, max_pixels, read):
    """Returns `read(picture)` of an opened file, if Pillow decodes it to the right pixels."""
    if not os.path.isfile(path):
        raise BadPicture(f"{path}: no file, or a link to nothing")
    with wrap_read_errors(f"{path}: not a picture that can be read (", ")", BadPicture):
        picture = Image.open(path, formats=("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"))
    with picture:
        with _naming_damage(picture, path):
            tags = picture.tag_v2 if picture.format == "TIFF" else {}
            # One tile of a TIFF file may be larger than the picture, and is decoded as one.
            tile = tags.get(ExifTags.Base.TileWidth, 0) * tags.get(ExifTags.Base.TileLength, 0)
            pixels = max(picture.width * picture.height, tile)
            # What follows the first picture in a JPEG file is for the camera's own use.
            has_frames = getattr(picture, "is_animated", False) and picture.format != "MPO"
            is_odd = picture.format == "TIFF" and not _is_plain_tiff(tags)
        if pixels > max_pixels:
            size = f"{picture.height}x{picture.width} (height x width), {pixels:,} pixels"
            raise BadPicture(f"{path}: is {size}, more than data.max_pixels = {max_pixels:,}; scale it down")
        if is_odd:
            raise BadPicture(f"{path}: a TIFF file of a form that is not read; save it as PNG, or set data.source=tiff")
        if has_frames:
            fix = "read them with --config.data.source=tiff" if picture.format == "TIFF" else "save those that you want"
            raise BadPicture(f"{path}: has several frames or pages; {fix}")
        if pixels <= _LARGE:
            return read(picture)
        # Not all at once, since many would take all memory; in a thread that ends, as memory may be kept for it.
        with _TWO_LARGE_PICTURES, ThreadPoolExecutor(1) as thread:
            return thread.submit(read, picture).result()


def _is_plain_tiff(tags):
    """Whether Pillow decodes a TIFF file of this form to the right pixels; it decodes some wrongly without an error."""
    base = ExifTags.Base
    bits = set(tags.get(base.BitsPerSample, (1,)))
    meaning = tags.get(base.PhotometricInterpretation, _WHITE_IS_ZERO)
    deep_is_read = bits == {16} and meaning != _WHITE_IS_ZERO and tags.get(base.FillOrder, 1) == 1
    return (
        (deep_is_read or bits <= {1, 2, 4, 8})
        and meaning in _MEANINGS
        and set(tags.get(base.SampleFormat, (_UNSIGNED,))) == {_UNSIGNED}
        and tags.get(base.Compression, 1) in _TIFF_COMPRESSIONS
        and (tags.get(base.PlanarConfiguration) != _CHANNEL_BY_CHANNEL or (meaning == _RGB and bits == {8}))
    )


def _decode(picture, path):
    with _naming_damage(picture, path):
        if picture.format == "PNG":
            # Decoding ends with the last row, and checks no checksum before.
            with Image.open(path, formats=("PNG",)) as same_picture:
                same_picture.verify()
        picture.load()


def _naming_damage(picture, path):
    return wrap_read_errors(f"{path}: a damaged or cut-off {picture.format} file (", ")", BadPicture)


def _palette_channels(picture):
    if "transparency" in picture.info:
        return 4
    if picture.mode != "P":
        return _CHANNELS[picture.mode]
    colors = np.reshape(picture.getpalette(), (-1, 3))
    return 1 if (colors == colors[:, :1]).all() else 3


def _orientation(picture):
    """The EXIF orientation, 1 for upright. Pillow turns a TIFF file itself."""
    # Odd metadata raises errors of many kinds. PNG's own `getexif` decodes: metadata may follow the pixels.
    with contextlib.suppress(Exception):
        orientation = Image.Image.getexif(picture).get(ExifTags.Base.Orientation, 1)
        return orientation if orientation in range(1, 9) and picture.format != "TIFF" else 1
    return 1


def _seems_complete(picture, path):
    """Whether a file has its end: without a doubt only in formats that mark it; others are decoded to be sure."""
    with open(path, "rb") as file:
        if picture.format == "WEBP":
            return int.from_bytes(file.read(8)[4:], "little") + 8 <= os.path.getsize(path)
        if picture.format not in _ENDS:
            return False
        file.seek(-min(os.path.getsize(path), 4096), os.SEEK_END)
        tail = file.read()
    # Metadata behind a PNG's pixels may say that it lies on its side.
    return tail.endswith(_ENDS[picture.format]) and not (picture.format == "PNG" and b"eXIf" in tail)


def fitted(picture: Image.Image, spec: DataSpec) -> Image.Image:
    """The picture cropped and resized as the data set has it. Scaling is bilinear and antialiased."""
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


def check_picture(path: object, header: PictureHeader, spec: DataSpec) -> None:
    """Raises BadPicture for a picture file that can't be used for the data set, by its header."""
    check_size(f"{path}:", header.height, header.width, spec)
    check_form(path, header.channels, header.bits, spec)
    if spec.dtype != "uint8" and header.bits == 16 and header.channels > 1:
        raise BadPicture(f"{path}: of color pictures only 8 bits are read; save a .npy array of all images")


def check_size(where: object, height: int, width: int, spec: DataSpec) -> None:
    """Raises BadPicture for a picture that is smaller than the box, or of another size where nothing resizes it."""
    size = f"{where} is {height}x{width} (height x width)"
    if spec.crop_box is not None:
        left, top, right, bottom = spec.crop_box
        if right > width or bottom > height:
            box = f"data.crop_box {spec.crop_box} (left, top, right, bottom)"
            raise BadPicture(f"{size}, too small for {box}: make the box smaller")
        height, width = bottom - top, right - left
    if spec.resize == "none" and spec.height and (height, width) != (spec.height, spec.width):
        fix = "--config.data.resize=crop or stretch, with --config.data.height=64, brings all to one size"
        fix += " (nvae-generate: --resize=crop)"
        raise BadPicture(f"{size}, not {spec.height}x{spec.width}: {fix}")


def check_form(where: object, channels: int | None, bits: int, spec: DataSpec) -> None:
    """Raises BadPicture for images with other channels or bits than the spec's, unless they are converted."""
    for what, value, setting in (("channels", spec.seen_channels(channels), "channels"), ("bits", bits, "file_bits")):
        expected = getattr(spec, setting)
        if value in (None, expected) or (spec.range and what == "bits"):
            continue
        if spec.dtype != "uint8" or (what == "channels" and max(value, expected) > len(_CHANNEL_MODES)):
            fix = f"train with data.{setting}={value}, or leave these images out"
            raise BadPicture(f"{where}: has {value} {what}, but data.{setting} is {expected}; {fix}")
        if not spec.convert:
            fix = "--config.data.convert=True (of nvae-generate --convert) converts images as they are read"
            raise BadPicture(f"{where}: has {value} {what}, but data.{setting} is {expected}; {fix}")


def stored_values(images: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Images in [0, 1] in the range of the data set's files, of type `spec.dtype`."""
    if spec.range:
        low, high = spec.range
        return (low + images * (high - low)).astype(spec.dtype)
    return np.rint(np.clip(images, 0.0, 1.0) * (2 ** max(8, spec.num_bits) - 1.0)).astype(spec.dtype)


def fit_images(images: np.ndarray, spec: DataSpec, where: object = "images") -> np.ndarray:
    """Images `[count, height, width, channels]` of the spec's image shape and type, see `in_type`."""
    images = in_type(images, spec, where)
    if spec.crop_box is None and spec.resize == "none" and images.shape[-1] == spec.channels:
        return images
    return np.stack([_fit_pixels(image, spec) for image in images])


def in_type(images: np.ndarray, spec: DataSpec, where: object) -> np.ndarray:
    """Images as `spec.dtype`; uint16 keeps its upper 8 bits as uint8. BadPicture for values beyond the spec's."""
    if spec.dtype == "uint8":
        if images.dtype == np.bool_:
            return images * np.uint8(255)
        return images if images.dtype == np.uint8 else (images >> 8).astype(np.uint8)
    low, high = spec.range or (0, 2**spec.num_bits - 1)
    least, most = float(images.min()), float(images.max())
    if not np.isfinite([least, most]).all():
        raise BadPicture(f"{where}: has NaN (not a number) or infinite values; replace them, as by numpy.nan_to_num")
    if not (low <= least <= most <= high or spec.noise != "none"):
        limit, fix = f"data.num_bits = {spec.num_bits} go to {high}", f"set it to {int(most).bit_length()}"
        if spec.range:
            fix = f"set it to {min(low, least)},{max(high, most)} or wider, or clip the values"
            limit = f"data.range is {low:g},{high:g}"
        raise BadPicture(f"{where}: has values from {least:g} to {most:g}, and {limit}; {fix}")
    return images.astype(spec.dtype, copy=False)


def _fit_pixels(pixels, spec):
    if pixels.shape[-1] != spec.channels:
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture = as_eight_bits(picture, spec.channels, spec.alpha)
        pixels = np.asarray(picture).reshape(*pixels.shape[:2], spec.channels)
    # Each channel by itself: Pillow would take the last of 2 or 4 for an alpha channel and multiply the others by it.
    # It scales no 16 bits but as float32.
    planes = np.moveaxis(pixels if spec.dtype == "uint8" else pixels.astype(np.float32), -1, 0)
    result = np.stack([fitted(Image.fromarray(plane), spec) for plane in planes], axis=-1)
    return (np.rint(result) if spec.dtype == "uint16" else result).astype(spec.dtype)
