"""Files of pictures and arrays whose pixels are known, in every form that the sources take; PNGs by our own writer."""

import dataclasses
import io
import struct
import zlib

import numpy as np
from PIL import Image

from nvae_tf.data import DataSpec, data_spec
from nvae_tf.data.completion import complete_spec

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# PNG's color type by the number of channels: gray, gray and alpha, RGB, RGBA.
_PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def random_pixels(*shape, dtype=np.uint8, seed=0):
    """Whole numbers over the whole range of the type."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def png(pixels):
    """The bytes of a PNG file of 1 to 4 channels, `[height, width, channels]`, uint8 or uint16: Pillow writes no 16."""
    height, width, channels = pixels.shape
    bits = pixels.dtype.itemsize * 8
    header = struct.pack(">IIBBBBB", width, height, bits, _PNG_COLOUR_TYPES[channels], 0, 0, 0)
    # Each row begins with its filter, 0 for none.
    rows = b"".join(b"\0" + row.astype(row.dtype.newbyteorder(">")).tobytes() for row in pixels)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(_png_chunk(kind, content) for kind, content in chunks)


def _png_chunk(kind, content):
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def encoded(picture, kind, **options):
    """The bytes of a file that Pillow writes, of a picture or of pixels `[height, width, channels]`."""
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def with_palette(numbers, colors):
    """A picture of mode P: `numbers` `[height, width]` of `colors` `[count, 3]`."""
    picture = Image.frombytes("P", numbers.shape[::-1], numbers.astype(np.uint8).tobytes())
    picture.putpalette(colors.astype(np.uint8).tobytes())
    return picture


def damaged_in_the_middle(content):
    """A file whose header and end are as they were: nobody sees the damage before the pixels are read."""
    middle = len(content) // 2
    return (
        content[: middle - 4] + bytes(byte ^ 0x55 for byte in content[middle - 4 : middle + 4]) + content[middle + 4 :]
    )


def write_files(folder, contents):
    """Writes files `{name: bytes}`, names may have sub-folders, and returns the folder."""
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def write_numbered(folder, count, first=0, size=(4, 4)):
    """Gray PNGs `000.png`, ... whose pixels are all their own number."""
    names = range(first, first + count)
    return write_files(folder, {f"{number:03d}.png": png(np.full((*size, 1), number, np.uint8)) for number in names})


def idx(values):
    """The bytes of an IDX file: two zero bytes, the type (8 for bytes), the number of dimensions, sizes, values."""
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes((0, 0, 8, values.ndim)) + sizes + values.astype(np.uint8).tobytes()


def own_images(path, **changes) -> DataSpec:
    """The complete spec of whatever lies at a path."""
    return complete_spec(dataclasses.replace(data_spec("own_images"), path=str(path), **changes))


def stored_pixels(source):
    """All images of a source as its reader gives them, uint8 `[count, height, width, channels]`."""
    return np.asarray(source.reader()(np.arange(source.count)))
