"""Images in files of arrays: NumPy's `.npy` (read on demand) and `.npz`, MNIST's IDX files, OMNIGLOT's MATLAB file.

Images of other sources can be decoded once into such a file: see `decoded_once`.
"""

import contextlib
import gzip
import hashlib
import math
import os
import pathlib
import re
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from nvae_tf.config import DataSpec, check
from nvae_tf.data.pictures import PictureHeader, check_form, check_size, fit_pixels, fits, report_conversion
from nvae_tf.data.sources import ArraySource, ImageSource, ReadSource, check_memory, class_numbers, held_out
from nvae_tf.errors import wrap_read_errors
from nvae_tf.files import ArrayHeader, atomic_file, check_writable, read_array_header
from nvae_tf.progress import Report, counted

_BITS = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 16, np.dtype(np.bool_): 8}
_IDX_WORDS = {"train": ("train",), "test": ("t10k", "test")}
_MAT_FILE, _MAT_SIZE = "chardata.mat", 28
# To be raised whenever the code makes other pixels of the same pictures: all are then decoded again.
_DECODED_FORM = 3
# What decides about the pixels, besides the files.
_PIXEL_SETTINGS = (
    *("source", "source_name", "train_split", "test_split", "test_fraction", "split_seed"),
    *("height", "width", "channels", "file_bits", "convert", "crop_box", "resize", "on_bad_file", "max_pixels"),
)


class _StoredArray(NamedTuple):
    """An array in a `.npy` file, or in an entry of a `.npz` file."""

    file: pathlib.Path
    entry: str | None = None

    def header(self) -> ArrayHeader:
        with self.opened() as (stream, size):
            return read_array_header(stream, size)

    def read(self, header: ArrayHeader) -> np.ndarray:
        """The array, whose header has no problem: mapped where it can be, otherwise in memory."""
        if self.entry is None:
            with self.naming_damage():
                return np.load(self.file, mmap_mode="r", allow_pickle=False)
        size = math.prod(header.shape) * header.dtype.itemsize
        check_memory(size, f"{self.file}: its images", "numpy.save them as a .npy file, which is read only as needed")
        with self.opened() as (stream, _):
            return np.lib.format.read_array(stream, allow_pickle=False)

    def naming_damage(self) -> contextlib.AbstractContextManager[None]:
        if self.entry is None:
            what = f"{self.file}: not a complete NumPy file of plain numbers ("
            return wrap_read_errors(what, "); numpy.save writes one")
        what = f"{self.file}: a damaged .npz file, or one with Python objects ({self.entry}: "
        return wrap_read_errors(what, ")")

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[BinaryIO, int]]:
        """The array's bytes and their number."""
        with self.naming_damage():
            if self.entry is None:
                with self.file.open("rb") as stream:
                    yield stream, self.file.stat().st_size
            else:
                with zipfile.ZipFile(self.file) as archive, archive.open(self.entry) as stream:
                    yield stream, archive.getinfo(self.entry).file_size


def first_arrays_image(spec: DataSpec) -> PictureHeader:
    """What the images of the training part are like, by the header of their array."""
    _, header, _ = _part(spec, "train")
    return PictureHeader(*header.shape[1:], _bits(header.dtype))


def load_arrays(spec: DataSpec, split: str, report: Report) -> ImageSource:
    """One part of the images at `path`.

    That is a `.npy` file with all images; a `.npz` file with one array of images, or with arrays called
    `train_split` and `test_split` (or `x_train` and `x_test`); or a folder with `train.npy` and `test.npy`. Arrays are
    uint8, uint16 or bool, `[count, height, width, channels]` or `[count, height, width]`. Where there is no test part,
    a fraction of the images is held out. Of other arrays no more than the headers are read, but for the labels, see
    `_array_of_labels`.
    """
    stored, header, numbers = _part(spec, split)
    images = stored.read(header).reshape(header.shape)
    _check_images(images, spec, spec.path)
    form = spec.seen_channels(images.shape[3]), _bits(images.dtype)
    report_conversion({form: len(numbers)}, spec, report)
    labels = _array_of_labels(spec, stored, len(images))[numbers] if spec.labels else None
    if not isinstance(images, np.memmap):
        # Of what lies in memory, only this part.
        images, numbers = images[numbers], np.arange(len(numbers))

    def read(chosen):
        chosen_images = images[numbers[chosen]]
        if _bits(chosen_images.dtype) == 16:
            chosen_images = (chosen_images >> 8).astype(np.uint8)
        elif chosen_images.dtype == np.bool_:
            chosen_images = chosen_images.astype(np.uint8) * np.uint8(255)
        return _fitted(chosen_images, spec)

    source = ReadSource(len(numbers), spec.image_shape, read)
    return source.labeled(labels, arrays_classes(spec)) if spec.labels else source


