"""Images in files of arrays: NumPy's `.npy` (read on demand) and `.npz`, MNIST's IDX files, OMNIGLOT's MATLAB file."""

import contextlib
import gzip
import hashlib
import math
import pathlib
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np

from nvae_tf.config import MOST_CHANNELS, DataSpec, check
from nvae_tf.data.pictures import PictureHeader, check_form, check_size, fit_images, in_type
from nvae_tf.data.sources import ArraySource, ImageSource, check_memory, class_numbers, held_out
from nvae_tf.errors import wrap_read_errors
from nvae_tf.files import atomic_file
from nvae_tf.progress import Report
from nvae_tf.schemas import read_array, read_array_header

_MAT_FILE, _MAT_SIZE = "chardata.mat", 28
# To be raised whenever the code makes other pixels of the same pictures: all are then decoded again.
_DECODED_FORM = 3
_PIXEL_SETTINGS = (  # what decides about the pixels, besides the files
    *("source", "source_name", "train_split", "test_split", "test_fraction", "split_seed"),
    *("height", "width", "channels", "file_bits", "convert", "crop_box", "resize", "on_bad_file", "max_pixels"),
)


class _StoredArray(NamedTuple):
    """An array in a `.npy` file, in an entry of a `.npz` file, or in an IDX file, packed or not."""

    file: pathlib.Path
    entry: str | None = None

    @contextlib.contextmanager
    def opened(self) -> Iterator[BinaryIO]:
        """The array's bytes; what goes wrong in the block names the file."""
        place = f"{self.file}: {self.entry}" if self.entry else self.file
        with wrap_read_errors(f"{place}: not an array of plain numbers that can be read (", ")"):
            if self.entry:
                with zipfile.ZipFile(self.file) as archive, archive.open(self.entry) as stream:
                    yield stream
            else:
                with (gzip.open if self.file.suffix == ".gz" else open)(self.file, "rb") as stream:
                    yield stream

    def form(self) -> tuple[tuple[int, ...], np.dtype]:
        """The array's shape and type."""
        with self.opened() as stream:
            if not self.file.name.removesuffix(".gz").endswith("ubyte"):
                return read_array_header(stream)
            # IDX: two zero bytes, the type (8 for bytes), the number of dimensions, their sizes, the values.
            *kind, dimensions = stream.read(4)
            check(kind == [0, 0, 8], "not an IDX file of bytes")
            return struct.unpack(f">{dimensions}I", stream.read(4 * dimensions)), np.dtype(np.uint8)

    def read(self) -> np.ndarray:
        """The array: mapped where it can be, otherwise in memory."""
        shape, dtype = self.form()
        with self.opened() as stream:
            if self.file.suffix == ".npy":
                array = np.load(self.file, mmap_mode="r", allow_pickle=False)
                check(array.offset + array.nbytes == self.file.stat().st_size, "other bytes follow its values")
                return array
            count = math.prod(shape)
            check_memory(count * dtype.itemsize, "its values", "save them as a .npy file, which is read as needed")
            if self.entry:
                return read_array(stream, count * dtype.itemsize)
            stream.seek(4 + 4 * len(shape))
            # However much is packed behind them, no more than one value too many is unpacked.
            return np.frombuffer(stream.read(count + 1), np.uint8).reshape(shape)


def first_arrays_image(spec: DataSpec) -> PictureHeader:
    """What the images of the training part are like, by the header of their array."""
    arrays, name, _ = _part(spec, "train")
    shape, dtype = _image_form(arrays[name], spec)
    return PictureHeader(*shape[1:], 8 * dtype.itemsize if dtype.kind in "bu" else 32)


