"""From a data spec to its images. A new kind of source is a module with `first_image` and `load`, and a line here."""

import dataclasses
import importlib
import os
import pathlib
from typing import NamedTuple

from nvae_tf.data.image_sources import ImageSource, StackedSource
from nvae_tf.data.picture_files import PictureHeader, list_pictures
from nvae_tf.data.reports import Report
from nvae_tf.data_spec import DataSpec
from nvae_tf.quiet_tensorflow import start_tensorflow_quietly
from nvae_tf.setting_checks import check_choice

SPLITS = ("train", "test")
_NUMPY_SUFFIXES = (".npy", ".npz")


class _Source(NamedTuple):
    """A kind of source: its module; what must lie at `data.path`; whether the set has a name within the source."""

    module: str
    needs: str | None = None
    needs_folder: bool = False
    needs_name: bool = False
    starts_tensorflow: bool = False


SOURCES = {
    "bundled": _Source("bundled_source", needs_name=True),
    "tfds": _Source("tfds_source", needs_name=True, starts_tensorflow=True),
    "folder": _Source("folder_source", needs="a folder of pictures", needs_folder=True),
    "arrays": _Source("arrays_source", needs="a .npy or .npz file, or a folder with train.npy and test.npy"),
    "idx": _Source("idx_source", needs="a folder of IDX files, *-ubyte or *-ubyte.gz", needs_folder=True),
    "mat": _Source("mat_source", needs="the file chardata.mat, or its folder"),
}


def load_split(spec: DataSpec, split: str, report: Report | None = None) -> ImageSource:
    """Loads one part of a data set.

    Args:
        spec: the data set, complete (`nvae_tf.data.completion`).
        split: "train" or "test".
        report: where to tell what is going on.

    Returns:
        The part's images and, where the set has them in memory, its labels.

    Raises:
        ValueError: an unknown part or source, or images that can't be used.
        FileNotFoundError: nothing lies at `data.path`.
        ConnectionError: the data must be downloaded and can't be.
    """
    if split not in SPLITS:
        raise ValueError(f"There is no split '{split}'. Valid: {', '.join(SPLITS)}.")
    module, spec = _module(spec), _with_home(spec)
    report = report or Report()
    if spec.stacked_images == 1:
        source = module.load(spec, split, report)
    else:
        base = module.load(_one_channel(spec), split, report)
        source = StackedSource.at_random(base, spec.stacked_images, spec.split_seed)
    check_image_shape(source, spec)
    return source


def first_image(spec: DataSpec) -> PictureHeader:
    """What the images of a data set are like, from a look at one of them; a size is None where they differ.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: see `load_split`.
    """
    return _module(spec).first_image(_with_home(spec))


def holds_out(spec: DataSpec) -> bool:
    """Whether the test part is `test_fraction` of the images, drawn at random: the source has no parts of its own.

    Raises:
        ValueError, FileNotFoundError: see `load_split`.
    """
    module = _module(spec)
    return hasattr(module, "holds_out") and module.holds_out(_with_home(spec))


def source_at(path: str | None) -> str:
    """The kind of source that lies at a path.

    Raises:
        ValueError: there is no path, or it is a file that no source reads.
        FileNotFoundError: nothing lies there.
    """
    place = _place(path, "a folder of pictures, a .npy or .npz file, or a folder of IDX files")
    if place.is_file():
        if place.suffix in _NUMPY_SUFFIXES:
            return "arrays"
        raise ValueError(f"data.path = {path}: a file that is neither .npy nor .npz; name a folder of pictures instead")
    names = [entry.name for entry in place.iterdir() if entry.is_file()]
    if any(name.removesuffix(".gz").endswith("-ubyte") for name in names):
        return "idx"
    has_arrays = any(name.endswith(".npy") for name in names)
    return "arrays" if has_arrays and not list_pictures(place) else "folder"


def place_of(spec: DataSpec) -> str:
    """Where the images come from, for people."""
    name = spec.source_name if SOURCES[spec.source].needs_name else None
    return " ".join(filter(None, [spec.source, name, spec.path]))


def check_image_shape(source: ImageSource, spec: DataSpec) -> None:
    """Raises ValueError unless the source's images have the size that the spec promises to the model."""
    if tuple(source.image_shape) != spec.image_shape:
        raise ValueError(
            f"The images of data set '{spec.name}' are {list(source.image_shape)} (height, width, channels), "
            f"but its spec says {list(spec.image_shape)}."
        )


def _module(spec):
    """The source's module, imported when it is needed: some take seconds."""
    check_choice("data.source", spec.source, ("auto", *SOURCES))
    source = SOURCES[source_at(spec.path) if spec.source == "auto" else spec.source]
    if source.needs:
        place = _place(spec.path, source.needs)
        if source.needs_folder and not place.is_dir():
            raise ValueError(
                f"data.path = {spec.path}: a file; for data.source = {spec.source} it names {source.needs}"
            )
    if source.needs_name and not spec.source_name:
        raise ValueError(
            f"data.source_name is not set: the name of the set within data.source = {spec.source}, "
            "for example --config.data.source_name=oxford_flowers102 for TensorFlow Datasets"
        )
    if source.starts_tensorflow:
        start_tensorflow_quietly()
    return importlib.import_module(f"nvae_tf.data.{source.module}")


def _place(path, needs):
    if not path:
        raise ValueError(f"data.path is not set: --config.data.path=... names {needs}")
    place = pathlib.Path(path).expanduser()
    if not place.exists():
        raise FileNotFoundError(
            f"data.path = {path}: there is nothing; it names {needs} (flag --config.data.path, or --data_path)"
        )
    return place


def _with_home(spec):
    """The spec with `~` in its path replaced, which a shell does not do within --config.data.path=~/pictures."""
    return dataclasses.replace(spec, path=os.path.expanduser(spec.path)) if spec.path else spec


def _one_channel(spec):
    return dataclasses.replace(spec, channels=1, stacked_images=1)
