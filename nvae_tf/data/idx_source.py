"""Images in IDX files, the format of MNIST: a folder of `*-ubyte` or `*-ubyte.gz` files."""

import gzip
import math
import pathlib
import zlib

import numpy as np

from nvae_tf.data.geometry import check_array, fit_array
from nvae_tf.data.image_sources import ArraySource, ImageSource, check_memory
from nvae_tf.data.picture_files import PictureHeader
from nvae_tf.data.reports import Report
from nvae_tf.data_spec import DataSpec

_WORDS = {"train": ("train",), "test": ("t10k", "test")}
_UINT8 = 8


def first_image(spec: DataSpec) -> PictureHeader:
    """What the images of the training part are like: gray, 8 bits.

    Raises:
        ValueError: see `load`.
    """
    images = _read(_file(spec, "train", "images"), dimensions=3)
    return PictureHeader(*images.shape[1:], 1, 8)


def load(spec: DataSpec, split: str, report: Report) -> ImageSource:
    """Reads one part into memory.

    Args:
        spec: a complete spec with source "idx". Where a folder has several sets, `source_name` is how the names of the
            right files begin (`emnist-letters`).
        split: "train" or "test".
        report: not used; reading takes a moment.

    Raises:
        ValueError: the folder has no such file or several, or a file is damaged.
    """
    del report
    file = _file(spec, split, "images")
    images = _read(file, dimensions=3)[..., np.newaxis]
    check_array(images, spec, file)
    return ArraySource(fit_array(images, spec))


def _matching(spec, split, content):
    found = sorted(
        file
        for file in pathlib.Path(spec.path).iterdir()
        if file.name.removesuffix(".gz").endswith("ubyte")
        and content in file.name
        and any(word in file.name for word in _WORDS[split])
    )
    # A name that no file has belongs to another kind of source.
    return [file for file in found if file.name.startswith(spec.source_name or "")] or found


def _file(spec, split, content):
    found = _matching(spec, split, content)
    # The same file packed and unpacked is one.
    if len({file.name.removesuffix(".gz") for file in found}) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{spec.path}: several files could be the {split} {content}: {', '.join(file.name for file in found)}; set "
            "--config.data.source_name to how the right one's name begins"
        )
    raise ValueError(
        f"{spec.path}: no file is the {split} {content} in IDX format; it is called like "
        f"{_WORDS[split][-1] if split == 'train' else _WORDS[split][0]}-{content}-idx3-ubyte or ...-ubyte.gz"
    )


def _read(file, dimensions):
    """The array of an IDX file: two zero bytes, the type, the number of dimensions, their sizes, the values."""
    packed = file.suffix == ".gz"
    try:
        with gzip.open(file) if packed else file.open("rb") as stream:
            header = stream.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or tuple(header[:4]) != (0, 0, _UINT8, dimensions):
                raise ValueError(f"{file}: not an IDX file of bytes with {dimensions} dimensions")
            shape = tuple(int(size) for size in np.frombuffer(header, ">u4", dimensions, offset=4))
            said, count = " x ".join(map(str, shape)), math.prod(shape)
            check_memory(count, f"{file}: its images, {said} as its header says,", "write them to a .npy file")
            # However much is packed behind them, no more than one value too many is unpacked.
            content = stream.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        problem = "a damaged gzip file" if packed else "unreadable"
        raise ValueError(f"{file}: {problem} ({error}); get it anew") from None
    if len(content) < count:
        raise ValueError(
            f"{file}: has {len(content):,} values, but its header says {said}: it was cut off; get it anew"
        )
    if len(content) > count:
        raise ValueError(f"{file}: has more than the {count:,} values of its header, {said}: damaged; get it anew")
    if not count:
        raise ValueError(f"{file}: has no images; its header says {said}")
    return np.frombuffer(content, np.uint8).reshape(shape)
