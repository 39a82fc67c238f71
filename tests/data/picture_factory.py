"""Files of pictures and arrays whose pixels are known, in every form that the sources take."""

import dataclasses
import io
import struct
import zlib

import numpy as np
import tensorflow as tf
from PIL import ExifTags, Image

from nvae_tf.data import DataSpec, data_spec
from nvae_tf.data.sources import load_split
from nvae_tf.data.spec import complete_spec


def random_pixels(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def png(pixels):
    """The bytes of a PNG file of 1 to 4 channels, `[height, width, channels]`, uint8 or uint16: Pillow writes no 16."""
    return tf.io.encode_png(pixels).numpy()


def png_of_chunks(chunks):
    """The bytes of a PNG file of its chunks, each `(kind, content)`."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def tiff(pixels, order="<", packed=False, **tags):
    """The bytes of a TIFF file of 1 to 4 channels, in strips of five rows; `tags` replace the pixels' tags."""
    height, width, channels = pixels.shape
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    by_channel = tags.get("PlanarConfiguration") == 2
    planes = np.split(pixels, channels, axis=-1) if by_channel else [pixels]
    ordered = pixels.dtype.newbyteorder(order)
    strips = [plane[row : row + 5].astype(ordered).tobytes() for plane in planes for row in range(0, height, 5)]
    strips = [zlib.compress(strip) if packed else strip for strip in strips]
    starts = [8 + sum(map(len, strips[:number])) for number in range(len(strips))]
    values = {
        **dict(ImageWidth=width, ImageLength=height, BitsPerSample=[pixels.dtype.itemsize * 8] * channels),
        **dict(Compression=8 if packed else 1, PhotometricInterpretation=1 if channels < 3 else 2),
        **dict(StripOffsets=starts, SamplesPerPixel=channels, RowsPerStrip=5, StripByteCounts=[*map(len, strips)]),
        **({"ExtraSamples": 2} if channels in (2, 4) else {}),
        **dict(SampleFormat=[kind] * channels, **tags),
    }
    numbers = {ExifTags.Base[name].value: np.atleast_1d(value) for name, value in values.items()}
    end = 8 + sum(map(len, strips))
    entries, behind = b"", b""
    for tag, value in sorted(numbers.items()):
        content = value.astype(f"{order}u4").tobytes()
        if len(content) > 4:
            behind, content = behind + content, struct.pack(f"{order}I", end + 2 + 12 * len(numbers) + 4 + len(behind))
        entries += struct.pack(f"{order}HHI", tag, 4, len(value)) + content
    start = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, end)
    count = struct.pack(f"{order}H", len(numbers))
    return start + b"".join(strips) + count + entries + bytes(4) + behind


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
    start = len(content) // 2 - 4
    return content[:start] + bytes(byte ^ 0x55 for byte in content[start : start + 8]) + content[start + 8 :]


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
    return complete_spec(dataclasses.replace(data_spec("own_images"), path=str(path), **changes))


def values_and_labels(spec):
    """Of both parts, the first value of each image and its label."""
    sources = [load_split(spec, split) for split in ("train", "test")]
    return [(stored_pixels(source)[:, 0, 0, 0].tolist(), source.labels.tolist()) for source in sources]


def stored_pixels(source):
    """All images of a source as its reader gives them, uint8 `[count, height, width, channels]`."""
    return np.asarray(source.reader()(np.arange(source.count)))
