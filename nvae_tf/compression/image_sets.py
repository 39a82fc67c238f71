"""Sets of images as files: read to be compressed exactly as they are, and written again."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from nvae_tf.config import ModelConfig
from nvae_tf.data import pictures
from nvae_tf.data.array_files import stored_images
from nvae_tf.files import atomic_file, atomic_folder, check_new_file, check_new_folder
from nvae_tf.generation.image_grid import picture_names, write_png

_FIX = "a lossless file can neither resize nor convert: change the images, or take a model of their kind"


class ImageSet(NamedTuple):
    """Images as a model's levels, and what else makes their files."""

    levels: np.ndarray  # uint8 [count, height, width, channels]
    names: list[str] | None  # of pictures, relative to their folder
    labels: np.ndarray | None  # int32 [count]
    about: dict[str, Any]  # for the header: the form of the files, and the value of the highest level


def read_set(place: str, config: ModelConfig, class_names: Sequence[str] = ()) -> ImageSet:
    """The images of a folder of pictures, or of an array file: .npy, .npz (with `labels`), or IDX.

    Pictures in folders that have the names of classes are of these classes. ValueError for images of another size or
    kind than the model's, and for values between its levels: they would not come back.
    """
    path = pathlib.Path(place).expanduser()
    shape = (config.image_height, config.image_width, config.image_channels)
    if path.is_dir():
        names = pictures.list_pictures(path)
        if not names:
            raise ValueError(f"{path}: no pictures in it; of arrays and IDX files give the file itself")
        picture_names(names)  # names that can't be written again are refused now
        values = np.stack([_pixels(path / name, shape) for name in names])
        folders = [pathlib.PurePath(name).parts[0] if "/" in name else "" for name in names]
        labels = None
        if class_names and {*folders} <= {*class_names}:
            labels = np.array([class_names.index(folder) for folder in folders], np.int32)
        return ImageSet(_levels(values, config, path), names, labels, {"form": "pictures"})
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file or folder of images")
    values, labels, axes = stored_images(path)
    if values.shape[1:] != shape:
        sizes = "x".join(map(str, values.shape[1:])), "x".join(map(str, shape))
        raise ValueError(f"{path}: its images are {sizes[0]}, and the model takes {sizes[1]}; {_FIX}")
    if values.dtype == np.uint16:
        raise ValueError(f"{path}: its images have 16 bits, and the model takes {config.num_bits}; {_FIX}")
    # Levels may be stored as they are, or spread over 8 bits as in pictures.
    highest = 2**config.num_bits - 1
    peak = 255 if values.dtype == np.uint8 and values.max() > highest or highest == 255 else highest
    about = {"form": values.dtype.name, "axes": axes, "peak": peak}
    return ImageSet(_levels(values, config, path, peak), None, labels, about)


def _pixels(path: pathlib.Path, shape: tuple[int, int, int]) -> np.ndarray:
    """The pixels of a picture, which must have the `shape` and 8 bits."""
    header = pictures.read_header(path)
    if header[:3] != shape or header.bits != 8:
        kind = f"{'x'.join(map(str, header[:3]))} of {header.bits} bits"
        raise ValueError(f"{path}: is {kind}, and the model takes {'x'.join(map(str, shape))} of 8; {_FIX}")
    return np.asarray(pictures.read_picture(path, shape[2])).reshape(shape)


def values_of_levels(num_bits: int, peak: int) -> np.ndarray:
    """The stored value of each level, uint8: spread evenly from 0 to `peak`."""
    return np.rint(np.arange(2**num_bits) * (peak / (2**num_bits - 1))).astype(np.uint8)


def _levels(values: np.ndarray, config: ModelConfig, path: pathlib.Path, peak: int = 255) -> np.ndarray:
    """The level of each value; ValueError for a value that is none."""
    table = values_of_levels(config.num_bits, peak)
    levels = np.searchsorted(table, values).astype(np.uint8)
    is_other = table[np.minimum(levels, len(table) - 1)] != values
    if is_other.any():
        number = int(np.argmax(is_other.reshape(len(values), -1).any(axis=1)))
        value = int(values[is_other][0])
        some = ", ".join(map(str, table[:3])) + (", ..." if len(table) > 3 else "")
        fault = f"image {number} has the value {value}, none of the model's {len(table)} ({some})"
        raise ValueError(f"{path}: {fault}; {_FIX}")
    return levels


def check_output(output: pathlib.Path) -> None:
    """ValueError where no set can be written: to a new folder, or a new .npy or .npz file."""
    is_file = output.suffix in (".npy", ".npz")
    (check_new_file if is_file else check_new_folder)(output, f"--output={output}")


def write_set(
    output: pathlib.Path, chunks: Iterable[np.ndarray], num_bits: int, header: dict[str, Any], index: dict[str, Any]
) -> None:
    """Writes levels, chunk after chunk, to a folder of PNG files, or to a .npy or .npz file, whole or not at all."""
    is_folder = output.suffix not in (".npy", ".npz")
    # In pictures the highest level is always white.
    table = values_of_levels(num_bits, 255 if is_folder else header.get("peak", 255))
    values = (table[levels] for levels in chunks)
    if is_folder:
        digits = len(str(header["images"]))
        names = picture_names(index.get("names") or [f"image_{each:0{digits}d}" for each in range(header["images"])])
        with atomic_folder(output, lambda: check_output(output)) as folder:
            folder.mkdir()
            for number, image in enumerate(image for part in values for image in part):
                write_png(folder / names[number], image)
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    images = np.concatenate(list(values))
    images = images[..., 0] if header.get("axes") == 3 else images
    images = images.astype(bool) if header.get("form") == "bool" else images
    with atomic_file(output) as partial, partial.open("wb") as stream:
        if output.suffix == ".npy":
            np.save(stream, images)
        else:
            lists = {name: np.array(index[name]) for name in ("labels", "names") if name in index}
            np.savez(stream, images=images, **lists)
