"""Decoded images on disk, memory-mapped: decoding, cropping and resizing happen once, not at every access."""

import hashlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterable

import numpy as np

from nvae_tf.config import DataSpec
from nvae_tf.data.array_files import map_array
from nvae_tf.data.sources import ReadSource
from nvae_tf.errors import first_line
from nvae_tf.files import check_writable
from nvae_tf.progress import Report

# To be raised whenever the code makes other pixels of the same pictures: all are then decoded again.
_FORM = 3
# What decides about the pixels, besides the files.
_PIXEL_SETTINGS = (
    *("source", "source_name", "train_split", "test_split", "test_fraction", "split_seed"),
    *("height", "width", "channels", "file_bits", "convert", "crop_box", "resize", "on_bad_file", "max_pixels"),
)


class DecodedCache:
    """The decoded images of one part of a data set: an array file in the folder `spec.cache`.

    Its name has a hash of the settings and of `contents`, which need a `repr`: others give another file.
    """

    def __init__(self, spec: DataSpec, split: str, contents: Iterable[object]):
        digest = hashlib.sha256(repr((_FORM, [getattr(spec, name) for name in _PIXEL_SETTINGS])).encode())
        for content in contents:
            digest.update(repr(content).encode(errors="surrogateescape"))
        name = re.sub("[^A-Za-z0-9]+", "_", spec.name)
        self._spec = spec
        self._folder = pathlib.Path(spec.cache).expanduser()
        self._file = self._folder / f"{name}-{split}-{digest.hexdigest()[:16]}.npy"
        if not self.exists:
            check_writable(self._folder, f"data.cache = {spec.cache}")
            self._folder.mkdir(parents=True, exist_ok=True)

    @property
    def exists(self) -> bool:
        """Whether the images have been written before."""
        return self._file.is_file()

    def source(self) -> ReadSource:
        """The images, read from the file on demand; ValueError where it is damaged."""
        try:
            images = map_array(self._file)
            if images.dtype != np.uint8 or images.shape[1:] != self._spec.image_shape:
                raise ValueError(f"it has {images.dtype} {list(images.shape)}")
        # NumPy raises errors of many kinds for damaged files.
        except Exception as error:
            reason = first_line(error)
            raise ValueError(f"{self._file}: damaged ({reason}); remove it, and it will be made again") from None
        return ReadSource(len(images), images.shape[1:], lambda numbers: images[numbers])

    def write(self, batches: Iterable[np.ndarray], count: int, report: Report) -> None:
        """Writes `count` images from batches uint8 `[batch, height, width, channels]`, atomically."""
        shape = (count, *self._spec.image_shape)
        # A name of its own: other processes, on other machines too, may be writing the same images.
        descriptor, unfinished = tempfile.mkstemp(prefix=f"{self._file.name}.unfinished-", dir=self._folder)
        os.close(descriptor)
        try:
            images = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.uint8, shape=shape)
            self._take_room(unfinished)
            done = 0
            for batch in batches:
                images[done : done + len(batch)] = batch
                done += len(batch)
                report.progress(f"decoding into {self._folder}: {done:,} of {count:,} images")
            if done != count:
                raise ValueError(
                    f"{self._spec.path}: has {done} images, not {count}: did it change meanwhile? Try again"
                )
            images.flush()
            os.replace(unfinished, self._file)
        finally:
            pathlib.Path(unfinished).unlink(missing_ok=True)

    def _take_room(self, unfinished):
        """Takes all of the file's blocks: a full disk would end the process when a mapped page is written."""
        size, free = os.path.getsize(unfinished), shutil.disk_usage(self._folder).free
        try:
            with open(unfinished, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise ValueError(
                f"data.cache = {self._spec.cache}: the decoded images need {size / 1e9:.1f} GB, and {free / 1e9:.1f} "
                f"GB are free ({error.strerror}); name a folder on another disk"
            ) from None
