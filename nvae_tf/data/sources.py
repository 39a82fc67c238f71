"""From a data spec to its images; TensorFlow is imported when a pipeline is made.

A new kind of source is a line in `SOURCES` and a module with the functions `load_KIND`, `first_KIND_image` and, where
they are needed, `KIND_holds_out` (it may have no test part) and `KIND_classes`. `source_at` is for `auto`.
"""

import dataclasses
import hashlib
import importlib
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Self

import numpy as np
import psutil

from nvae_tf.config import MOST_CLASSES, DataSpec, check, check_choice
from nvae_tf.data.pictures import TIFF, PictureHeader, list_pictures
from nvae_tf.errors import start_tensorflow_quietly
from nvae_tf.progress import Report

# Each kind of source: its module, and what `data.path` names; where that is None, `data.source_name` must be set.
SOURCES = {
    "bundled": ("bundled", None),
    "tfds": ("tfds", None),
    "folder": ("picture_folder", "a folder of pictures"),
    "arrays": ("array_files", "a .npy or .npz file, or a folder with train.npy and test.npy"),
    "idx": ("array_files", "a folder of IDX files, *-ubyte or *-ubyte.gz"),
    "tiff": ("tiff_files", "a TIFF file, or a folder of them"),
    "mat": ("array_files", "the file chardata.mat, or its folder"),
}


class ImageSource:
    """One part of a data set: `count` numbered images of `image_shape`, which are read on demand.

    `read`, which several threads call, takes numbers `[batch]` and gives `[batch, height, width, channels]` of `dtype`.
    """

    labels: np.ndarray | None = None  # the number of each image's class, int32 `[count]`
    class_names: tuple[str, ...] = ()

    def __init__(self, count: int, image_shape: tuple[int, int, int], read: Callable[..., np.ndarray], dtype="uint8"):
        self.count, self.image_shape, self.read, self.dtype = count, image_shape, read, dtype
        self.failures = []  # errors of reading images; TensorFlow passes on no more than their text

    def reader(self) -> Callable:
        """A function of tensors, from indices `[batch]` (with `data.crop` and places `[batch, 2]`) to images."""
        import tensorflow as tf

        def read_or_note(*given):
            try:
                return self.read(*given)
            except Exception as error:
                self.failures.append(error)
                raise

        def images_at(indices, *places):
            images = tf.numpy_function(read_or_note, [indices, *places], self.dtype, stateful=False)
            return tf.ensure_shape(images, [indices.shape[0], *self.image_shape])

        return images_at

    def names(self) -> Sequence[str | int]:
        """A name for each image: the path of its file, or its number where it has no file of its own."""
        return range(self.count)

    def labeled(self, labels: np.ndarray, class_names: tuple[str, ...]) -> Self:
        """This source, which has labels from now on."""
        self.labels, self.class_names = labels.astype(np.int32), class_names
        return self


class ArraySource(ImageSource):
    """Images in memory, uint8, uint16 or float32 `[count, height, width, channels]`."""

    def __init__(self, images: np.ndarray):
        if images.dtype not in (np.uint8, np.uint16, np.float32) or images.ndim != 4 or not images.size:
            form = "a non-empty uint8, uint16 or float32 array [count, height, width, channels]"
            raise ValueError(f"Images must be {form}, not {images.dtype} {list(images.shape)}.")
        super().__init__(len(images), images.shape[1:], images.__getitem__, images.dtype.name)
        self.images = images


def stacked(base: ImageSource, channels: int, seed: int) -> ImageSource:
    """Images whose channels are images of `base`, each once in every channel, in orders that depend on the seed."""
    # RandomState, because NumPy promises never to change its numbers; Generator's may change.
    random = np.random.RandomState(seed)
    orders = [random.permutation(base.count) for _ in range(channels)]

    def read(numbers):
        return np.concatenate([base.read(order[numbers]) for order in orders], axis=-1)

    return ImageSource(base.count, (*base.image_shape[:2], channels), read, base.dtype)


def load_split(spec: DataSpec, split: str, report: Report | None = None) -> ImageSource:
    """One part, "train" or "test", of a data set whose spec is complete (`nvae_tf.data.spec.complete_spec`).

    ValueError for unusable images, FileNotFoundError for none, ConnectionError where they can't be downloaded.
    """
    check(split in ("train", "test"), f"There is no split '{split}'. Valid: train, test.")
    alone = {"channels": 1, "stacked_images": 1, "display_channels": ()}
    single = dataclasses.replace(spec, **alone) if spec.stacked_images > 1 else spec
    source = _call("load_{}", single, split, report or Report())
    if spec.stacked_images > 1:
        source = stacked(source, spec.stacked_images, spec.split_seed)
    if tuple(source.image_shape) != spec.image_shape:
        raise ValueError(f"The images of '{spec.name}' are {source.image_shape}, but its spec says {spec.image_shape}.")
    if spec.labels:
        _check_classes(source.class_names, spec)
        number, highest = len(source.class_names), source.labels.max()
        if highest >= number or spec.num_classes not in (None, number):
            fault = f"in {place_of(spec)} the {split} labels go to {highest}, the training images have {number} classes"
            fix = f"set --config.data.num_classes={max(number, highest + 1)}"
            raise ValueError(f"data.num_classes = {spec.num_classes}: {fault}; {fix}")
    return source


def first_image(spec: DataSpec) -> PictureHeader:
    """Size, channels and bits of a data set's images, by a look at some; a size is None where they differ."""
    return _call("first_{}_image", spec)


