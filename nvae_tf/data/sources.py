"""From a data spec to its images; TensorFlow is imported when a pipeline is made.

A new kind of source is a line in `SOURCES` and a module with the functions `load_KIND`, `first_KIND_image` and, where
it may have no test part, `KIND_holds_out`; where its images have labels, `KIND_classes`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import psutil

from nvae_tf.config import MOST_CLASSES, DataSpec, check, check_choice
from nvae_tf.data.pictures import PictureHeader, list_pictures
from nvae_tf.errors import start_tensorflow_quietly
from nvae_tf.progress import Report, counted

if TYPE_CHECKING:
    import tensorflow as tf


class _Source(NamedTuple):
    """A kind of source: its module, what `data.path` names, whether `data.source_name` must be set."""

    module: str
    needs: str | None = None
    needs_folder: bool = False
    needs_name: bool = False


SOURCES = {
    "bundled": _Source("bundled", needs_name=True),
    "tfds": _Source("tfds", needs_name=True),
    "folder": _Source("picture_folder", needs="a folder of pictures", needs_folder=True),
    "arrays": _Source("array_files", needs="a .npy or .npz file, or a folder with train.npy and test.npy"),
    "idx": _Source("array_files", needs="a folder of IDX files, *-ubyte or *-ubyte.gz", needs_folder=True),
    "mat": _Source("array_files", needs="the file chardata.mat, or its folder"),
}


class ImageSource:
    """One part of a data set: `count` numbered images of `image_shape`, with values from 0 to 255."""

    count: int
    image_shape: tuple[int, int, int]
    # The number of each image's class, int32 `[count]`, and the classes' names in the order of their numbers.
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    # Errors of reading images; TensorFlow passes on no more than their text.
    failures: Sequence[Exception] = ()

    def reader(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """A function, to be traced, from indices `[batch]` to uint8 images `[batch, height, width, channels]`."""
        raise NotImplementedError

    def names(self) -> Sequence[str | int]:
        """A name for each image: the path of its file, or its number where it has no file of its own."""
        return range(self.count)

    def labeled(self, labels: np.ndarray, class_names: tuple[str, ...]) -> ImageSource:
        """This source, which has labels from now on."""
        self.labels, self.class_names = labels.astype(np.int32), class_names
        return self


class ArraySource(ImageSource):
    """Images in memory, uint8 `[count, height, width, channels]`."""

    def __init__(self, images: np.ndarray):
        valid = images.dtype == np.uint8 and images.ndim == 4 and images.size > 0
        actual = f"{images.dtype} {list(images.shape)}"
        check(valid, f"Images must be a non-empty uint8 array [count, height, width, channels], not {actual}.")
        self.images, self.count, self.image_shape = images, len(images), images.shape[1:]
        self._tensor = None

    def reader(self):
        import tensorflow as tf

        # An eager tensor is captured by reference, an array would be copied into each graph. tf.data runs on the CPU.
        if self._tensor is None:
            with tf.device("/CPU:0"):
                self._tensor = tf.constant(self.images)
        images = self._tensor
        return lambda indices: tf.gather(images, indices)


class ReadSource(ImageSource):
    """Images that are read on demand: from files, or a memory-mapped array.

    `read` takes numbers `[batch]` and returns uint8 `[batch, height, width, channels]`; several threads call it.
    """

    def __init__(self, count: int, image_shape: tuple[int, int, int], read: Callable[[np.ndarray], np.ndarray]):
        self.count, self.image_shape, self.read = count, image_shape, read
        self.failures = []

    def reader(self):
        import tensorflow as tf

        def read_or_note(indices):
            try:
                return self.read(indices)
            except Exception as error:
                self.failures.append(error)
                raise

        def images_at(indices):
            images = tf.numpy_function(read_or_note, [indices], tf.uint8, stateful=False)
            return tf.ensure_shape(images, [indices.shape[0], *self.image_shape])

        return images_at


class StackedSource(ImageSource):
    """Images whose channels are images of another source of one channel: stacked MNIST.

    Every image of `base` comes once in each channel, in orders that depend on the seed alone.
    """

    def __init__(self, base: ImageSource, channels: int, seed: int):
        # RandomState, because NumPy promises never to change its numbers; those of Generator may change.
        random = np.random.RandomState(seed)
        self.base, self.orders = base, np.stack([random.permutation(base.count) for _ in range(channels)])
        self.count, self.failures = base.count, base.failures
        self.image_shape = (*base.image_shape[:2], channels)

    def reader(self):
        import tensorflow as tf

        read = self.base.reader()
        with tf.device("/CPU:0"):
            orders = [tf.constant(order) for order in self.orders]
        return lambda indices: tf.concat([read(tf.gather(order, indices)) for order in orders], axis=-1)


def load_split(spec: DataSpec, split: str, report: Report | None = None) -> ImageSource:
    """One part, "train" or "test", of a data set whose spec is complete (`nvae_tf.data.spec.complete_spec`).

    Raises ValueError for images that can't be used, FileNotFoundError where nothing lies at `data.path`, and
    ConnectionError where the data must be downloaded and can't be.
    """
    check(split in ("train", "test"), f"There is no split '{split}'. Valid: train, test.")
    load, spec = _function(spec, "load_{}")
    report = report or Report()
    if spec.stacked_images == 1:
        source = load(spec, split, report)
    else:
        base = load(dataclasses.replace(spec, channels=1, stacked_images=1), split, report)
        source = StackedSource(base, spec.stacked_images, spec.split_seed)
    check_image_shape(source, spec)
    if spec.labels:
        _check_labels(source, spec, split)
    return source


def first_image(spec: DataSpec) -> PictureHeader:
    """Size, channels and bits of a data set's images, by a look at some; a size is None where they differ."""
    look, spec = _function(spec, "first_{}_image")
    return look(spec)


