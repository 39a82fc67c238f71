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

from nvae_tf.config import DataSpec, check
from nvae_tf.data.pictures import PictureHeader, check_form, check_size, fit_images
from nvae_tf.data.sources import ArraySource, ImageSource, check_memory, class_numbers, held_out
from nvae_tf.errors import wrap_read_errors
from nvae_tf.files import ArrayHeader, atomic_file, read_array_header
from nvae_tf.progress import Report

_MAT_FILE, _MAT_SIZE = "chardata.mat", 28
# To be raised whenever the code makes other pixels of the same pictures: all are then decoded again.
_DECODED_FORM = 3
# What decides about the pixels, besides the files.
_PIXEL_SETTINGS = (
    *("source", "source_name", "train_split", "test_split", "test_fraction", "split_seed"),
    *("height", "width", "channels", "file_bits", "convert", "crop_box", "resize", "on_bad_file", "max_pixels"),
)


class _StoredArray(NamedTuple):
    """An array in a `.npy` file, in an entry of a `.npz` file, or in an IDX file, packed or not."""

    file: pathlib.Path
    entry: str | None = None

    @property
    def is_idx(self) -> bool:
        return self.file.name.removesuffix(".gz").endswith("ubyte")

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple[BinaryIO, int]]:
        """The array's bytes and their number; what goes wrong in the block names the file."""
        place = f"{self.file}: {self.entry}" if self.entry else self.file
        with wrap_read_errors(f"{place}: not an array of plain numbers that can be read (", ")"):
            if self.entry:
                with zipfile.ZipFile(self.file) as archive, archive.open(self.entry) as stream:
                    yield stream, archive.getinfo(self.entry).file_size
            else:
                with (gzip.open if self.file.suffix == ".gz" else open)(self.file, "rb") as stream:
                    yield stream, self.file.stat().st_size

    def header(self) -> ArrayHeader:
        with self.opened() as (stream, size):
            return _idx_header(stream) if self.is_idx else read_array_header(stream, size)

    def read(self) -> np.ndarray:
        """The array: mapped where it can be, otherwise in memory."""
        shape, dtype, problem = self.header()
        with self.opened() as (stream, _):
            check(not problem, problem)
            if not self.entry and not self.is_idx:
                return np.load(self.file, mmap_mode="r", allow_pickle=False)
            count = math.prod(shape)
            check_memory(count * dtype.itemsize, "its values", "save them as a .npy file, which is read as needed")
            if self.entry:
                return np.lib.format.read_array(stream, allow_pickle=False)
            _idx_header(stream)
            # However much is packed behind them, no more than one value too many is unpacked.
            content = stream.read(count + 1)
            check(len(content) == count, f"{len(content):,} values for the sizes {list(shape)}: download it again")
            return np.frombuffer(content, np.uint8).reshape(shape)


def _idx_header(stream):
    """IDX: two zero bytes, the type (8 for bytes), the number of dimensions, their sizes, the values."""
    *kind, dimensions = stream.read(4)
    check(kind == [0, 0, 8], "not an IDX file of bytes")
    return ArrayHeader(struct.unpack(f">{dimensions}I", stream.read(4 * dimensions)), np.dtype(np.uint8), None)


def first_arrays_image(spec: DataSpec) -> PictureHeader:
    """What the images of the training part are like, by the header of their array."""
    *_, header, _ = _part(spec, "train")
    return PictureHeader(*header.shape[1:], 8 * header.dtype.itemsize)


def load_arrays(spec: DataSpec, split: str, _: Report) -> ImageSource:
    """One part of the images at `path`: a `.npy` or `.npz` file, a folder of `.npy` files, or one of IDX files.

    It has one array of images, of which a fraction is held out for testing, or two that are called `train_split` and
    `test_split`, or `x_train` and `x_test`. Arrays are uint8, uint16 or bool, `[count, height, width, channels]` or
    `[count, height, width]`. Labels: see `_array_of_labels`.
    """
    arrays, name, header, numbers = _part(spec, split)
    images = arrays[name].read().reshape(header.shape)
    _check_images(images, spec, spec.path)
    numbers = np.arange(len(images)) if numbers is None else numbers
    if isinstance(images, np.memmap):
        source = ImageSource(len(numbers), spec.image_shape, lambda chosen: fit_images(images[numbers[chosen]], spec))
    else:
        source = ArraySource(fit_images(images[numbers], spec))
    if not spec.labels:
        return source
    return source.labeled(_array_of_labels(spec, arrays, name, len(images))[numbers], arrays_classes(spec))