def arrays_classes(spec: DataSpec) -> tuple[str, ...]:
    """The names of the classes, which are numbers: those of the array with the training images."""
    stored, header, _ = _part(spec, "train")
    return _numbered_classes(_array_of_labels(spec, stored, header.shape[0]), spec)


def _numbered_classes(labels, spec):
    """Their numbers as names, to the largest of the labels, or further to `data.num_classes`."""
    return tuple(map(str, range(max(int(labels.max()) + 1, spec.num_classes or 0))))


def _array_of_labels(spec: DataSpec, images: _StoredArray, count: int) -> np.ndarray:
    """The labels of an array of images: those of `train` are `train_labels`, of `x_train` `y_train`, else `labels`."""
    name = images.entry.removesuffix(".npy") if images.entry else images.file.stem
    labels_of_parts = {part: f"{part}_labels" for part in (spec.train_split, spec.test_split)}
    wanted = (labels_of_parts | {"x_train": "y_train", "x_test": "y_test"}).get(name, "labels")
    stored = _arrays_at(pathlib.Path(spec.path)).get(wanted)
    fix = f"numpy.savez('set.npz', {name}=..., {wanted}=...) writes both: whole numbers from 0, one an image"
    check(stored is not None, f"data.labels = True: {spec.path} has no array {wanted!r} beside {name!r}; {fix}")
    header = stored.header()
    with stored.naming_damage():
        check(not header.problem, header.problem)
    return class_numbers(np.asarray(stored.read(header)), count, f"{spec.path}: {wanted!r}")


def arrays_holds_out(spec: DataSpec) -> bool:
    """Whether the test images are a random part of all, because there are no arrays for the parts."""
    names_in_file = _arrays_at(pathlib.Path(spec.path)).keys()
    return not any(names_in_file >= set(names) for names in _names_of_parts(spec))


def _names_of_parts(spec):
    return (spec.train_split, spec.test_split), ("x_train", "x_test")


def _part(spec: DataSpec, split: str) -> tuple[_StoredArray, ArrayHeader, np.ndarray]:
    """The array that has the images of a part, its header, and the numbers of those that belong to the part."""
    path, part = pathlib.Path(spec.path), ("train", "test").index(split)
    arrays = _arrays_at(path)
    for names in _names_of_parts(spec):
        if arrays.keys() >= set(names):
            stored = arrays[names[part]]
            header = _checked(path, stored, stored.header())
            return stored, header, np.arange(header.shape[0])
    headers = {name: stored.header() for name, stored in arrays.items()}
    candidates = [name for name, header in headers.items() if len(header.shape) >= 3]
    if len(headers) == 1 and not candidates:
        candidates = [*headers]
    present, settings = ", ".join(arrays) or "(none)", "(settings data.train_split and data.test_split)"
    needed = f"one array of images, or two that are called {spec.train_split} and {spec.test_split} {settings}"
    check(len(candidates) == 1, f"{path}: has the arrays {present}; there must be {needed}")
    (name,) = candidates
    header = _checked(path, arrays[name], headers[name])
    chosen = held_out([str(number) for number in range(header.shape[0])], spec)
    return arrays[name], header, np.array(chosen[part])


def _arrays_at(path: pathlib.Path) -> dict[str, _StoredArray]:
    """All arrays of a folder or a file, by name."""
    if path.is_dir():
        return {file.stem: _StoredArray(file) for file in sorted(path.glob("*.npy"))}
    with path.open("rb") as file:
        if file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
            return {path.stem: _StoredArray(path)}
    with _StoredArray(path).naming_damage(), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        for name in names:
            # Checks that the entry has the same name: a damaged one could hide an array.
            archive.open(name).close()
    # Other entries are not arrays: a text about them.
    return {name.removesuffix(".npy"): _StoredArray(path, name) for name in names if name.endswith(".npy")}