def holds_out(spec: DataSpec) -> bool:
    """Whether the test part is `test_fraction` of the images, drawn at random: the source has no parts of its own."""
    return bool(_call("{}_holds_out", spec))


def lacks_folders_of_parts(spec: DataSpec) -> bool:
    """Whether a folder has no sub-folders for the two parts, so that a source of files holds a part of them out."""
    return not all(pathlib.Path(spec.path, name).is_dir() for name in (spec.train_split, spec.test_split))


def class_names(spec: DataSpec) -> tuple[str, ...]:
    """The names of the classes of a data set, in the order of their numbers; ValueError where there are none."""
    names = _call("{}_classes", spec) or ()
    _check_classes(names, spec)
    return names


def class_numbers(labels: np.ndarray, count: int, where: object, least: int = 0) -> np.ndarray:
    """A file's labels of `count` images, int32 `[count]`; ValueError where they are no numbers of classes."""
    are_numbers = labels.dtype.kind in "iu" and labels.shape in ((count,), (count, 1))
    if not are_numbers or labels.min() < least or labels.max() >= MOST_CLASSES:
        rule = f"{count:,} whole numbers from {least} to {MOST_CLASSES - 1} at most, one for each image"
        raise ValueError(f"{where}: has {labels.dtype} {list(labels.shape)} as labels; they must be {rule}")
    return labels.reshape(count).astype(np.int32)


def _check_classes(names: Sequence[str], spec: DataSpec) -> None:
    number = 0 if spec.stacked_images > 1 else len(names)
    check(number >= 2, f"data.labels = True: {place_of(spec)} has {number} classes; set --config.data.labels=False")


def source_at(path: str | None) -> str:
    """The kind of source at a path; ValueError where it is a file that no source reads."""
    place = _place(path, "a folder of pictures, a .npy, .npz or .tif file, or a folder of IDX files")
    if place.is_file():
        is_tiff = place.suffix.lower() in TIFF
        check(is_tiff or place.suffix in (".npy", ".npz"), f"data.path = {path}: a file that is neither .npy nor .npz")
        return "tiff" if is_tiff else "arrays"
    if any(place.glob("*-ubyte")) or any(place.glob("*-ubyte.gz")):
        return "idx"
    return "arrays" if any(place.glob("*.npy")) and not list_pictures(place) else "folder"


def place_of(spec: DataSpec) -> str:
    """Where the images come from, for people."""
    name = None if SOURCES[spec.source][1] else spec.source_name
    return " ".join(filter(None, [spec.source, name, spec.path]))


def _call(name, spec, *arguments):
    """What a function of the source's module returns for the spec, with a checked path without `~`; None without it."""
    check(spec.source != "auto", "the run names no place of its data: give --data_path")
    check_choice("data.source", spec.source, SOURCES)
    module, needs = SOURCES[spec.source]
    if needs:
        _place(spec.path, needs)
    elif not spec.source_name:
        raise ValueError(f"data.source_name is not set: the name of the set within data.source = {spec.source}")
    if spec.source == "tfds":
        # Names of other kinds TFDS looks up on the network, for minutes.
        if not re.fullmatch(r"[\w-]+(/[\w+.-]+)?(:[\d.*]+)?(/\w+=.*)?", spec.source_name):
            fix = "not a name of TensorFlow Datasets, which are as NAME, NAME/CONFIG or NAME:VERSION"
            raise ValueError(f"data.source_name = {spec.source_name!r:.60}: {fix}")
        start_tensorflow_quietly()
    # A shell does not replace `~` within --config.data.path=~/pictures.
    spec = dataclasses.replace(spec, path=os.path.expanduser(spec.path)) if spec.path else spec
    # Imported when it is needed: some modules take seconds.
    function = getattr(importlib.import_module(f"nvae_tf.data.{module}"), name.format(spec.source), None)
    return function and function(spec, *arguments)


def _place(path, needs):
    if path and os.path.exists(os.path.expanduser(path)):
        return pathlib.Path(path).expanduser()
    fault = f"data.path = {path}: no such file or folder" if path else "data.path is not set: give --config.data.path"
    fix = f"it names {needs} (after training, --data_path tells where the images are now)"
    raise FileNotFoundError(f"{fault}; {fix}")


def held_out(names: Sequence[str], spec: DataSpec) -> tuple[list[int], list[int]]:
    """The numbers of the images for training, and of those for testing, by `test_fraction` and `split_seed`.

    An image's place in the order of choice is a hash of its name, so that few images change sides when some are added.
    """
    number = len(names)
    check(number >= 2, f"{spec.path}: one image can't be divided into a training and a test part")
    count = min(max(round(spec.test_fraction * number), 1), number - 1)
    key = str(spec.split_seed).encode()
    hashes = [hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8, key=key).digest() for name in names]
    order = sorted(range(number), key=hashes.__getitem__)
    return sorted(order[count:]), sorted(order[:count])


def spread_numbers(count: int, at_most: int) -> list[int]:
    """Up to this many of the numbers from 0 to `count - 1`, spread evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, at_most)).astype(int)).tolist()


def check_memory(needed: int, what: str, fix: str) -> None:
    """Raises ValueError unless there is memory for `needed` bytes of images: "WHAT need 4.7 GB of memory, ...: FIX"."""
    free = psutil.virtual_memory().available
    if needed > free / 3:  # the array, and its parts until it is put together; the model wants some too
        raise ValueError(f"{what} need {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free: {fix}")