def load_arrays(spec: DataSpec, split: str, _: Report) -> ImageSource:
    """One part of the images at `path`: a `.npy` or `.npz` file, a folder of `.npy` files, or one of IDX files.

    It has one array of images, of which a fraction is held out for testing, or two that are called `train_split` and
    `test_split`, or `x_train` and `x_test`; uint8, uint16, bool, or with `data.range` any numbers, `[count, height,
    width, channels]` or without channels.
    """
    arrays, name, is_whole = _part(spec, split)
    images = arrays[name].read().reshape(_image_form(arrays[name], spec)[0])
    _check_images(images, spec, spec.path)
    numbers = np.arange(len(images))
    if not is_whole:
        numbers = np.array(held_out([str(number) for number in numbers], spec)[split == "test"])
    if isinstance(images, np.memmap):
        for number in numbers if spec.dtype != "uint8" else ():
            in_type(images[number], spec, spec.path)

        def read(chosen: np.ndarray) -> np.ndarray:
            return fit_images(images[numbers[chosen]], spec, spec.path)

        source = ImageSource(len(numbers), spec.image_shape, read, spec.dtype)
    else:
        source = ArraySource(fit_images(images[numbers], spec, spec.path))
    if not spec.labels:
        return source
    return source.labeled(_array_of_labels(spec, arrays, name, len(images))[numbers], arrays_classes(spec))


def fitted_images(path: pathlib.Path, spec: DataSpec) -> np.ndarray:
    """All images of one file, .npy or .npz, `[count, height, width, channels]` as the data set has them."""
    images = stored_images(path, spec)[0]
    _check_images(images, spec, path)
    return fit_images(images, spec, path)


def stored_images(path: pathlib.Path, spec: DataSpec | None = None) -> tuple[np.ndarray, np.ndarray | None, int]:
    """All images of one file, .npy, .npz or IDX, `[count, height, width, channels]`, as they are; the classes, int32.

    Classes are the array `labels` of a .npz file, or the IDX file of labels beside; None without. The third is the
    number of axes that the array has, 3 or 4.
    """
    arrays = _arrays_at(path) if path.suffix in (".npy", ".npz") else {"images": _StoredArray(path)}
    images = [name for name in arrays if len(arrays) == 1 or len(arrays[name].form()[0]) >= 3]
    if len(images) != 1:
        raise ValueError(f"{path}: has the arrays {', '.join(arrays) or '(none)'}; there must be one array of images")
    stored = arrays[images[0]]
    values, axes = stored.read().reshape(_image_form(stored, spec)[0]), len(stored.form()[0])
    beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
    labels = arrays.get("labels") or (_StoredArray(beside) if beside != path and beside.is_file() else None)
    return values, labels and class_numbers(labels.read(), len(values), f"{path}: labels", least=-1), axes


def arrays_classes(spec: DataSpec) -> tuple[str, ...]:
    """The numbers of the classes, to the largest of the training labels, or further to `data.num_classes`."""
    arrays, name, _ = _part(spec, "train")
    labels = _array_of_labels(spec, arrays, name, _image_form(arrays[name], spec)[0][0])
    return tuple(map(str, range(max(int(labels.max()) + 1, spec.num_classes or 0))))


def _array_of_labels(spec, arrays, name, count):
    """The labels of an array of images: for `train` they are `train_labels`, for `x_train` `y_train`, else `labels`."""
    labels_of_parts = {part: f"{part}_labels" for part in (spec.train_split, spec.test_split)}
    wanted = (labels_of_parts | {"x_train": "y_train", "x_test": "y_test"}).get(name, "labels")
    check(wanted in arrays, f"data.labels = True: {spec.path} has no array {wanted!r} beside {name!r}; add it")
    return class_numbers(arrays[wanted].read(), count, f"{spec.path}: {wanted!r}")


def arrays_holds_out(spec: DataSpec) -> bool:
    """Whether the test images are a random part of all."""
    return not _part(spec, "train")[2]


def _part(spec: DataSpec, split: str) -> tuple[dict[str, _StoredArray], str, bool]:
    """All arrays of a folder or a file, the name of that with a part's images, and whether it has no others."""
    arrays = _idx_arrays(spec) if spec.source == "idx" else _arrays_at(pathlib.Path(spec.path))
    for names in ((spec.train_split, spec.test_split), ("x_train", "x_test")):
        if arrays.keys() >= set(names):
            return arrays, names[split == "test"], True
    # Labels, for example, may lie beside the images.
    images = [name for name in arrays if len(arrays) == 1 or len(arrays[name].form()[0]) >= 3]
    if len(images) != 1:
        needed = f"one array of images, or {spec.train_split} and {spec.test_split} (data.train_split, data.test_split)"
        raise ValueError(f"{spec.path}: has the arrays {', '.join(arrays) or '(none)'}; there must be {needed}")
    return arrays, images[0], False