def arrays_classes(spec: DataSpec) -> tuple[str, ...]:
    """The numbers of the classes, to the largest of the training labels, or further to `data.num_classes`."""
    arrays, name, header, _ = _part(spec, "train")
    labels = _array_of_labels(spec, arrays, name, header.shape[0])
    return tuple(map(str, range(max(int(labels.max()) + 1, spec.num_classes or 0))))


def _array_of_labels(spec, arrays, name, count):
    """The labels of an array of images: those of `train` are `train_labels`, of `x_train` `y_train`, else `labels`."""
    labels_of_parts = {part: f"{part}_labels" for part in (spec.train_split, spec.test_split)}
    wanted = (labels_of_parts | {"x_train": "y_train", "x_test": "y_test"}).get(name, "labels")
    if wanted not in arrays:
        raise ValueError(f"data.labels = True: {spec.path} has no array {wanted!r} beside {name!r}; add it")
    return class_numbers(arrays[wanted].read(), count, f"{spec.path}: {wanted!r}")


def arrays_holds_out(spec: DataSpec) -> bool:
    """Whether the test images are a random part of all."""
    return _names_of_parts(_arrays_at(spec), spec) is None


def _names_of_parts(arrays, spec):
    """The names of the arrays of both parts; None where one array has all images."""
    pairs = (spec.train_split, spec.test_split), ("x_train", "x_test")
    return next((names for names in pairs if arrays.keys() >= set(names)), None)


def _part(spec: DataSpec, split: str) -> tuple[dict[str, _StoredArray], str, ArrayHeader, np.ndarray | None]:
    """All arrays; the name and header of that with a part's images; the numbers of these in it, None for all."""
    arrays, part = _arrays_at(spec), ("train", "test").index(split)
    names = _names_of_parts(arrays, spec)
    # Labels, for example, may lie beside the images.
    all_images = names or [name for name in arrays if len(arrays) == 1 or len(arrays[name].header().shape) >= 3]
    if not names and len(all_images) != 1:
        needed = f"one array of images, or {spec.train_split} and {spec.test_split} (data.train_split, data.test_split)"
        raise ValueError(f"{spec.path}: has the arrays {', '.join(arrays) or '(none)'}; there must be {needed}")
    name = all_images[part if names else 0]
    header = _image_header(arrays[name])
    numbers = None if names else np.array(held_out([str(number) for number in range(header.shape[0])], spec)[part])
    return arrays, name, header, numbers


def _arrays_at(spec: DataSpec) -> dict[str, _StoredArray]:
    """All arrays of a folder or a file, by name."""
    path = pathlib.Path(spec.path)
    if spec.source == "idx":
        return _idx_arrays(spec)
    if path.is_dir():
        return {file.stem: _StoredArray(file) for file in sorted(path.glob("*.npy"))}
    with _StoredArray(path).opened() as (stream, _):
        if stream.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX:
            return {path.stem: _StoredArray(path)}
        with zipfile.ZipFile(stream) as archive:
            names = archive.namelist()
            for name in names:
                # Checks that the entry has the same name: a damaged one could hide an array.
                archive.open(name).close()
    # Other entries are not arrays: a text about them.
    return {name.removesuffix(".npy"): _StoredArray(path, name) for name in names if name.endswith(".npy")}


