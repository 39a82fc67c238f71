"""Pictures in a folder: one file each, in any tree of sub-folders."""

import collections
import functools
import pathlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from nvae_tf.data.decoded_cache import DecodedCache, fingerprint
from nvae_tf.data.geometry import WrongSize, geometry
from nvae_tf.data.held_out import held_out
from nvae_tf.data.image_sources import ImageSource, ReadSource
from nvae_tf.data.picture_files import (
    SUFFIXES,
    BadPicture,
    PictureHeader,
    list_pictures,
    read_header,
    read_picture,
)
from nvae_tf.data.reports import Report
from nvae_tf.data_spec import DataSpec

_THREADS = 8
_LOOKED_AT_PER_REPORT = 5_000
_LOOKED_AT_FIRST = 200
_READ_BATCH = 64
_SKIPPED_NAMES_SHOWN = 5


def first_image(spec: DataSpec) -> PictureHeader:
    """What most pictures of the training part are like, from a look at some all over it.

    Raises:
        FileNotFoundError, ValueError: see `load`.
    """
    names = _names_of_parts(spec)["train"]
    headers, problems = [], []
    for name in names[:: -(-len(names) // _LOOKED_AT_FIRST)]:
        try:
            headers.append(read_header(pathlib.Path(spec.path, name), spec.max_pixels))
        except BadPicture as error:
            problems.append(str(error))
    if not headers:
        raise ValueError(f"{problems[0]}. {_mend(len(problems))}")
    # Apart: where all sizes differ, the channels may still be the same.
    (size, _), *_ = collections.Counter((header.height, header.width) for header in headers).most_common(1)
    (form, _), *_ = collections.Counter((header.channels, header.bits) for header in headers).most_common(1)
    return PictureHeader(*size, *form)


def load(spec: DataSpec, split: str, report: Report) -> ImageSource:
    """Finds the pictures of one part and looks at the header of each; pixels are read when they are asked for.

    Where the folder has the sub-folders `train_split` and `test_split`, these are the parts; otherwise a fraction of
    all pictures is held out for testing.

    Args:
        spec: a complete spec with source "folder".
        split: "train" or "test".
        report: gets what is going on, and what was skipped.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it has no pictures, or one of them can't be used and `on_bad_file` is "stop".
    """
    names = _names_of_parts(spec)[split]
    if spec.cache is None:
        return _source(spec, _usable(spec, split, names, report))
    with ThreadPoolExecutor(_THREADS) as threads:
        stamp = functools.partial(_stamp, spec)
        chunks = (names[start : start + _LOOKED_AT_PER_REPORT] for start in range(0, len(names), _LOOKED_AT_PER_REPORT))
        identity = fingerprint(spec, (entry for chunk in chunks for entry in threads.map(stamp, chunk)))
    cache = DecodedCache(spec, split, identity)
    if not cache.exists:
        source = _source(spec, _usable(spec, split, names, report))
        numbers = np.array_split(np.arange(source.count), -(-source.count // _READ_BATCH))
        cache.write((source.read(batch) for batch in numbers), source.count, report)
    return cache.source()


def holds_out(spec: DataSpec) -> bool:
    """Whether the test pictures are a random part of all, because the folder has no sub-folders for the parts."""
    return not all(pathlib.Path(spec.path, name).is_dir() for name in (spec.train_split, spec.test_split))


def _source(spec: DataSpec, names: Sequence[str]) -> ReadSource:
    fit = geometry(spec)

    def read(numbers):
        return np.stack([_pixels(pathlib.Path(spec.path, names[number]), spec, fit) for number in numbers])

    return ReadSource(len(names), spec.image_shape, read)


def _pixels(path, spec, fit):
    try:
        picture = read_picture(path, spec.channels, spec.max_pixels, fit.apply)
        return np.asarray(picture).reshape(spec.image_shape)
    except BadPicture as error:
        raise BadPicture(f"{error}. {_mend(1)}") from None
    except WrongSize as error:
        raise BadPicture(f"{path}: {error}") from None
    except Exception as error:
        raise BadPicture(f"{path}: can't be converted ({error}). {_mend(1)}") from None


def _names_of_parts(spec: DataSpec) -> dict[str, list[str]]:
    """The pictures of the training and the test part, relative to the folder."""
    root = pathlib.Path(spec.path)
    has_train, has_test = ((root / name).is_dir() for name in (spec.train_split, spec.test_split))
    if has_train and has_test:
        parts = {"train": spec.train_split, "test": spec.test_split}
        return {part: _pictures(root, name) for part, name in parts.items()}
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if has_test or (has_train and len(folders) > 1):
        missing, setting = (spec.test_split, "test_split") if has_train else (spec.train_split, "train_split")
        raise ValueError(
            f"{root} has the sub-folders {', '.join(folders)}, but no {missing!r}: set --config.data.{setting} to the "
            f"one that is for {setting.removesuffix('_split')}ing, or rename it"
        )
    names = _pictures(root, "")
    numbers = held_out(names, spec)
    return {part: [names[number] for number in chosen] for part, chosen in zip(("train", "test"), numbers, strict=True)}


def _pictures(root, folder):
    names = [str(pathlib.PurePath(folder, name)) for name in list_pictures(root / folder)]
    if not names:
        raise ValueError(
            f"{root / folder}: no pictures in it; they are files with names in {', '.join(SUFFIXES)}"
            + _what_is_there(root / folder)
        )
    return names


def _what_is_there(folder):
    found = sorted({path.suffix.lower() or path.name for path in folder.iterdir()})[:5]
    return f" (there are: {', '.join(found)})" if found else " (it is empty)"


def _stamp(spec, name):
    try:
        status = pathlib.Path(spec.path, name).stat()
    except OSError:
        # A link to nothing; whether that matters is decided where pictures are examined.
        return name, None, None
    return name, status.st_size, status.st_mtime_ns


def _usable(spec: DataSpec, split: str, names: Sequence[str], report: Report) -> list[str]:
    """The names of the pictures that can be used; "stop" raises at one that can't, "skip" decodes every picture."""
    examine = functools.partial(_examine, spec)
    usable, problems = [], []
    with ThreadPoolExecutor(_THREADS) as threads:
        for start in range(0, len(names), _LOOKED_AT_PER_REPORT):
            chunk = names[start : start + _LOOKED_AT_PER_REPORT]
            for name, problem in zip(chunk, threads.map(examine, chunk), strict=True):
                if problem is None:
                    usable.append(name)
                else:
                    problems.append(problem)
            if spec.on_bad_file == "stop" and problems:
                break
            report.progress(f"looking at the pictures in {spec.path}: {start + len(chunk):,} of {len(names):,}")
    if problems and spec.on_bad_file == "stop":
        raise ValueError(f"{problems[0]}. {_mend(len(problems))}")
    if not usable:
        raise ValueError(f"{spec.path}: none of {len(names):,} pictures can be used; the first: {problems[0]}")
    if problems:
        report.keep(_skipped(spec, split, problems, len(names)))
    return usable


def _mend(count):
    others = f" ({count - 1} more can't be used, for this or other reasons)" if count > 1 else ""
    return f"Mend or remove the file{others}, or leave such files out with --config.data.on_bad_file=skip"


def _skipped(spec, split, problems, count):
    shown = "\n".join(f"    {problem}" for problem in problems[:_SKIPPED_NAMES_SHOWN])
    rest = f"\n    and {len(problems) - _SKIPPED_NAMES_SHOWN:,} more" if len(problems) > _SKIPPED_NAMES_SHOWN else ""
    return f"Skipped {len(problems):,} of {count:,} pictures of the {split} part of {spec.path}:\n{shown}{rest}"


def _examine(spec: DataSpec, name: str) -> str | None:
    """Why a picture can't be used; None if it can, as far as its header (with "skip": its pixels) tells."""
    path = pathlib.Path(spec.path, name)
    try:
        _check_form(path, read_header(path, spec.max_pixels), spec)
        if spec.on_bad_file == "skip":
            read_picture(path, spec.channels, spec.max_pixels)
    except BadPicture as error:
        return str(error)
    return None


def _check_form(path, header: PictureHeader, spec: DataSpec):
    try:
        geometry(spec).check_size(header.height, header.width)
    except WrongSize as error:
        raise BadPicture(f"{path}: {error}") from None
    if spec.convert:
        return
    for found, expected, what, setting in (
        (header.channels, spec.channels, "channels", "channels"),
        (header.bits, spec.file_bits, "bits a channel", "file_bits"),
    ):
        if found != expected:
            raise BadPicture(
                f"{path}: has {found} {what}, but data.{setting} is {expected}; --config.data.convert=True converts "
                "such files when they are read"
            )