def _arrays_at(path: pathlib.Path) -> dict[str, _StoredArray]:
    if path.is_dir():
        return {file.stem: _StoredArray(file) for file in sorted(path.glob("*.npy"))}
    if path.suffix == ".npy":
        return {path.stem: _StoredArray(path)}
    with _StoredArray(path).opened() as stream, zipfile.ZipFile(stream) as archive:
        names = archive.namelist()
        for name in names:
            # Checks that the entry has the same name: a damaged one could hide an array.
            archive.open(name).close()
    # Other entries are not arrays: a text about them.
    return {name.removesuffix(".npy"): _StoredArray(path, name) for name in names if name.endswith(".npy")}


def _idx_arrays(spec):
    """The arrays of a folder of IDX files, by the names that Keras gives to MNIST's arrays."""
    arrays, folder = {}, pathlib.Path(spec.path)
    # The same file packed and unpacked is one.
    packed_first = sorted(folder.glob("*ubyte*"), reverse=True)
    files = {file.name.removesuffix(".gz"): _StoredArray(file) for file in packed_first}
    for part, words in (("train", ("train",)), ("test", ("t10k", "test"))):
        images = [name for name in files if "images" in name and any(word in name for word in words)]
        # A name that no file has belongs to another kind of source.
        images = [name for name in images if name.startswith(spec.source_name or "")] or images
        if len(images) != 1:
            several = "data.source_name is how the names of one of several sets begin"
            fault = f"one file must be the {part} images ({', '.join(images) or 'none'})"
            raise ValueError(f"{folder}: {fault}: {words[0]}-images-idx3-ubyte or .gz; {several}")
        labels = images[0].replace("images", "labels").replace("idx3", "idx1")
        arrays |= {f"x_{part}": files[images[0]]} | ({f"y_{part}": files[labels]} if labels in files else {})
    return arrays


def _image_form(stored: _StoredArray, spec: DataSpec | None = None) -> tuple[tuple[int, ...], np.dtype]:
    """The shape of an array of images, as `[count, height, width, channels]`, and its type."""
    stored_shape, dtype = stored.form()
    shape = stored_shape if len(stored_shape) == 4 else (*stored_shape, 1)
    # [height, width, 3] is one picture rather than many that are 3 wide.
    is_one_picture = len(stored_shape) == 3 and stored_shape[-1] in (2, 3, 4)
    is_set = len(shape) == 4 and 1 <= shape[-1] <= MOST_CHANNELS and min(shape) > 0 and not is_one_picture
    if is_set and shape[3] > 4 and (shape[1] <= 4 or shape[1] < shape[2] == shape[3]):
        fix = "channels come last: save np.moveaxis(images, 1, -1)"
        raise ValueError(f"{stored.file}: it has {dtype} {list(stored_shape)}; {fix}")
    kinds = "iufb" if spec and spec.range else ""
    if not is_set or (dtype.kind not in kinds and dtype.newbyteorder("=") not in (np.uint8, np.uint16, np.bool_)):
        form = f"[count, height, width, channels], 1 to {MOST_CHANNELS} channels, or [count, height, width]"
        form = f"uint8, uint16 or bool {form}" + (
            "; of other numbers give --config.data.range=LOW,HIGH" if spec else ""
        )
        raise ValueError(f"{stored.file}: it has {dtype} {list(stored_shape)}; images are {form}")
    return shape, dtype


def _check_images(images: np.ndarray, spec: DataSpec, where: object) -> None:
    check_size(f"{where}: each image", *images.shape[1:3], spec)
    check_form(where, images.shape[3], 8 * images.dtype.itemsize, spec)
    if spec.dtype == "uint8" and images.dtype.itemsize == 2 and not any((image > 255).any() for image in images):
        raise ValueError(f"{where}: uint16 goes to 65535, but no value is above 255: save images.astype('uint8')")


first_idx_image, load_idx, idx_classes = first_arrays_image, load_arrays, arrays_classes


def first_mat_image(_: DataSpec) -> PictureHeader:
    """What the images are like: 28x28, gray, 8 bits."""
    return PictureHeader(_MAT_SIZE, _MAT_SIZE, 1, 8)


