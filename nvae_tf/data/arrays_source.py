"""Images in NumPy files: `.npy`, read as they are needed, or `.npz`, read whole."""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import zipfile
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from nvae_tf.data.geometry import check_array, fit_array
from nvae_tf.data.held_out import held_out
from nvae_tf.data.image_sources import ImageSource, ReadSource, check_memory
from nvae_tf.data.picture_files import PictureHeader
from nvae_tf.data.reports import Report
from nvae_tf.data_spec import DataSpec
from nvae_tf.errors import first_line

_BITS = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 16, np.dtype(np.bool_): 8}
_ENDING = ".npy"
# NumPy refuses longer headers.
_LONGEST_HEADER = 2**14


class ArrayHeader(NamedTuple):
    """What the header of an array in NumPy's format says.

    Attributes:
        shape: of the array.
        dtype: of its values.
        problem: why the values can't be read; None if they are all there.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    problem: str | None


def read_array_header(stream: BinaryIO, size: int) -> ArrayHeader:
    """Reads the header of an array, and nothing else of it.

    Args:
        stream: the array, from its beginning.
        size: all bytes of it; the header is held against this.

    Raises:
        Exception: what NumPy, or reading the stream, raises for damaged headers, of many kinds.
    """
    start = io.BytesIO(stream.read(_LONGEST_HEADER))
    version = np.lib.format.read_magic(start)
    read = {(1, 0): np.lib.format.read_array_header_1_0}.get(version, np.lib.format.read_array_header_2_0)
    shape, _, dtype = read(start)
    promised = start.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        problem = "it has Python objects"
    elif min(shape, default=0) < 0 or promised != size:
        problem = f"its header says {dtype} {list(shape)}, {promised:,} bytes in all, and there are {size:,}"
    else:
        problem = None
    return ArrayHeader(shape, dtype, problem)


def map_array(file: str | os.PathLike) -> np.ndarray:
    """The array of a whole `.npy` file, to be read as it is needed.

    Raises:
        Exception: see `read_array_header`.
        ValueError: the file is not whole, or has Python objects.
    """
    with open(file, "rb") as stream:
        header = read_array_header(stream, os.path.getsize(file))
    if header.problem:
        raise ValueError(header.problem)
    return np.load(file, mmap_mode="r", allow_pickle=False)


@dataclasses.dataclass(frozen=True)
class _StoredArray:
    """An array in a `.npy` file, or in an entry of a `.npz` file; nothing is read before it is asked for."""

    file: pathlib.Path
    entry: str | None = None

    def header(self) -> ArrayHeader:
        """What its header says."""
        try:
            with self._opened() as (stream, size):
                return read_array_header(stream, size)
        # NumPy, zipfile and zlib raise errors of many kinds for damaged files.
        except Exception as error:
            raise self.damaged(first_line(error)) from None

    def read(self) -> np.ndarray:
        """The array, which has no problem by its header: mapped where it can be, otherwise in memory."""
        header = self.header()
        if self.entry is not None:
            size = math.prod(header.shape) * header.dtype.itemsize
            check_memory(size, f"{self.file}: its images", "numpy.save them as a .npy file, which is not read whole")
        try:
            if self.entry is None:
                return map_array(self.file)
            with self._opened() as (stream, _):
                return np.lib.format.read_array(stream, allow_pickle=False)
        except Exception as error:
            raise self.damaged(first_line(error)) from None

    def damaged(self, reason: str) -> ValueError:
        """The error that says so."""
        if self.entry is None:
            return ValueError(f"{self.file}: not a whole NumPy file of plain numbers ({reason}); numpy.save writes one")
        return ValueError(f"{self.file}: a damaged .npz file, or one with Python objects ({self.entry}: {reason})")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[BinaryIO, int]]:
        """The array's bytes and their number."""
        if self.entry is None:
            with self.file.open("rb") as stream:
                yield stream, self.file.stat().st_size
        else:
            with zipfile.ZipFile(self.file) as archive, archive.open(self.entry) as stream:
                yield stream, archive.getinfo(self.entry).file_size


def first_image(spec: DataSpec) -> PictureHeader:
    """What the images of the training part are like, by the header of their array.

    Raises:
        ValueError: see `load`.
    """
    _, header, _ = _part(spec, "train")
    return PictureHeader(*header.shape[1:], _bits(header.dtype))


def load(spec: DataSpec, split: str, report: Report) -> ImageSource:
    """Opens one part of the images.

    `path` is a `.npy` file with all images; a `.npz` file with one array of images, or with arrays called
    `train_split` and `test_split` (or `x_train` and `x_test`); or a folder with `train.npy` and `test.npy`. Arrays are
    uint8, uint16 or bool, `[count, height, width, channels]` or `[count, height, width]`. Where there is no test part,
    a fraction of the images is held out. Of other arrays no more than the headers are read.

    Args:
        spec: a complete spec with source "arrays".
        split: "train" or "test".
        report: not used; opening takes no time.

    Raises:
        ValueError: a file is damaged or has no such arrays, its images are of another size or type, or there is too
            little memory for those of a `.npz` file.
    """
    del report
    stored, header, numbers = _part(spec, split)
    images = stored.read().reshape(header.shape)
    check_array(images, spec, spec.path)
    if not isinstance(images, np.memmap):
        # Of what lies in memory, only this part.
        images, numbers = images[numbers], np.arange(len(numbers))

    def read(chosen):
        return fit_array(_eight_bits(images[numbers[chosen]]), spec)

    return ReadSource(len(numbers), spec.image_shape, read)