def _idx_arrays(spec):
    """The arrays of a folder of IDX files, by the names that Keras gives to those of MNIST."""
    arrays, folder = {}, pathlib.Path(spec.path)
    # The same file packed and unpacked is one.
    packed_first = sorted(folder.glob("*ubyte*"), reverse=True)
    files = {file.name.removesuffix(".gz"): _StoredArray(file) for file in packed_first}
    for part, words in (("train", ("train",)), ("test", ("t10k", "test"))):
        images = [name for name in files if "images" in name and any(word in name for word in words)]
        # A name that no file has belongs to another kind of source.
        images = [name for name in images if name.startswith(spec.source_name or "")] or images
        if len(images) != 1:
            rule = (
                f"{words[0]}-images-idx3-ubyte or .gz; data.source_name is how the names of one of several sets begin"
            )
            raise ValueError(f"{folder}: one file must be the {part} images ({', '.join(images) or 'none'}): {rule}")
        labels = images[0].replace("images", "labels").replace("idx3", "idx1")
        arrays |= {f"x_{part}": files[images[0]]} | ({f"y_{part}": files[labels]} if labels in files else {})
    return arrays


def _image_header(stored: _StoredArray) -> ArrayHeader:
    """The header of an array of images, its shape `[count, height, width, channels]`."""
    header = stored.header()
    shape = header.shape if len(header.shape) == 4 else (*header.shape, 1)
    # [height, width, 3] is one picture rather than many that are 3 wide.
    is_one_picture = len(header.shape) == 3 and header.shape[-1] in (2, 3, 4)
    is_set = len(shape) == 4 and shape[-1] in (1, 2, 3, 4) and 0 not in shape and not is_one_picture
    if header.problem or not is_set or header.dtype.newbyteorder("=") not in (np.uint8, np.uint16, np.bool_):
        form = "uint8, uint16 or bool [count, height, width, channels], 1 to 4 channels, or [count, height, width]"
        given = header.problem or f"it has {header.dtype} {list(header.shape)}"
        raise ValueError(f"{stored.file}: {given}; images are {form}")
    return header._replace(shape=shape)


def _check_images(images: np.ndarray, spec: DataSpec, where: object) -> None:
    check_size(f"{where}: each image", *images.shape[1:3], spec)
    check_form(where, images.shape[3], 8 * images.dtype.itemsize, spec)
    if images.dtype.itemsize == 2 and not any((image > 255).any() for image in images):
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
    # Here, because no other source needs it.
    import scipy.io

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
    return ArraySource(fit_images(images, spec))


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

    The file's name has a hash of the settings and of `contents`, which need a `repr`. Where it is missing, `decode`
    gives the number of images, and batches uint8 `[batch, height, width, channels]`; `read_labels` their labels, which
    are in a second file.
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
        folder.mkdir(parents=True, exist_ok=True)
        count, batches = decode()
        form = {"descr": "|u1", "fortran_order": False, "shape": (count, *spec.image_shape)}
        with atomic_file(file) as unfinished, unfinished.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, form)
            for batch in reported(batches, count, f"decoding into {folder}", report):
                stream.write(np.ascontiguousarray(batch))
    images = _StoredArray(file).read()
    if images.dtype != np.uint8 or images.shape[1:] != spec.image_shape:
        raise ValueError(f"{file}: has {images.dtype} {list(images.shape)}; remove it, and it will be made again")
    source = ImageSource(len(images), images.shape[1:], lambda numbers: images[numbers])
    if not class_names:
        return source
    # The same pictures have other numbers where there are other classes.
    file = file.with_name(f"{file.stem}-labels-{hashlib.sha256(repr(class_names).encode()).hexdigest()[:16]}.npy")
    if not file.is_file():
        with atomic_file(file) as unfinished, unfinished.open("wb") as stream:
            np.save(stream, read_labels())
    return source.labeled(class_numbers(_StoredArray(file).read(), len(images), file), class_names)


def reported(batches: Iterable[np.ndarray], count: int, doing: str, report: Report) -> Iterator[np.ndarray]:
    """The batches, whose progress is reported; ValueError where they have not `count` images in all."""
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        report.progress(f"{doing}: {done:,} of {count:,} images", done / count)
    check(done == count, f"{doing}: there are {done} images, not {count}: did they change? Try again")
