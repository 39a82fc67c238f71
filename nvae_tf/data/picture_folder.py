"""Pictures in a folder, one file each, in any tree of sub-folders: as a data set, and for a trained model."""

import dataclasses
import functools
import os
import pathlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from nvae_tf.config import DataSpec, ExperimentConfig, ModelConfig, check, shown
from nvae_tf.data import pictures
from nvae_tf.data.array_files import decoded_once, fitted_images
from nvae_tf.data.sources import ArraySource, ImageSource, held_out
from nvae_tf.data.sources import lacks_folders_of_parts as folder_holds_out
from nvae_tf.data.tiff_files import stack_images
from nvae_tf.progress import Report

_FIX = "Fix or remove the file, or leave such files out with --config.data.on_bad_file=skip"
Places = str | os.PathLike | Sequence[str | os.PathLike]


def first_folder_image(spec: DataSpec) -> pictures.PictureHeader:
    """What most pictures of the training part are like, by the headers of up to 200 spread over it."""
    names, headers, problem = _names_of_parts(spec)["train"], [], None
    for name in names[:: -(-len(names) // 200)]:
        try:
            header = pictures.read_header(pathlib.Path(spec.path, name), spec.max_pixels)
            headers.append(header._replace(channels=spec.seen_channels(header.channels)))
        except pictures.BadPicture as error:
            problem = problem or str(error)  # as text: the error would keep the decoder's memory
    if not headers:
        raise pictures.BadPicture(f"{problem}. {_FIX}")
    # Separately: where all sizes differ, the channels may still be the same.
    size, form = (statistics.mode(header[half] for header in headers) for half in (slice(2), slice(2, 4)))
    return pictures.PictureHeader(*size, *form)


def load_folder(spec: DataSpec, split: str, report: Report) -> ImageSource:
    """The pictures of one part, the header of each checked; pixels are read on demand.

    The parts are the sub-folders `train_split` and `test_split`, or else a fraction is held out for testing.
    """
    parts = _names_of_parts(spec)
    classes = folder_classes(spec) if spec.labels else ()

    # Once for images and labels that are not in the cache.
    @functools.cache
    def source():
        usable = _usable(spec, split, parts[split], report)

        def read(numbers):
            try:
                paths = [pathlib.Path(spec.path, usable[number]) for number in numbers]
                return np.stack([pictures.read_pixels(path, spec) for path in paths])
            except pictures.BadPicture as error:
                raise pictures.BadPicture(f"{error}. {_FIX}") from None

        source = ImageSource(len(usable), spec.image_shape, read, spec.dtype)
        source.names = lambda: [os.path.join(spec.path, name) for name in usable]
        if not classes:
            return source
        folders = [*_class_folders(spec, usable)]
        if others := sorted({*folders} - {*classes}):
            raise ValueError(f"{spec.path}: the training part lacks classes of the test part: {', '.join(others)}")
        return source.labeled(np.searchsorted(classes, folders), classes)

    if spec.cache is None:
        return source()

    def decode():
        usable = source()
        return usable.count, map(usable.read, np.array_split(np.arange(usable.count), -(-usable.count // 64)))

    contents = _in_threads(functools.partial(_stamp, spec), parts[split])
    cached = decoded_once(spec, split, contents, decode, report, classes, lambda: source().labels)
    cached.names = lambda: source().names()
    return cached


def _stamp(spec, name):
    """What changes with a picture's file; a link to nothing is met where pictures are examined."""
    path = pathlib.Path(spec.path, name)
    status = path.stat() if path.exists() else None
    return name, status and status.st_size, status and status.st_mtime_ns


def _in_threads(function: Callable[[str], Any], names: Sequence[str]) -> Iterator[Any]:
    """What the function gives for each name, in order; of millions of names only some thousands are waiting."""
    with ThreadPoolExecutor(8) as threads:
        for start in range(0, len(names), 5_000):
            yield from threads.map(function, names[start : start + 5_000])


def folder_classes(spec: DataSpec) -> tuple[str, ...]:
    """The names of the classes: folders of the training part, or of all pictures where a part is held out."""
    parts = _names_of_parts(spec)
    names = parts["train"] + (parts["test"] if folder_holds_out(spec) else [])
    return tuple(sorted(set(_class_folders(spec, names))))


def _class_folders(spec, names):
    """The first folder of each picture below its part's folder; ValueError for a picture without."""
    parts = [os.path.join(pathlib.PurePath(part), "") for part in (spec.train_split, spec.test_split)]
    for name in names:
        *folders, _ = name.removeprefix(next(filter(name.startswith, parts), "")).split(os.sep)
        if not folders:
            raise ValueError(f"{pathlib.Path(spec.path, name)}: data.labels = True, but it is in no folder of a class")
        yield folders[0]


def _names_of_parts(spec: DataSpec) -> dict[str, list[str]]:
    """The pictures of the training and the test part, relative to the folder."""
    root = pathlib.Path(spec.path)
    has_train, has_test = ((root / name).is_dir() for name in (spec.train_split, spec.test_split))
    if has_train and has_test:
        return {"train": _pictures(root, spec.train_split), "test": _pictures(root, spec.test_split)}
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    # Which other folder is the missing part is not guessed; a folder of one part alone is divided.
    if has_test or (has_train and len(folders) > 1):
        missing = "test_split" if has_train else "train_split"
        needed = f"no {getattr(spec, missing)!r}: set --config.data.{missing} to one of them"
        raise ValueError(f"{root} has the sub-folders {', '.join(folders)}, but {needed}")
    names = _pictures(root, "")
    train, test = held_out(names, spec)
    return {"train": [names[number] for number in train], "test": [names[number] for number in test]}


def _pictures(root, folder):
    names = [str(pathlib.PurePath(folder, name)) for name in pictures.list_pictures(root / folder)]
    check(len(names) > 0, f"{root / folder}: no pictures in it, which are files {', '.join(pictures.SUFFIXES)}")
    return names


def _usable(spec: DataSpec, split: str, names: list[str], report: Report) -> list[str]:
    """The names of the pictures that can be used; "stop" raises at one that can't, "skip" decodes every picture."""
    usable, problems, converted = [], [], 0
    for number, (name, is_other, problem) in enumerate(_in_threads(functools.partial(_examined, spec), names), 1):
        if problem is None:
            usable.append(name)
            converted += is_other
        elif spec.on_bad_file == "stop":
            raise pictures.BadPicture(f"{problem}. {_FIX}")
        else:
            problems.append(problem)
        report.progress(f"looking at the pictures in {spec.path}: {number:,} of {len(names):,}", number / len(names))
    if not usable:
        raise ValueError(f"{spec.path}: none of {len(names):,} pictures can be used; the first: {problems[0]}")
    if converted:
        form = f"{spec.channels} channels, {spec.file_bits} bits"
        report.print(f"Converted {converted:,} of {len(usable):,} {split} pictures to {form}")
    if problems:
        skipped = f"Skipped {len(problems):,} of {len(names):,} pictures of the {split} part of {spec.path}:"
        report.print("\n    ".join([skipped, *problems[:5], *(["..."] if len(problems) > 5 else [])]))
    return usable


def _examined(spec: DataSpec, name: str) -> tuple[str, bool, str | None]:
    """A picture's name, whether it is converted, and why it can't be used: by its header; with "skip", its pixels."""
    path = pathlib.Path(spec.path, name)
    try:
        header = pictures.read_header(path, spec.max_pixels)
        pictures.check_picture(path, header, spec)
        if spec.on_bad_file == "skip":
            pictures.read_pixels(path, spec)
    except pictures.BadPicture as error:
        return name, False, str(error)
    return name, (spec.seen_channels(header.channels), header.bits) != (spec.channels, spec.file_bits), None


def find_pictures(places: Places) -> list[tuple[pathlib.Path, str]]:
    """Paths of pictures, named or in trees of folders, in their order, and their names relative to such a folder."""
    files = []
    are_several = isinstance(places, Sequence | Iterator) and not isinstance(places, str)
    given = [*places] if are_several else [places]
    if not given or not all(isinstance(place, str | os.PathLike) for place in given):
        raise ValueError(f"{shown(places)}: give a file or folder of pictures, or a list of several")
    for place in given:
        path = pathlib.Path(place).expanduser()
        if not os.path.exists(path):  # for a name that is too long, too
            raise FileNotFoundError(f"{shown(str(place))}: no such file or folder of pictures")
        files += [(path / name, name) for name in _pictures(path, "")] if path.is_dir() else [(path, path.name)]
    return files


def pictures_for_model(
    places: Places, spec: DataSpec, seed: int = 0, resize: str | None = None, convert: bool | None = None
) -> tuple[np.ndarray, list[str]]:
    """Pictures as `spec` has them, float32 `[count, height, width, channels]` in [0, 1], and the names of their files.

    `resize` and `convert` replace the settings of the data set; the other arguments are as for `load_images`.
    """
    from nvae_tf.data.pipeline import evaluation_batches, images_alone, iterate

    spec = dataclasses.replace(spec, crop=spec.crop if resize in (None, "none") else "none")  # one or the other
    spec = dataclasses.replace(spec, resize=resize or spec.resize, convert=spec.convert if convert is None else convert)
    source, names = picture_source(places, spec)
    (images,) = iterate(evaluation_batches(source, images_alone(spec), source.count, seed), source)
    return images.numpy(), names


def picture_source(places: Places, spec: DataSpec) -> tuple[ArraySource, list[str]]:
    """Pictures, see `find_pictures`, as a source of a data set, and their names; ValueError for unusable files.

    A file .npy or .npz, and where the data set is of TIFF files or of noisy images a TIFF file, stands for all its
    images, which are named by their numbers in it. Where the spec has no size, all must have the first one's.
    """
    files, names, images = find_pictures(places), [], []
    for path, name in files:
        if images and spec.height is None:
            spec = dataclasses.replace(spec, height=images[0].shape[1], width=images[0].shape[2])
        is_stack = (spec.source == "tiff" or spec.noise != "none") and path.suffix.lower() in pictures.TIFF
        if is_stack or path.suffix in (".npy", ".npz"):
            images.append(stack_images(path, spec) if is_stack else fitted_images(path, spec))
            names += [f"{path.stem}_{number:05d}" for number in range(len(images[-1]))]
            continue
        header = pictures.read_header(path, spec.max_pixels)
        # Other bits are converted in any case.
        header = header if spec.dtype == "uint16" else header._replace(bits=spec.file_bits)
        pictures.check_picture(path, header, spec)
        images.append(pictures.read_pixels(path, spec)[np.newaxis])
        names.append(name)
    return ArraySource(np.concatenate(images)), names


def load_images(
    places: Places,
    config: ExperimentConfig | ModelConfig,
    seed: int = 0,
    resize: str | None = None,
    convert: bool | None = None,
) -> np.ndarray:
    """Pictures as a model sees them, float32 `[count, height, width, channels]` in [0, 1], in the order of their names.

    `places` is a picture file, a folder, or several of them. With `nvae_tf.experiment_config("runs/mine")` they are
    read as the training data of that run were; with `model.config` they are cropped to its size and converted to its
    channels and bits, without regard to the run's `data.alpha` and `data.crop_box`. `resize` ("crop" or "stretch") and
    `convert` replace that; `seed` is for the binarization. FileNotFoundError: no pictures. ValueError: unusable ones.
    """
    if isinstance(config, ModelConfig) and not config.is_denoising:
        size = {"height": config.image_height, "width": config.image_width, "channels": config.image_channels}
        reading = {"source": "folder", "source_name": None, "resize": "crop", "convert": True}
        spec = DataSpec("pictures", **size, **reading, num_bits=config.num_bits, likelihood=config.likelihood)
    elif isinstance(config, ExperimentConfig):
        spec = config.data
    else:
        fix = "give model.config, or of a run (always of noisy images) nvae_tf.experiment_config('runs/mine')"
        raise ValueError(f"config = {shown(config)}: {fix}")
    return pictures_for_model(places, spec, seed, resize, convert)[0]
