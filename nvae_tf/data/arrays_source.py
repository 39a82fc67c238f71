"""Images in NumPy files: `.npy`, read as they are needed, or `.npz`, read whole."""

import pathlib
import tokenize
import zipfile
import zlib

import numpy as np

from nvae_tf.data.geometry import check_array, fit_array
from nvae_tf.data.held_out import held_out
from nvae_tf.data.image_sources import ImageSource, ReadSource
from nvae_tf.data.picture_files import PictureHeader
from nvae_tf.data.reports import Report
from nvae_tf.data_spec import DataSpec

# What NumPy raises for damaged files.
_DAMAGED = (
    *(ValueError, OSError, EOFError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
_BITS = {np.dtype(np.uint8): 8, np.dtype(np.uint16): 16, np.dtype(np.bool_): 8}


def first_image(spec: DataSpec) -> PictureHeader:
    """What the images of the training part are like.

    Raises:
        ValueError: see `load`.
    """
    images, _ = _arrays_of_parts(spec)["train"]
    return PictureHeader(*images.shape[1:], _bits(images))


def load(spec: DataSpec, split: str, report: Report) -> ImageSource:
    """Opens one part of the images.

    `path` is a `.npy` file with all images; a `.npz` file with one array of images, or with arrays called
    `train_split` and `test_split` (or `x_train` and `x_test`); or a folder with `train.npy` and `test.npy`. Arrays are
    uint8, uint16 or bool, `[count, height, width, channels]` or `[count, height, width]`. Where there is no test part,
    a fraction of the images is held out.

    Args:
        spec: a complete spec with source "arrays".
        split: "train" or "test".
        report: not used; opening takes no time.

    Raises:
        ValueError: a file is damaged or has no such arrays, or its images are of another size or type.
    """
    del report
    images, numbers = _arrays_of_parts(spec)[split]
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
    path = pathlib.Path(spec.path)
    names = {file.stem for file in path.glob("*.npy")} if path.is_dir() else set(getattr(_open(path), "files", ()))
    return not any(names.issuperset(parts) for parts in _names_of_parts(spec))


def _names_of_parts(spec: DataSpec) -> tuple[tuple[str, str], ...]:
    return (spec.train_split, spec.test_split), ("x_train", "x_test")


def _arrays_of_parts(spec: DataSpec) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For "train" and "test" an array of images and the numbers of those that belong to the part."""
    path = pathlib.Path(spec.path)
    arrays = _arrays_of_folder(path) if path.is_dir() else _arrays_of_file(path)
    for train, test in _names_of_parts(spec):
        if train in arrays and test in arrays:
            parts = {"train": _images(path, arrays[train]), "test": _images(path, arrays[test])}
            return {part: (images, np.arange(len(images))) for part, images in parts.items()}
    candidates = {name: array for name, array in arrays.items() if array.ndim >= 3}
    if len(arrays) == 1 and not candidates:
        (array,) = arrays.values()
        raise ValueError(
            f"{path}: the array's shape {list(array.shape)} is not [count, height, width, channels] or [count, height, "
            "width]; reshape it"
        )
    if len(candidates) != 1:
        raise ValueError(
            f"{path}: has the arrays {', '.join(arrays) or '(none)'}; there must be one array of images, or two that "
            f"are called {spec.train_split} and {spec.test_split} (settings data.train_split and data.test_split)"
        )
    (array,) = candidates.values()
    images = _images(path, array)
    chosen = held_out([str(number) for number in range(len(images))], spec)
    return {part: (images, np.array(numbers)) for part, numbers in zip(("train", "test"), chosen, strict=True)}


def _arrays_of_folder(folder):
    return {file.stem: _open(file) for file in sorted(folder.glob("*.npy"))}


def _arrays_of_file(file):
    opened = _open(file)
    if isinstance(opened, np.ndarray):
        return {file.stem: opened}
    try:
        return {name: opened[name] for name in opened.files}
    except _DAMAGED as error:
        raise ValueError(f"{file}: a damaged .npz file, or one with Python objects ({error})") from None


def _open(file):
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except _DAMAGED as error:
        raise ValueError(f"{file}: not a whole NumPy file of plain numbers ({error}); numpy.save writes one") from None


def _images(path, array):
    """The array as `[count, height, width, channels]`."""
    if array.ndim == 3 and array.shape[-1] in (2, 3, 4):
        raise ValueError(
            f"{path}: the array {list(array.shape)} seems to be a single image; a set of images has one axis more: "
            "[count, height, width, channels]"
        )
    if array.ndim == 3:
        array = array[..., np.newaxis]
    if array.ndim == 4 and array.shape[-1] not in (1, 2, 3, 4) and array.shape[1] in (1, 2, 3, 4):
        raise ValueError(
            f"{path}: the array {list(array.shape)} seems to have its channels first; they must be last: "
            "images.transpose(0, 2, 3, 1)"
        )
    if array.ndim != 4 or array.shape[-1] not in (1, 2, 3, 4) or not array.size:
        raise ValueError(
            f"{path}: the array's shape {list(array.shape)} is not [count, height, width, channels] with 1 to 4 "
            "channels, or [count, height, width]"
        )
    if array.dtype.newbyteorder("=") not in _BITS:
        raise ValueError(
            f"{path}: the array is of type {array.dtype}; images are uint8 (0 to 255), uint16 (0 to 65535) or bool. "
            "From floats in [0, 1]: numpy.round(images * 255).astype('uint8')"
        )
    return array


def _bits(images):
    return _BITS[images.dtype.newbyteorder("=")]


def _eight_bits(images):
    if _bits(images) == 16:
        return (images >> 8).astype(np.uint8)
    return images.astype(np.uint8) * np.uint8(255) if images.dtype == np.bool_ else images
