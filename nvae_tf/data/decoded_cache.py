"""Decoded images on disk, memory-mapped: decoding, cropping and resizing happen once, not at every access."""

import hashlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable

import numpy as np

from nvae_tf.config import DataSpec
from nvae_tf.data.array_files import map_array
from nvae_tf.data.sources import ReadSource
from nvae_tf.errors import first_line
from nvae_tf.files import atomic_file, check_writable
from nvae_tf.progress import Report

# To be raised whenever the code makes other pixels of the same pictures: all are then decoded again.
_FORM = 3
# What decides about the pixels, besides the files.
_PIXEL_SETTINGS = (
    *("source", "source_name", "train_split", "test_split", "test_fraction", "split_seed"),
    *("height", "width", "channels", "file_bits", "convert", "crop_box", "resize", "on_bad_file", "max_pixels"),
)


def decoded_once(
    spec: DataSpec,
    split: str,
    contents: Iterable[object],
    decode: Callable[[], tuple[int, Iterable[np.ndarray]]],
    report: Report,
) -> ReadSource:
    """The decoded images of one part of a data set, read on demand from an array file in the folder `spec.cache`.

    The file's name has a hash of the settings and of `contents`, which need a `repr`: others give another file. Where
    it is missing, `decode` gives the number of images, and batches uint8 `[batch, height, width, channels]` of them.
    """
    digest = hashlib.sha256(repr((_FORM, [getattr(spec, name) for name in _PIXEL_SETTINGS])).encode())
    for content in contents:
        digest.update(repr(content).encode(errors="surrogateescape"))
    folder = pathlib.Path(spec.cache).expanduser()
    file = folder / f"{re.sub('[^A-Za-z0-9]+', '_', spec.name)}-{split}-{digest.hexdigest()[:16]}.npy"
    if not file.is_file():
        check_writable(folder, f"data.cache = {spec.cache}")
        folder.mkdir(parents=True, exist_ok=True)
        _write(file, spec, *decode(), report)
    try:
        images = map_array(file)
        if images.dtype != np.uint8 or images.shape[1:] != spec.image_shape:
            raise ValueError(f"it has {images.dtype} {list(images.shape)}")
    # NumPy raises errors of many kinds for damaged files.
    except Exception as error:
        raise ValueError(f"{file}: damaged ({first_line(error)}); remove it, and it will be made again") from None
    return ReadSource(len(images), images.shape[1:], lambda numbers: images[numbers])


def _write(file: pathlib.Path, spec: DataSpec, count: int, batches: Iterable[np.ndarray], report: Report) -> None:
    with atomic_file(file) as unfinished:
        images = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=(count, *spec.image_shape))
        _take_room(unfinished, spec)
        done = 0
        for batch in batches:
            images[done : done + len(batch)] = batch
            done += len(batch)
            report.progress(f"decoding into {file.parent}: {done:,} of {count:,} images")
        if done != count:
            raise ValueError(f"{spec.path}: has {done} images, not {count}: did it change meanwhile? Try again")
        images.flush()


def _take_room(unfinished: pathlib.Path, spec: DataSpec) -> None:
    """Takes all of the file's blocks: a full disk would end the process when a mapped page is written."""
    size, free = unfinished.stat().st_size, shutil.disk_usage(unfinished.parent).free
    try:
        with unfinished.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise ValueError(
            f"data.cache = {spec.cache}: the decoded images need {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free "
            f"({error.strerror}); name a folder on another disk"
        ) from None
