"""The files of lossless compression: the compressed one, and sets of images, which come back exactly as they were.

A compressed file has magic, version, checksum, a header, and chunks; docs/compression.md has their table.
"""

import itertools
import json
import math
import pathlib
import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nvae_tf.config import ModelConfig
from nvae_tf.data import pictures
from nvae_tf.data.array_files import stored_images
from nvae_tf.errors import wrap_read_errors
from nvae_tf.files import atomic_file, atomic_folder, check_new_file, check_new_folder
from nvae_tf.generation.image_grid import picture_names, write_png
from nvae_tf.schemas import Field, parsed, write_arrays

MAGIC, VERSION = b"nvc", 1
_LONGEST_HEADER, LARGEST_CHUNK = 2**26, 2**28  # bytes; values of all images of a chunk
_COUNT, _TEXT = Field("whole number", (), 1, 2**40), Field("text")
_HEADER = {
    "images": _COUNT,
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
_FIX = "a lossless file neither resizes nor converts: change the images, or take a model of their kind"


def packed(header: dict[str, Any], chunks: list[bytes]) -> bytes:
    """The file of a header, with `sha256` in hexadecimal digits, and chunks."""
    packer = zlib.compressobj(9, wbits=-15, zdict=_WORDS)
    fields = {name: value for name, value in header.items() if name != "sha256"} | {"sizes": [*map(len, chunks)]}
    text = packer.compress(json.dumps(fields, separators=(",", ":")).encode()) + packer.flush()
    content = bytes.fromhex(header["sha256"]) + text + b"".join(chunks)
    return MAGIC + bytes([VERSION]) + zlib.crc32(content).to_bytes(4, "little") + content


def unpacked(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """The header and the chunks of a file; ValueError for other, damaged and newer files."""
    if data[:3] != MAGIC:
        raise ValueError("not a file of nvae-compress")
    if data[3:4] != bytes([VERSION]):
        raise ValueError(f"of version {data[3] if data[3:] else '(cut off)'}, and this package reads {VERSION}")
    with wrap_read_errors("damaged or cut off (", ")"):
        if zlib.crc32(data[8:]) != int.from_bytes(data[4:8], "little"):
            raise ValueError("its checksum does not match")
        unpacker = zlib.decompressobj(wbits=-15, zdict=_WORDS)
        header = parsed(unpacker.decompress(data[18:], _LONGEST_HEADER), _HEADER) | {"sha256": data[8:18].hex()}
        images, chunk, ends = header["images"], header["chunk"], np.cumsum([0, *header["sizes"]]).tolist()
        if len(header["sizes"]) != -(-images // chunk) or ends[-1] != len(unpacker.unused_data):
            raise ValueError("the sizes of its chunks do not match")
        if min(images, chunk) * math.prod(header["shape"]) > LARGEST_CHUNK:
            raise ValueError("its chunks are too large")
    return header, [unpacker.unused_data[start:end] for start, end in itertools.pairwise(ends)]


def read_set(
    place: str, config: ModelConfig, class_names: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray | None, dict[str, Any]]:
    """The levels of images, uint8 `[count, height, width, channels]`, their classes, and what their files need besides.

    `place` is a folder of pictures, which are of the class that their folder is called, or an array file: .npy, .npz
    (with `labels`), or IDX. ValueError for images of another kind than the model's: they would not come back.
    """
    path, shape = pathlib.Path(place).expanduser(), config.image_shape
    if path.is_dir():
        names = pictures.list_pictures(path)
        if not names:
            raise ValueError(f"{path}: no pictures in it; of arrays and IDX files give the file itself")
        picture_names(names)  # names that can't be written again are refused now
        values, peak, about = np.stack([_pixels(path / name, shape) for name in names]), 255, {"names": names}
        folders, labels = [name.partition("/")[0] for name in names], None
        if class_names and {*folders} <= {*class_names}:
            labels = np.array([class_names.index(folder) for folder in folders], np.int32)
    elif path.is_file():
        values, labels, axes = stored_images(path)
        if values.shape[1:] != shape:
            sizes = ["x".join(map(str, each)) for each in (values.shape[1:], shape)]
            raise ValueError(f"{path}: its images are {sizes[0]}, and the model takes {sizes[1]}; {_FIX}")
        # Levels may be stored as they are, or spread over 8 bits as in pictures.
        peak = 2**config.num_bits - 1 if values.max() < 2**config.num_bits else 255
        about = {"dtype": values.dtype.name, "axes": axes, "peak": peak}
    else:
        raise FileNotFoundError(f"{path}: no such file or folder of images")
    table = values_of_levels(config.num_bits, peak)
    levels = np.searchsorted(table, values).astype(np.uint8)
    is_other = table.take(levels, mode="clip") != values
    if is_other.any():
        number, value = np.argwhere(is_other)[0][0], values[is_other][0]
        fault = f"image {number} has the value {value}, none of the model's {len(table)} levels"
        raise ValueError(f"{path}: {fault} ({', '.join(map(str, table[:3]))}...); {_FIX}")
    return levels, labels, about


def _pixels(path: pathlib.Path, shape: tuple[int, int, int]) -> np.ndarray:
    header = pictures.read_header(path)
    if header != (*shape, 8):
        kinds = ["{}x{}x{} of {} bits".format(*each) for each in (header, (*shape, 8))]
        raise ValueError(f"{path}: is {kinds[0]}, and the model takes {kinds[1]}; {_FIX}")
    return np.asarray(pictures.read_picture(path, shape[2])).reshape(shape)


def values_of_levels(num_bits: int, peak: int) -> np.ndarray:
    """The stored value of each level, uint8: spread evenly from 0 to `peak`."""
    return np.rint(np.linspace(0, peak, 2**num_bits)).astype(np.uint8)


def check_output(output: pathlib.Path) -> None:
    """ValueError where no set can be written: to a new folder, or a new .npy or .npz file."""
    is_file = output.suffix in (".npy", ".npz")
    (check_new_file if is_file else check_new_folder)(output, f"--output={output}")


def write_set(output: pathlib.Path, chunks: Iterable[np.ndarray], num_bits: int, header: dict[str, Any]) -> None:
    """Writes levels, chunk after chunk, to a folder of PNG files, or to a .npy or .npz file, whole or not at all."""
    if output.suffix not in (".npy", ".npz"):
        if header["shape"][-1] > 4:
            raise ValueError(f"{output}: pictures have up to 4 channels, and these have more; give a .npy file")
        table, count = values_of_levels(num_bits, 255), header["images"]
        names = iter(picture_names(header.get("names") or [f"image_{number:06d}" for number in range(count)]))
        with atomic_folder(output, lambda: check_output(output)) as folder:
            for levels in chunks:
                for image in table[levels]:
                    write_png(folder / next(names), image)
        return
    images = values_of_levels(num_bits, header.get("peak", 255))[np.concatenate(list(chunks))]
    images = images[..., 0] if header.get("axes") == 3 else images
    images = images.astype({"bool": bool, "uint16": np.uint16}.get(header.get("dtype"), np.uint8))
    if output.suffix == ".npz":
        lists = {name: np.array(header[name]) for name in ("labels", "names") if name in header}
        return write_arrays(output, {"images": images, **lists})
    with atomic_file(output) as partial, partial.open("wb") as stream:
        np.save(stream, images)