def holds_out(spec: DataSpec) -> bool:
    """Whether the test images are a random part of all, because there are no arrays for the parts.

    Raises:
        ValueError: the file is damaged.
    """
    arrays = _arrays_at(pathlib.Path(spec.path))
    return not any(arrays.keys() >= set(names) for names in _names_of_parts(spec))


def _names_of_parts(spec: DataSpec) -> tuple[tuple[str, str], ...]:
    return (spec.train_split, spec.test_split), ("x_train", "x_test")


def _part(spec: DataSpec, split: str) -> tuple[_StoredArray, ArrayHeader, np.ndarray]:
    """The array that has the images of a part, its header, and the numbers of those that belong to the part."""
    path = pathlib.Path(spec.path)
    arrays = _arrays_at(path)
    for names in _names_of_parts(spec):
        if arrays.keys() >= set(names):
            stored = arrays[names[("train", "test").index(split)]]
            header = _checked(path, stored, stored.header())
            return stored, header, np.arange(header.shape[0])
    headers = {name: stored.header() for name, stored in arrays.items()}
    candidates = [name for name, header in headers.items() if len(header.shape) >= 3]
    if len(headers) == 1 and not candidates:
        candidates = [*headers]
    if len(candidates) != 1:
        raise ValueError(
            f"{path}: has the arrays {', '.join(arrays) or '(none)'}; there must be one array of images, or two that "
            f"are called {spec.train_split} and {spec.test_split} (settings data.train_split and data.test_split)"
        )
    (name,) = candidates
    header = _checked(path, arrays[name], headers[name])
    chosen = held_out([str(number) for number in range(header.shape[0])], spec)
    return arrays[name], header, np.array(chosen[("train", "test").index(split)])


def _arrays_at(path: pathlib.Path) -> dict[str, _StoredArray]:
    """All arrays of a folder or a file, by name."""
    if path.is_dir():
        return {file.stem: _StoredArray(file) for file in sorted(path.glob(f"*{_ENDING}"))}
    with path.open("rb") as file:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
            return {path.stem: _StoredArray(path)}
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            for name in names:
                # Looks whether the entry has the same name: a damaged one could hide an array.
                archive.open(name).close()
    except Exception as error:
        raise _StoredArray(path).damaged(first_line(error)) from None
    # Other entries are not arrays: a text about them.
    return {name.removesuffix(_ENDING): _StoredArray(path, name) for name in names if name.endswith(_ENDING)}


def _checked(path: pathlib.Path, stored: _StoredArray, header: ArrayHeader) -> ArrayHeader:
    """The header with the shape `[count, height, width, channels]`.

    Raises:
        ValueError: the array is not whole, or not of images.
    """
    if header.problem:
        raise stored.damaged(header.problem)
    shape = header.shape
    if len(shape) < 3:
        raise ValueError(
            f"{path}: the array's shape {list(shape)} is not [count, height, width, channels] or [count, height, "
            "width]; reshape it"
        )
    if len(shape) == 3 and shape[-1] in (2, 3, 4):
        raise ValueError(
            f"{path}: the array {list(shape)} seems to be a single image; a set of images has one axis more: "
            "[count, height, width, channels]"
        )
    if len(shape) == 3:
        shape = (*shape, 1)
    if len(shape) == 4 and shape[-1] not in (1, 2, 3, 4) and shape[1] in (1, 2, 3, 4):
        raise ValueError(
            f"{path}: the array {list(shape)} seems to have its channels first; they must be last: "
            "images.transpose(0, 2, 3, 1)"
        )
    if len(shape) != 4 or shape[-1] not in (1, 2, 3, 4) or 0 in shape:
        raise ValueError(
            f"{path}: the array's shape {list(shape)} is not [count, height, width, channels] with 1 to 4 "
            "channels, or [count, height, width]"
        )
    if header.dtype.newbyteorder("=") not in _BITS:
        raise ValueError(
            f"{path}: the array is of type {header.dtype}; images are uint8 (0 to 255), uint16 (0 to 65535) or bool. "
            "From floats in [0, 1]: numpy.round(images * 255).astype('uint8')"
        )
    return header._replace(shape=shape)


def _bits(dtype):
    return _BITS[dtype.newbyteorder("=")]


def _eight_bits(images):
    if _bits(images.dtype) == 16:
        return (images >> 8).astype(np.uint8)
    return images.astype(np.uint8) * np.uint8(255) if images.dtype == np.bool_ else images