def load_mat(spec: DataSpec, split: str, _: Report) -> ImageSource:
    """One part of OMNIGLOT as Burda et al. 2016 published it ("Importance weighted autoencoders"), in memory.

    `path` is the file, or the folder where `chardata.mat` lies. It has an image a column, with intensities from 0 to 1;
    they are multiplied by 255 and cut to whole numbers, as in the published model.
    """
    import scipy.io  # here, because no other source needs it

    path, variable = pathlib.Path(spec.path), {"train": "data", "test": "testdata"}[split]
    file = path / _MAT_FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; the head of configs/omniglot.py says where it comes from")
    wanted = f"the {_MAT_FILE} of Burda et al., with {variable!r} [{_MAT_SIZE**2}, images] from 0 to 1"
    with wrap_read_errors(f"{file}: can't be read as {wanted} (", ")"):
        columns = scipy.io.loadmat(file, variable_names=[variable])[variable]
        images = columns.reshape(_MAT_SIZE, _MAT_SIZE, columns.shape[1]).transpose(2, 1, 0)
        check(images.dtype.kind in "fiu" and 0.0 <= images.min() <= images.max() <= 1.0, "other values")
    images = (images * 255).astype(np.uint8)[..., np.newaxis]
    _check_images(images, spec, file)
    return ArraySource(fit_images(images, spec, file))


def decoded_once(
    spec: DataSpec,
    split: str,
    contents: Iterable[object],
    decode: Callable[[], tuple[int, Iterable[np.ndarray]]],
    report: Report,
    class_names: tuple[str, ...],
    read_labels: Callable[[], np.ndarray],
) -> ImageSource:
    """The decoded images of one part of a data set, mapped from an array file in the folder `spec.cache`.

    Where the file of these settings and `contents` is missing, `decode` gives the number of images, and batches
    `[batch, height, width, channels]` of type `spec.dtype`; `read_labels` their labels, which are in a second file.
    """
    # Files of before there were these settings keep their names.
    others = [] if spec.alpha == "keep" else [spec.alpha]
    others += [] if spec.dtype == "uint8" else [spec.num_bits, spec.range]
    settings = [*(getattr(spec, name) for name in _PIXEL_SETTINGS), *others]
    digest = hashlib.sha256(repr((_DECODED_FORM, settings)).encode())
    for content in contents:
        digest.update(repr(content).encode(errors="surrogateescape"))
    name = f"{re.sub('[^A-Za-z0-9]+', '_', spec.name)}-{split}-{digest.hexdigest()[:16]}"

    def write(stream: BinaryIO) -> None:
        count, batches = decode()
        form = {"descr": np.dtype(spec.dtype).str, "fortran_order": False, "shape": (count, *spec.image_shape)}
        np.lib.format.write_array_header_1_0(stream, form)
        for batch in reported(batches, count, f"decoding into {spec.cache}", report):
            stream.write(np.ascontiguousarray(batch))

    file = pathlib.Path(spec.cache).expanduser() / f"{name}.npy"
    images = _cached_array(file, write)
    if images.dtype != spec.dtype or images.shape[1:] != spec.image_shape:
        raise ValueError(f"{file}: has {images.dtype} {list(images.shape)}; remove it, and it will be made again")
    if not class_names:
        return ArraySource(images)
    # The same pictures have other numbers where there are other classes.
    file = file.with_stem(f"{name}-labels-{hashlib.sha256(repr(class_names).encode()).hexdigest()[:16]}")
    labels = _cached_array(file, lambda stream: np.save(stream, read_labels()))
    return ArraySource(images).labeled(class_numbers(labels, len(images), file), class_names)


def _cached_array(file: pathlib.Path, write: Callable[[BinaryIO], None]) -> np.ndarray:
    """The array in a file of the cache, which `write` makes where it is missing."""
    if not file.is_file():
        with atomic_file(file) as unfinished, unfinished.open("wb") as stream:
            write(stream)
    return _StoredArray(file).read()


def reported(batches: Iterable[np.ndarray], count: int, doing: str, report: Report) -> Iterator[np.ndarray]:
    """The batches, whose progress is reported; ValueError where they have not `count` images in all."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        report.progress(f"{doing}: {done:,} of {count:,} images", done / count)
    check(done == count, f"{doing}: there are {done} images, not {count}: did they change? Try again")
