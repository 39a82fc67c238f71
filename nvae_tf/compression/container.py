"""The file of lossless compression: magic, version, checksum, a header, and chunks; see docs/compression.md."""

import itertools
import json
import math
import zlib
from typing import Any

from nvae_tf.config import check
from nvae_tf.errors import wrap_read_errors
from nvae_tf.schemas import Field, parsed

MAGIC, VERSION = b"nvc", 1
_LONGEST_HEADER, LARGEST_CHUNK = 2**26, 2**28  # bytes; values of all images of a chunk
_COUNT, _TEXT = Field("whole number", (), 1, 2**40), Field("text")
_HEADER = {
    "images": _COUNT._replace(most=2**24),
    "chunk": _COUNT._replace(most=2**16),
    "shape": Field("whole number", (3,), 1, 2**16),
    "growth": _COUNT,
    "tolerance": Field("number", (), 0.0, 0.1),
    "bins": Field("text", (None,)),
    "sizes": Field("whole number", (None,), 1, 2**40),  # bytes of each chunk
    "coder": _TEXT,
    # Where the model was. Of arrays: the type, the number of axes, the value of the highest level.
    **dict.fromkeys(("model", "dtype"), _TEXT._replace(optional=True)),
    **dict.fromkeys(("axes", "peak"), _COUNT._replace(most=255, optional=True)),
    "labels": Field("whole number", ("images",), -1, 2**31 - 1, optional=True),
    "names": Field("text", ("images",), optional=True),
}
# What nearly every header has, so that packed ones are short.
_WORDS = (
    b'"labels":["names":["dtype":"bool","dtype":"uint8","axes":4,"axes":3,"peak":1,"peak":255,"....................1...'
    b'......","....................2................","],"model":"digits","sizes":[{"images":360,"chunk":500,'
    b'"shape":[64,64,3],"shape":[32,32,3],"shape":[28,28,1],"shape":[16,16,1],"coder":"constriction 0.5","tolerance":'
    b'7.62939453125e-06,"growth":4,"bins":["....'
)


def packed(header: dict[str, Any], chunks: list[bytes]) -> bytes:
    """The file of a header, with `sha256` in hexadecimal digits, and chunks."""
    packer = zlib.compressobj(9, wbits=-15, zdict=_WORDS)
    fields = {name: value for name, value in header.items() if name != "sha256"} | {"sizes": [*map(len, chunks)]}
    text = packer.compress(json.dumps(fields, separators=(",", ":")).encode()) + packer.flush()
    content = bytes.fromhex(header["sha256"]) + text + b"".join(chunks)
    return MAGIC + bytes([VERSION]) + zlib.crc32(content).to_bytes(4, "little") + content


def unpacked(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The header and the chunks of a file; ValueError for other, damaged and newer files."""
    check(data[:3] == MAGIC, "not a file of nvae-compress")
    if data[3:4] != bytes([VERSION]):
        raise ValueError(f"of version {data[3]}, and this package reads {VERSION}" if data[3:] else "cut off")
    with wrap_read_errors("damaged or cut off (", ")"):
        check(zlib.crc32(data[8:]) == int.from_bytes(data[4:8], "little"), "its checksum does not match")
        unpacker = zlib.decompressobj(wbits=-15, zdict=_WORDS)
        header = parsed(unpacker.decompress(data[18:], _LONGEST_HEADER), _HEADER) | {"sha256": data[8:18].hex()}
        images, chunk, ends = header["images"], header["chunk"], [*itertools.accumulate(header["sizes"], initial=0)]
        if len(header["sizes"]) != -(-images // chunk) or ends[-1] != len(unpacker.unused_data):
            raise ValueError("the sizes of its chunks do not match")
        check(min(images, chunk) * math.prod(header["shape"]) <= LARGEST_CHUNK, "its chunks are too large")
    return header, [unpacker.unused_data[start:end] for start, end in itertools.pairwise(ends)]
