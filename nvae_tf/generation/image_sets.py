"""Sets of images that come back exactly as they were: read for lossless compression, and written after it."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from nvae_tf.config import ModelConfig, check
from nvae_tf.data import pictures
from nvae_tf.data.array_files import stored_images
from nvae_tf.files import atomic_file, atomic_folder, check_new_file, check_new_folder
from nvae_tf.generation.image_grid import picture_names, write_png
from nvae_tf.schemas import write_arrays

_FIX = "a lossless file neither resizes nor converts: change the images, or take a model of their kind"


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
        check(len(names) > 0, f"{path}: no pictures in it; of arrays and IDX files give the file itself")
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
        raise ValueError(f"{path}: {fault} ({', '.join(map(str, table[:3]))}{'...' if len(table) > 3 else ''}); {_FIX}")
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
    flag = f"--output={output}"
    check(output.suffix.lower() not in pictures.SUFFIXES, f"{flag}: give a new folder, or a file .npy or .npz")
    (check_new_file if output.suffix.lower() in (".npy", ".npz") else check_new_folder)(output, flag)


def write_set(output: pathlib.Path, chunks: Iterable[np.ndarray], num_bits: int, header: dict[str, Any]) -> None:
    """Writes levels, chunk after chunk, to a folder of PNG files, or to a .npy or .npz file, whole or not at all."""
    if output.suffix.lower() not in (".npy", ".npz"):
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
    if output.suffix.lower() == ".npz":
        lists = {name: np.array(header[name]) for name in ("labels", "names") if name in header}
        return write_arrays(output, {"images": images, **lists})
    with atomic_file(output) as partial, partial.open("wb") as stream:
        np.save(stream, images)