def holds_out(spec: DataSpec) -> bool:
    """Whether the test part is `test_fraction` of the images, drawn at random: the source has no parts of its own."""
    function, spec = _function(spec, "{}_holds_out")
    return function is not None and function(spec)


def class_names(spec: DataSpec) -> tuple[str, ...]:
    """The names of the classes of a data set, in the order of their numbers; ValueError where there are none."""
    function, at_path = _function(spec, "{}_classes")
    names = function(at_path) if function else ()
    _check_classes(names, spec)
    return names


def class_numbers(labels: np.ndarray, count: int, where: object) -> np.ndarray:
    """A file's labels of `count` images, int32 `[count]`; ValueError where they are no numbers of classes."""
    actual = f"{where}: has labels of type {labels.dtype} and shape {list(labels.shape)}"
    are_numbers = labels.dtype.kind in "iu" and labels.shape in ((count,), (count, 1))
    check(are_numbers, f"{actual}; they must be whole numbers, one for each of its {counted(count, 'image')}")
    limits = f"{where}: has labels from {labels.min()} to {labels.max()}; classes are numbered from 0"
    check(labels.min() >= 0 and labels.max() < MOST_CLASSES, f"{limits}, to {MOST_CLASSES - 1} at most")
    return labels.reshape(count).astype(np.int32)


def _check_classes(names: Sequence[str], spec: DataSpec) -> None:
    where, fix = f"data.labels = True: {place_of(spec)}", "set --config.data.labels=False; docs/data.md says more"
    check(spec.stacked_images == 1, f"{where} makes an image of {spec.stacked_images}, of several classes; {fix}")
    check(len(names) > 0, f"{where} has no labels; {fix}")
    check(len(names) > 1, f"{where} has one class only, {names[0]}; {fix}")


def _check_labels(source: ImageSource, spec: DataSpec, split: str) -> None:
    _check_classes(source.class_names, spec)
    where, num_classes, highest = place_of(spec), len(source.class_names), source.labels.max()
    beyond = (
        f"{where}: {split} images have the class {highest}, but those for training are of {num_classes} classes, from 0"
    )
    check(highest < num_classes, f"{beyond}; set --config.data.num_classes={highest + 1}, or remove such images")
    differ = f"data.num_classes = {spec.num_classes}, but {where} has {num_classes} classes"
    check(spec.num_classes in (None, num_classes), f"{differ}; set --config.data.num_classes={num_classes}")


