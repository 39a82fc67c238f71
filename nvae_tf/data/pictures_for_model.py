"""Pictures from anywhere, as a trained model has to see them: with the geometry, the bits and the binarization of the
data that it was trained on.
"""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nvae_tf.data.geometry import WrongSize, geometry
from nvae_tf.data.image_sources import ArraySource
from nvae_tf.data.picture_files import SUFFIXES, BadPicture, list_pictures, read_header, read_picture
from nvae_tf.data_spec import DataSpec


class PictureFile(NamedTuple):
    """A file and its name for people and for what is written: relative to the folder that was given, if one was."""

    path: pathlib.Path
    name: str


class ModelPictures(NamedTuple):
    """Pictures that a model takes.

    Attributes:
      images: float32 `[count, height, width, channels]` in [0, 1].
      names: of the files, `[count]`.
    """

    images: np.ndarray
    names: list[str]


def find_pictures(places: str | os.PathLike | Sequence[str | os.PathLike]) -> list[PictureFile]:
    """Files of pictures: the ones that are named, in their order, and all in the trees of folders that are named.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: a folder has no pictures.
    """
    found = []
    for place in [places] if isinstance(places, str | os.PathLike) else places:
        path = pathlib.Path(place).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"{place}: there is no such file or folder of pictures")
        names = list_pictures(path) if path.is_dir() else []
        if path.is_dir() and not names:
            raise ValueError(f"{place}: no pictures in this folder; they are files with names in {', '.join(SUFFIXES)}")
        found += [PictureFile(path / name, name) for name in names] or [PictureFile(path, path.name)]
    return found


def pictures_for_model(
    places: str | os.PathLike | Sequence[str | os.PathLike],
    spec: DataSpec,
    seed: int = 0,
    resize: str | None = None,
    convert: bool | None = None,
) -> ModelPictures:
    """Reads pictures as the data of a run were read.

    Args:
      places: a file, a folder, or several.
      spec: the data set that the model was trained on, complete: `data` of the run's settings.
      seed: of the binarization, if there is one; that of a picture depends on the seed and its number.
      resize: another rule than the data set's for pictures of another size, "crop" or "stretch", see `DataSpec`.
      convert: whether pictures with other channels are converted; None: as the data set has it.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: a picture can't be used; the message has its name and the mend.
    """
    from nvae_tf.data.pipeline import evaluation_batches, iterate

    spec = dataclasses.replace(spec, resize=resize or spec.resize, convert=spec.convert if convert is None else convert)
    files = find_pictures(places)
    source = ArraySource(np.stack([_pixels(file.path, spec) for file in files]))
    (images,) = iterate(evaluation_batches(source, spec, len(files), seed), source)
    return ModelPictures(images.numpy(), [file.name for file in files])


def _pixels(path: pathlib.Path, spec: DataSpec) -> np.ndarray:
    try:
        header = read_header(path, spec.max_pixels)
        _check_channels(path, header.channels, spec)
        _check_size(path, header.height, header.width, spec)
        picture = read_picture(path, spec.channels, spec.max_pixels, geometry(spec).apply)
    except BadPicture as error:
        raise BadPicture(f"{error}. Mend or remove the file") from None
    except WrongSize as error:
        raise BadPicture(f"{path}: {error}") from None
    return np.asarray(picture).reshape(spec.image_shape)


def _check_channels(path: pathlib.Path, channels: int, spec: DataSpec) -> None:
    if channels != spec.channels and not spec.convert:
        raise ValueError(
            f"{path}: has {channels} channels, but the model was trained on pictures with {spec.channels}; --convert "
            "(in Python convert=True) converts such pictures when they are read"
        )


def _check_size(path: pathlib.Path, height: int, width: int, spec: DataSpec) -> None:
    try:
        geometry(spec).check_size(height, width)
    except WrongSize:
        found, wanted = f"{path}: is {height}x{width} (height x width)", f"{spec.height}x{spec.width}"
        if spec.crop_box is not None:
            raise ValueError(
                f"{found}; the model's data are cut out of larger pictures with data.crop_box {spec.crop_box} (left, "
                f"top, right, bottom) and brought to {wanted}: give such pictures"
            ) from None
        raise ValueError(
            f"{found}, but the model takes {wanted}; --resize=crop or --resize=stretch (in Python resize=) brings "
            "pictures to this size"
        ) from None