def _checked(path: pathlib.Path, stored: _StoredArray, header: ArrayHeader) -> ArrayHeader:
    """The header of images, with the shape `[count, height, width, channels]`."""
    with stored.naming_damage():
        check(not header.problem, header.problem)
    shape = header.shape
    array = f"{path}: the array {list(shape)} seems"
    if len(shape) == 3 and shape[-1] in (2, 3, 4):
        raise ValueError(f"{array} to be a single image; a set of images has one axis more, the first: their count")
    if len(shape) == 3:
        shape = (*shape, 1)
    if len(shape) == 4 and shape[-1] not in (1, 2, 3, 4) and shape[1] in (1, 2, 3, 4):
        raise ValueError(f"{array} to have its channels first; they must be last: images.transpose(0, 2, 3, 1)")
    form = "[count, height, width, channels] with 1 to 4 channels, or [count, height, width]; reshape it"
    fits = len(shape) == 4 and shape[-1] in (1, 2, 3, 4) and 0 not in shape
    check(fits, f"{path}: the array's shape {list(shape)} is not {form}")
    types = "images are uint8 (0 to 255), uint16 (0 to 65535) or bool"
    fix = "From floats in [0, 1]: numpy.round(images * 255).astype('uint8')"
    check(header.dtype.newbyteorder("=") in _BITS, f"{path}: the array is of type {header.dtype}; {types}. {fix}")
    return header._replace(shape=shape)


def _bits(dtype):
    return _BITS[dtype.newbyteorder("=")]


def _check_images(images: np.ndarray, spec: DataSpec, where: object) -> None:
    check_size(f"{where}: each image", *images.shape[1:3], spec)
    check_form(where, images.shape[3], _bits(images.dtype), spec)
    if _bits(images.dtype) == 16 and not any((image > 255).any() for image in images):
        scale = "uint16 goes from 0 for black to 65535 for white, so that all of them would be black"
        raise ValueError(f"{where}: no value is above 255, and {scale}; if 255 is white: images.astype('uint8')")


def _fitted(images: np.ndarray, spec: DataSpec) -> np.ndarray:
    return images if fits(images, spec) else np.stack([fit_pixels(image, spec) for image in images])


def first_idx_image(spec: DataSpec) -> PictureHeader:
    """What the images of the training part are like: gray, 8 bits."""
    return PictureHeader(*_read_idx(_idx_file(spec, "train")).shape[1:], 1, 8)


def load_idx(spec: DataSpec, split: str, _: Report) -> ImageSource:
    """One part of a folder of `*-ubyte` or `*-ubyte.gz` files, in memory.

    Where a folder has several sets, `source_name` is how the names of the right files begin (`emnist-letters`).
    """
    file = _idx_file(spec, split)
    images = _read_idx(file)[..., np.newaxis]
    _check_images(images, spec, file)
    source = ArraySource(_fitted(images, spec))
    return source.labeled(_idx_labels(file, len(images)), idx_classes(spec)) if spec.labels else source


def idx_classes(spec: DataSpec) -> tuple[str, ...]:
    """The names of the classes, which are numbers: those of the training part."""
    return _numbered_classes(_idx_labels(_idx_file(spec, "train")), spec)


def _idx_labels(images: pathlib.Path, count: int | None = None) -> np.ndarray:
    """The labels of a file of images, from that with `labels-idx1` in its name; packed or not, as it is there."""
    name = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    files = [file for file in (images.with_name(name), images.with_name(f"{name}.gz")) if file.is_file()]
    check(bool(files), f"data.labels = True: {images.parent} has no {name} (or ....gz) beside {images.name}; add it")
    labels = _read_idx(files[0], 1)
    return class_numbers(labels, len(labels) if count is None else count, files[0])