def source_at(path: str | None) -> str:
    """The kind of source at a path; ValueError where it is a file that no source reads."""
    place = _place(path, "a folder of pictures, a .npy or .npz file, or a folder of IDX files")
    if place.is_file():
        if place.suffix in (".npy", ".npz"):
            return "arrays"
        raise ValueError(f"data.path = {path}: a file that is neither .npy nor .npz; name a folder of pictures instead")
    names = [entry.name for entry in place.iterdir() if entry.is_file()]
    if any(name.removesuffix(".gz").endswith("-ubyte") for name in names):
        return "idx"
    return "arrays" if any(name.endswith(".npy") for name in names) and not list_pictures(place) else "folder"


def place_of(spec: DataSpec) -> str:
    """Where the images come from, for people."""
    name = spec.source_name if SOURCES[spec.source].needs_name else None
    return " ".join(filter(None, [spec.source, name, spec.path]))


def check_image_shape(source: ImageSource, spec: DataSpec) -> None:
    """Raises ValueError unless the source's images have the size that the spec promises to the model."""
    actual, said = f"{list(source.image_shape)} (height, width, channels)", list(spec.image_shape)
    fits = tuple(source.image_shape) == spec.image_shape
    check(fits, f"The images of data set '{spec.name}' are {actual}, but its spec says {said}.")


def _function(spec, name):
    """A function of the source's module, None where it has none, and the spec with a checked path, without `~`."""
    check_choice("data.source", spec.source, ("auto", *SOURCES))
    kind = source_at(spec.path) if spec.source == "auto" else spec.source
    source = SOURCES[kind]
    if source.needs and not _place(spec.path, source.needs).is_dir():
        message = f"data.path = {spec.path}: a file; for data.source = {spec.source} it names {source.needs}"
        check(not source.needs_folder, message)
    example = "for example --config.data.source_name=oxford_flowers102 for TensorFlow Datasets"
    message = f"data.source_name is not set: the name of the set within data.source = {spec.source}, {example}"
    check(bool(spec.source_name) or not source.needs_name, message)
    if kind == "tfds":
        # Names of other kinds TFDS looks up on the network, for minutes.
        if not re.fullmatch(r"[\w-]+(/[\w+.-]+)?(:[\d.*]+)?(/\w+=.*)?", spec.source_name):
            fix = "give a name of https://www.tensorflow.org/datasets/catalog, as NAME, NAME/CONFIG or NAME:VERSION"
            raise ValueError(f"data.source_name = {spec.source_name!r:.60}: not a name of TensorFlow Datasets; {fix}")
        start_tensorflow_quietly()
    # Imported when it is needed: some modules take seconds.
    module = importlib.import_module(f"nvae_tf.data.{source.module}")
    # A shell does not replace `~` within --config.data.path=~/pictures.
    spec = dataclasses.replace(spec, path=os.path.expanduser(spec.path)) if spec.path else spec
    return getattr(module, name.format(kind), None), spec


def _place(path, needs):
    check(bool(path), f"data.path is not set: --config.data.path=... names {needs}")
    place = pathlib.Path(path).expanduser()
    if not place.exists():
        moved = "where the images of a run have moved, the commands after training take --data_path"
        needed = f"name {needs} with --config.data.path; {moved}"
        raise FileNotFoundError(f"data.path = {path}: no such file or folder; {needed}")
    return place


def held_out(names: Sequence[str], spec: DataSpec) -> tuple[list[int], list[int]]:
    """The numbers of the images for training, and of those for testing, by `test_fraction` and `split_seed`.

    An image's place in the order of choice is a hash of its name, so that few images change sides when some are added.
    """
    number = len(names)
    check(number >= 2, f"{spec.path}: {number} image can't be divided into a training and a test part: add more images")
    count = min(max(round(spec.test_fraction * number), 1), number - 1)
    key = str(spec.split_seed).encode()
    hashes = [hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8, key=key).digest() for name in names]
    order = sorted(range(number), key=hashes.__getitem__)
    return sorted(order[count:]), sorted(order[:count])


def check_memory(needed: int, what: str, fix: str) -> None:
    """Raises ValueError unless there is memory for `needed` bytes of images: "WHAT need 4.7 GB of memory, ...: FIX"."""
    free = psutil.virtual_memory().available
    # The array, and its copy in TensorFlow; the model wants some too.
    fits = needed <= free / 3
    check(fits, f"{what} need {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free: {fix}")
