"""The file: magic and version, a header, chunks that are decoded independently of each other, an index.

    4 bytes    `nvc` and the version, 1
    2 bytes    the length of the header; the header: JSON, packed by zlib with the dictionary `_WORDS`
    chunks     one after another, each with its own checksum (codec.py)
    index      packed alike: JSON with the lengths of the chunks, the names and the classes of the images
    8 bytes    where the index begins, and the CRC-32 of all before but the chunks

Numbers are little endian. Sections are unpacked to at most `_LARGEST` bytes, and no size in them is believed before it
is checked.
"""

import json
import math
import struct
import zlib
from collections.abc import Iterable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nvae_tf.errors import wrap_read_errors
from nvae_tf.schemas import Field, checked, parsed

MAGIC, VERSION = b"nvc", 1
_LARGEST = 2**26
LARGEST_CHUNK = 2**28  # values of all images of a chunk
_COUNT = Field("whole number", (), 1, 2**40)
HEADER = {
    "images": _COUNT,
    "chunk": _COUNT._replace(most=2**16),
    "batch": _COUNT._replace(most=2**10),
    "growth": _COUNT,
    "tolerance": Field("number", (), 0.0, 0.1),
    "shape": Field("whole number", (3,), 1, 2**16),
    "bins": Field("text", (None,)),
    **dict.fromkeys(("sha256", "coder"), Field("text")),
    # The place of the model. Of files: pictures, uint8 or bool; the axes of an array; the value of the highest level.
    **dict.fromkeys(("model", "form"), Field("text", optional=True)),
    "axes": Field("whole number", (), 3, 4, optional=True),
    "peak": Field("whole number", (), 1, 255, optional=True),
}
INDEX = {
    "chunks": Field("whole number", (None,), 1, 2**40),
    "labels": Field("whole number", ("images",), -1, 2**31 - 1, optional=True),
    "names": Field("text", ("images",), optional=True),
}
# What nearly every header has, so that packed ones are short.
_WORDS = (
    b'{"names":["labels":[{"chunks":[{"bins":["..2....0.","1.......",".........."],"coder":"constriction 0.5",'
    b'"form":"pixels","shape":[64,64,3],"axes":4,"peak":255,"shape":[32,32,3],"shape":[28,28,1],"shape":[16,16,1],'
    b'"images":1000,"chunk":500,"batch":64,"growth":2,"tolerance":1.52587890625e-05,"model":"digits","sha256":"'
)


class Archive(NamedTuple):
    """What a file says of itself; `chunks` are where each begins and ends."""

    header: dict[str, Any]
    index: dict[str, Any]
    chunks: list[tuple[int, int]]
    size: int  # of the file, in bytes


def write(file: BinaryIO, header: dict[str, Any], chunks: Iterable[bytes], about: dict[str, Any]) -> None:
    """Writes a file; `about` are lists for the index."""
    packed = _packed(header)
    start = MAGIC + struct.pack("<BH", VERSION, len(packed)) + packed
    file.write(start)
    lengths = [file.write(chunk) for chunk in chunks]
    index = _packed(about | {"chunks": lengths})
    file.write(index + struct.pack("<II", len(start) + sum(lengths), zlib.crc32(start + index)))


def read(file: BinaryIO) -> Archive:
    """The parts of a file but its chunks; ValueError for other, damaged and newer files."""
    size = file.seek(0, 2)
    file.seek(0)
    start = file.read(4)
    if start[:3] != MAGIC:
        raise ValueError("not a file of nvae-compress")
    if start[3:] != bytes([VERSION]):
        raise ValueError(f"of version {start[3] if start[3:] else '(cut off)'}, and this package reads {VERSION}")
    with wrap_read_errors("damaged or cut off (", ")"):
        start += file.read(2)
        start += file.read(int.from_bytes(start[4:], "little"))
        file.seek(size - 8)
        place, checksum = struct.unpack("<II", file.read(8))
        file.seek(place)
        index = file.read(min(max(0, size - 8 - place), _LARGEST))
        if zlib.crc32(start + index) != checksum:
            raise ValueError("its checksum does not match")
        header = parsed(_unpacked(start[6:]), HEADER)
        about = checked(json.loads(_unpacked(index)), INDEX, sizes={"images": header["images"]})
        ends = [len(start), *(len(start) + np.cumsum(about["chunks"])).tolist()]
        if ends[-1] != place or len(about["chunks"]) != -(-header["images"] // header["chunk"]):
            raise ValueError("the lengths of its chunks do not match")
        if min(header["images"], header["chunk"]) * math.prod(header["shape"]) > LARGEST_CHUNK:
            raise ValueError("its chunks are too large")
    return Archive(header, about, list(zip(ends, ends[1:], strict=False)), size)


def _packed(content: dict[str, Any]) -> bytes:
    packer = zlib.compressobj(9, wbits=-15, zdict=_WORDS)
    return packer.compress(json.dumps(content, separators=(",", ":")).encode()) + packer.flush()


def _unpacked(section: bytes) -> bytes:
    unpacker = zlib.decompressobj(wbits=-15, zdict=_WORDS)
    content = unpacker.decompress(section, _LARGEST)
    if not unpacker.eof:
        raise ValueError("a section is too long")
    return content