def _idx_file(spec, split):
    files = [
        file
        for file in sorted(pathlib.Path(spec.path).glob("*images*"))
        if file.name.removesuffix(".gz").endswith("ubyte") and any(word in file.name for word in _IDX_WORDS[split])
    ]
    # A name that no file has belongs to another kind of source.
    files = [file for file in files if file.name.startswith(spec.source_name or "")] or files
    # The same file packed and unpacked is one.
    if len({file.name.removesuffix(".gz") for file in files}) == 1:
        return files[0]
    names = ", ".join(file.name for file in files)
    fix = "set --config.data.source_name to how the right one's name begins"
    check(not files, f"{spec.path}: several files could be the {split} images: {names}; {fix}")
    name = f"{_IDX_WORDS[split][0]}-images-idx3-ubyte or ...-ubyte.gz"
    raise ValueError(f"{spec.path}: no file is the {split} images in IDX format; it is called like {name}")


def _read_idx(file, dimensions=3):
    """The images `[count, height, width]` of an IDX file, or with one dimension its labels `[count]`.

    It has two zero bytes, the type (8 for bytes), the number of dimensions, their sizes, the values.
    """
    packed, what = file.suffix == ".gz", "images" if dimensions == 3 else "labels"
    try:
        with gzip.open(file) if packed else file.open("rb") as stream:
            header = stream.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or tuple(header[:4]) != (0, 0, 8, dimensions):
                raise ValueError(f"{file}: not an IDX file of bytes with {counted(dimensions, 'dimension')}")
            shape = tuple(int(size) for size in np.frombuffer(header, ">u4", dimensions, offset=4))
            said, count = " x ".join(map(str, shape)), math.prod(shape)
            check_memory(count, f"{file}: its {what}, {said} as its header says,", "write them to a .npy file")
            # gzip makes of one byte 1,032 at most; room for what can't be there would be made before it is missed.
            if count > file.stat().st_size * (1032 if packed else 1):
                raise ValueError(f"{file}: too short for {said} values, as its header says: cut off; download it again")
            # However much is packed behind them, no more than one value too many is unpacked.
            content = stream.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        problem = "a damaged gzip file" if packed else "unreadable"
        raise ValueError(f"{file}: {problem} ({error}); download it again") from None
    sizes = f"{file}: has {len(content):,} values, but its header says {said}"
    check(len(content) >= count, f"{sizes}: it was cut off; download it again")
    more = f"{file}: has more than the {count:,} values of its header, {said}"
    check(len(content) <= count, f"{more}: damaged; download it again")
    check(count > 0, f"{file}: has no {what}; its header says {said}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def first_mat_image(_: DataSpec) -> PictureHeader:
    """What the images are like: 28x28, gray, 8 bits."""
    return PictureHeader(_MAT_SIZE, _MAT_SIZE, 1, 8)


def load_mat(spec: DataSpec, split: str, _: Report) -> ImageSource:
    """One part of OMNIGLOT as Burda et al. 2016 published it ("Importance weighted autoencoders"), in memory.

    `path` is the file, or the folder where `chardata.mat` lies. It has an image a column, with intensities from 0 to 1;
    they are multiplied by 255 and cut to whole numbers, as in the published model.
    """
    # Here, because no other source needs it.
    import scipy.io

    path, variable = pathlib.Path(spec.path), {"train": "data", "test": "testdata"}[split]
    file = path / _MAT_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; the head of configs/omniglot.py says where it comes from")
    damage = f"{file}: not a complete MATLAB file (", "); download it again"
    # The headers are read before anything is unpacked.
    with wrap_read_errors(*damage):
        shapes = {name: shape for name, shape, _ in scipy.io.whosmat(file)}
    check(variable in shapes, f"{file}: has no variable {variable!r}; it is not the {_MAT_FILE} of Burda et al.")
    shape = tuple(shapes[variable])
    form = f"{file}: variable {variable!r} is {list(shape)}; it must be [{_MAT_SIZE**2}, images], from 0 to 1"
    check(len(shape) == 2 and shape[0] == _MAT_SIZE**2 and shape[1] > 0, form)
    check_memory(math.prod(shape) * 8, f"{file}: its images", "download the file again")
    with wrap_read_errors(*damage):
        columns = scipy.io.loadmat(file, variable_names=[variable])[variable]
    is_plain = isinstance(columns, np.ndarray) and columns.shape == shape and columns.dtype.kind in "fiu"
    check(is_plain and columns.min() >= 0.0 and columns.max() <= 1.0, form)
    images = columns.reshape(_MAT_SIZE, _MAT_SIZE, -1).transpose(2, 1, 0)
    images = (images * 255).astype(np.uint8)[..., np.newaxis]
    _check_images(images, spec, file)
    return ArraySource(_fitted(images, spec))


def decoded_once(
    spec: DataSpec,
    split: str,
    contents: Iterable[object],
    decode: Callable[[], tuple[int, Iterable[np.ndarray]]],
    report: Report,
    class_names: tuple[str, ...] = (),
    read_labels: Callable[[], np.ndarray] | None = None,
) -> ImageSource:
    """The decoded images of one part of a data set, mapped from an array file in the folder `spec.cache`.

    The file's name has a hash of the settings and of `contents`, which need a `repr`: others give another file. Where
    it is missing, `decode` gives the number of images, and batches uint8 `[batch, height, width, channels]` of them.
    With `class_names` their labels are in a second file, which `read_labels` gives likewise.
    """
    # Files of before there was `alpha` keep their names.
    alpha = [] if spec.alpha == "keep" else [spec.alpha]
    settings = [*(getattr(spec, name) for name in _PIXEL_SETTINGS), *alpha]
    digest = hashlib.sha256(repr((_DECODED_FORM, settings)).encode())
    for content in contents:
        digest.update(repr(content).encode(errors="surrogateescape"))
    folder = pathlib.Path(spec.cache).expanduser()
    file = folder / f"{re.sub('[^A-Za-z0-9]+', '_', spec.name)}-{split}-{digest.hexdigest()[:16]}.npy"
    if not file.is_file():
        check_writable(folder, f"data.cache = {spec.cache}")
        folder.mkdir(parents=True, exist_ok=True)
        count, batches = decode()
        with atomic_file(file) as unfinished:
            images = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=(count, *spec.image_shape))
            _take_room(unfinished, spec)
            fill(images, batches, spec, f"decoding into {folder}", report)
            images.flush()
    with wrap_read_errors(f"{file}: damaged (", "); remove it, and it will be made again"), file.open("rb") as stream:
        header = read_array_header(stream, file.stat().st_size)
        matches = header.dtype == np.uint8 and header.shape[1:] == spec.image_shape
        check(not header.problem and matches, header.problem or f"it has {header.dtype} {list(header.shape)}")
        images = np.load(file, mmap_mode="r")
    source = ReadSource(len(images), images.shape[1:], lambda numbers: images[numbers])
    if not class_names:
        return source
    # The same pictures have other numbers where there are other classes.
    file = file.with_name(f"{file.stem}-labels-{hashlib.sha256(repr(class_names).encode()).hexdigest()[:16]}.npy")
    if not file.is_file():
        with atomic_file(file) as unfinished, unfinished.open("wb") as stream:
            np.save(stream, read_labels())
    with wrap_read_errors(f"{file}: damaged (", "); remove it, and it will be made again"):
        labels = np.load(file, allow_pickle=False)
    return source.labeled(class_numbers(labels, len(images), file), class_names)


def fill(images: np.ndarray, batches: Iterable[np.ndarray], spec: DataSpec, doing: str, report: Report) -> None:
    """Copies batches of images into an array for all; ValueError where there are not as many."""
    done = 0
    for batch in batches:
        images[done : done + len(batch)] = batch
        done += len(batch)
        report.progress(f"{doing}: {done:,} of {len(images):,} images", done / len(images))
    where = spec.path or spec.source_name
    counts = f"{where}: has {done} images, not {len(images)}: did it change meanwhile? Try again"
    check(done == len(images), f"{counts}, or prepare the set anew" if spec.source == "tfds" else counts)


def _take_room(unfinished: pathlib.Path, spec: DataSpec) -> None:
    """Takes all of the file's blocks: a full disk would end the process when a mapped page is written."""
    size, free = unfinished.stat().st_size, shutil.disk_usage(unfinished.parent).free
    try:
        with unfinished.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        needs = f"data.cache = {spec.cache}: the decoded images need {size / 1e9:.1f} GB"
        reason = f"{free / 1e9:.1f} GB are free ({error.strerror})"
        raise ValueError(f"{needs}, and {reason}; name a folder on another disk") from None
