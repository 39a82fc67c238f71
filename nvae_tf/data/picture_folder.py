"""Pictures in a folder, one file each, in any tree of sub-folders: as a data set, and for a trained model."""

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from nvae_tf.config import DataSpec, ExperimentConfig, ModelConfig, check, did_you_mean, shown
from nvae_tf.data import pictures
from nvae_tf.data.array_files import decoded_once
from nvae_tf.data.sources import ArraySource, ImageSource, ReadSource, held_out
from nvae_tf.progress import Report

_THREADS = 8
_NAMES_AT_ONCE = 5_000
_READ_BATCH = 64
_SKIPPED_NAMES_SHOWN = 5
_FIX = "Fix or remove the file"
Places = str | os.PathLike | Sequence[str | os.PathLike]


def first_folder_image(spec: DataSpec, *splits: str) -> pictures.PictureHeader:
    """What most pictures of the training part, or of `splits`, are like, by the headers of up to 200 spread over it."""
    parts, headers, problems = _names_of_parts(spec), [], []
    names = sorted(name for split in splits or ("train",) for name in parts[split])
    for name in names[:: -(-len(names) // 200)]:
        try:
            header = pictures.read_header(pathlib.Path(spec.path, name), spec.max_pixels)
            headers.append(header._replace(channels=spec.seen_channels(header.channels)))
        except pictures.BadPicture as error:
            problems.append(str(error))
    if not headers:
        raise ValueError(f"{problems[0]}. {_fix(len(problems), len(problems))}")
    # Separately: where all sizes differ, the channels may still be the same.
    (size, _), *_ = collections.Counter((header.height, header.width) for header in headers).most_common(1)
    (form, _), *_ = collections.Counter((header.channels, header.bits) for header in headers).most_common(1)
    return pictures.PictureHeader(*size, *form)


def load_folder(spec: DataSpec, split: str, report: Report) -> ImageSource:
    """The pictures of one part, the header of each checked; pixels are read on demand.

    The parts are the sub-folders `train_split` and `test_split`, or else a fraction is held out for testing. With
    `spec.labels` a picture's class is the first folder below that of its part.
    """
    parts = _names_of_parts(spec)
    names = parts[split]
    classes = folder_classes(spec, parts) if spec.labels else ()
    labels = dict(zip(names, _labels(spec, split, names, classes), strict=True)) if classes else {}

    # Once for images and labels that are not in the cache.
    @functools.cache
    def source():
        usable = _usable(spec, split, parts, report)

        def read(numbers):
            return np.stack([_pixels(pathlib.Path(spec.path, usable[number]), spec, _fix()) for number in numbers])

        source = ReadSource(len(usable), spec.image_shape, read)
        source.names = lambda: [os.path.join(spec.path, name) for name in usable]
        return source.labeled(np.array([labels[name] for name in usable]), classes) if classes else source

    if spec.cache is None:
        return source()

    def stamp(name):
        try:
            status = pathlib.Path(spec.path, name).stat()
        except OSError:
            # A link to nothing; whether that matters is decided where pictures are examined.
            return name, None, None
        return name, status.st_size, status.st_mtime_ns

    def decode():
        usable = source()
        numbers = np.array_split(np.arange(usable.count), -(-usable.count // _READ_BATCH))
        return usable.count, map(usable.read, numbers)

    contents = _in_threads(stamp, names)
    cached = decoded_once(spec, split, contents, decode, report, classes, lambda: source().labels)
    cached.names = lambda: source().names()
    return cached


def _in_threads(function: Callable[[str], Any], names: Sequence[str]) -> Iterator[Any]:
    """What the function gives for each name, in order; of millions of names only some thousands are waiting."""
    with ThreadPoolExecutor(_THREADS) as threads:
        for start in range(0, len(names), _NAMES_AT_ONCE):
            yield from threads.map(function, names[start : start + _NAMES_AT_ONCE])


def folder_holds_out(spec: DataSpec) -> bool:
    """Whether the test pictures are a random part of all, because the folder has no sub-folders for the parts."""
    return not all(pathlib.Path(spec.path, name).is_dir() for name in (spec.train_split, spec.test_split))


def folder_classes(spec: DataSpec, names_of_parts: dict[str, list[str]] | None = None) -> tuple[str, ...]:
    """The names of the classes: folders of the training part, or of all pictures where a part is held out."""
    names_of_parts = names_of_parts or _names_of_parts(spec)
    in_training = names_of_parts["train"] + (names_of_parts["test"] if folder_holds_out(spec) else [])
    return tuple(sorted(set(_class_folders(spec, "train", in_training))))


def _labels(spec, split, names, classes):
    """The number of each picture's class; ValueError for one that the training part lacks."""
    numbers = {name: number for number, name in enumerate(classes)}
    for name, folder in zip(names, _class_folders(spec, split, names), strict=True):
        if folder not in numbers:
            lacking = f"{pathlib.Path(spec.path, name)}: the training part has no class {folder!r}"
            raise ValueError(f"{lacking}: rename that folder or remove it{did_you_mean(folder, classes)}")
        yield numbers[folder]


def _class_folders(spec, split, names):
    """The first folder of each picture below that of its part; ValueError for a picture without."""
    part = spec.test_split if split == "test" and not folder_holds_out(spec) else spec.train_split
    depth = len(pathlib.PurePath(part).parts) if pathlib.Path(spec.path, part).is_dir() else 0
    for name in names:
        folders = name.split(os.sep)[depth:-1]
        if not folders:
            outside = f"{pathlib.Path(spec.path, name)}: is in no folder of a class, as data.labels = True needs it"
            raise ValueError(f"{outside}; move it into one, such as {pathlib.PurePath(name).with_name('cat')}")
        yield folders[0]


def _pixels(path: pathlib.Path, spec: DataSpec, fix: str) -> np.ndarray:
    """A picture as the spec has it, uint8 `[height, width, channels]`; every error has its name and the fix."""
    try:
        fit = functools.partial(pictures.fitted, spec=spec, where=f"{path}:")
        picture = pictures.read_picture(path, spec.channels, spec.max_pixels, fit, spec.alpha)
        return np.asarray(picture).reshape(spec.image_shape)
    except pictures.BadPicture as error:
        raise pictures.BadPicture(f"{error}. {fix}") from None
    except Exception as error:
        raise pictures.BadPicture(f"{path}: can't be converted ({error}). {fix}") from None


def _names_of_parts(spec: DataSpec) -> dict[str, list[str]]:
    """The pictures of the training and the test part, relative to the folder."""
    root = pathlib.Path(spec.path)
    has_train, has_test = ((root / name).is_dir() for name in (spec.train_split, spec.test_split))
    if has_train and has_test:
        return {"train": _pictures(root, spec.train_split), "test": _pictures(root, spec.test_split)}
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if has_test or (has_train and len(folders) > 1):
        missing, setting = (spec.test_split, "test_split") if has_train else (spec.train_split, "train_split")
        fix = f"set --config.data.{setting} to the one that is for {setting.removesuffix('_split')}ing, or rename it"
        raise ValueError(f"{root} has the sub-folders {', '.join(folders)}, but no {missing!r}: {fix}")
    names = _pictures(root, "")
    train, test = held_out(names, spec)
    return {"train": [names[number] for number in train], "test": [names[number] for number in test]}


def _pictures(root, folder):
    names = [str(pathlib.PurePath(folder, name)) for name in pictures.list_pictures(root / folder)]
    if not names:
        there = sorted({path.suffix.lower() or path.name for path in (root / folder).iterdir()})[:5]
        contents = f"there are: {', '.join(there)}" if there else "it is empty"
        wanted = f"they are files with names in {', '.join(pictures.SUFFIXES)}"
        raise ValueError(f"{root / folder}: no pictures in it; {wanted} ({contents})")
    return names


def _usable(spec: DataSpec, split: str, parts: dict[str, list[str]], report: Report) -> list[str]:
    """The names of the pictures that can be used; "stop" raises at one that can't, "skip" decodes every picture.

    With the training part those of the test part are looked at too, so that what is said is of all pictures.
    """
    names, usable, problems, forms = parts[split], [], [], collections.Counter()
    looked_at = [*names, *parts["test"]] if split == "train" else names
    stops, examined = spec.on_bad_file == "stop", _in_threads(functools.partial(_examined, spec), looked_at)
    for number, (name, form, problem) in enumerate(examined, 1):
        is_of_part = number <= len(names)
        if problem is None:
            forms[form] += 1
            usable += [name] if is_of_part else []
        elif stops or is_of_part:
            problems.append((name, problem))
        if number % _NAMES_AT_ONCE == 0 or number == len(looked_at):
            if stops and problems:
                *_, problem = _examined(spec, problems[0][0], *first_folder_image(spec, *parts)[2:])
                raise ValueError(f"{problem}. {_fix(len(problems), number)}")
            text = f"looking at the pictures in {spec.path}: {number:,} of {len(looked_at):,}"
            report.progress(text, number / len(looked_at))
    if not usable:
        raise ValueError(f"{spec.path}: none of {len(names):,} pictures can be used; the first: {problems[0][1]}")
    if split == "train":
        pictures.report_conversion(forms, spec, report)
    if problems:
        shown = "".join(f"\n    {problem}" for _, problem in problems[:_SKIPPED_NAMES_SHOWN])
        rest = len(problems) - _SKIPPED_NAMES_SHOWN
        skipped = f"Skipped {len(problems):,} of {len(names):,} pictures of the {split} part of {spec.path}"
        report.keep(f"{skipped}:{shown}" + (f"\n    and {rest:,} more" if rest > 0 else ""))
    return usable


def _fix(bad: int = 1, looked_at: int = 1) -> str:
    others = f" ({bad - 1:,} more of {looked_at:,} can't be used, for this or other reasons)" if bad > 1 else ""
    return f"{_FIX}{others}, or leave such files out with --config.data.on_bad_file=skip"


def _examined(spec: DataSpec, name: str, *usual: int) -> tuple[str, tuple[int, int] | None, str | None]:
    """A picture's name, its channels and bits, and why it can't be used: by its header and, with "skip", its pixels."""
    path = pathlib.Path(spec.path, name)
    try:
        header = pictures.read_header(path, spec.max_pixels)
        pictures.check_size(f"{path}:", header.height, header.width, spec)
        pictures.check_form(path, header.channels, header.bits, spec, *usual)
        if spec.on_bad_file == "skip":
            pictures.read_picture(path, spec.channels, spec.max_pixels)
    except pictures.BadPicture as error:
        return name, None, str(error)
    return name, (spec.seen_channels(header.channels), header.bits), None


def find_pictures(places: Places) -> list[tuple[pathlib.Path, str]]:
    """The picture files that are named, in their order, and all in the trees of the folders that are named.

    Returns paths, and names relative to the folder, if one was given.
    """
    pictures = []
    are_several = isinstance(places, Sequence | Iterator) and not isinstance(places, str)
    given = [*places] if are_several else [places]
    if not given or not all(isinstance(place, str | os.PathLike) for place in given):
        raise ValueError(f"{shown(places)}: give a file or folder of pictures, or a list of several")
    for place in given:
        path = pathlib.Path(place).expanduser()
        # For a name that is too long, too.
        if not os.path.exists(path):
            raise FileNotFoundError(f"{shown(str(place))}: no such file or folder of pictures")
        pictures += [(path / name, name) for name in _pictures(path, "")] if path.is_dir() else [(path, path.name)]
    return pictures


def pictures_for_model(
    places: Places, spec: DataSpec, seed: int = 0, resize: str | None = None, convert: bool | None = None
) -> tuple[np.ndarray, list[str]]:
    """Reads pictures, see `find_pictures`, as a model's training data were read: same geometry, bits and binarization.

    Args:
      places: a file, a folder, or several.
      spec: `data` of the run's settings.
      seed: of the binarization, if there is one; that of a picture depends on the seed and its number.
      resize: "crop" or "stretch", in place of the data set's rule.
      convert: whether pictures with other channels are converted; None: as the data set has it.

    Returns float32 `[count, height, width, channels]` in [0, 1], and the files' names; ValueError for unusable files.
    """
    from nvae_tf.data.pipeline import evaluation_batches, images_alone, iterate

    spec = dataclasses.replace(spec, resize=resize or spec.resize, convert=spec.convert if convert is None else convert)
    source, names = picture_source(places, spec)
    (images,) = iterate(evaluation_batches(source, images_alone(spec), source.count, seed), source)
    return images.numpy(), names


def picture_source(places: Places, spec: DataSpec) -> tuple[ArraySource, list[str]]:
    """Pictures, see `find_pictures`, as a source of a data set, and their names; ValueError for unusable files."""
    files = find_pictures(places)
    for path, _ in files:
        _check_for_model(path, spec)
    return ArraySource(np.stack([_pixels(path, spec, _FIX) for path, _ in files])), [name for _, name in files]


def load_images(
    places: Places,
    config: ExperimentConfig | ModelConfig,
    seed: int = 0,
    resize: str | None = None,
    convert: bool | None = None,
) -> np.ndarray:
    """Pictures as a model sees them, float32 `[count, height, width, channels]` in [0, 1], in the order of their names.

    Example:
      >>> images = nvae_tf.load_images("my_pictures", model.config)

    Args:
      places: a picture file, a folder, or several of them.
      config: the settings of a run: pictures are read as its training data were. Or those of a model: they are cropped
        to its size and converted to its channels and bits, unless `resize` and `convert` say otherwise.
      seed: of the binarization, where the run has one.
      resize: "crop" or "stretch".
      convert: whether pictures with other channels or bits are converted, rather than refused.

    Raises:
      FileNotFoundError: there are no pictures. ValueError: one can't be used; the message has its name.
    """
    if isinstance(config, ModelConfig):
        size = {"height": config.image_height, "width": config.image_width, "channels": config.image_channels}
        reading = {"source": "folder", "source_name": None, "resize": "crop", "convert": True}
        spec = DataSpec("pictures", **size, **reading, num_bits=config.num_bits, likelihood=config.likelihood)
    elif isinstance(config, ExperimentConfig):
        spec = config.data
    else:
        raise ValueError(f"config = {shown(config)}: give the settings of a run or a model, such as model.config")
    return pictures_for_model(places, spec, seed, resize, convert)[0]


def _check_for_model(path: pathlib.Path, spec: DataSpec) -> None:
    try:
        header = pictures.read_header(path, spec.max_pixels)
    except pictures.BadPicture as error:
        raise pictures.BadPicture(f"{error}. {_FIX}") from None
    fix = "--convert (in Python convert=True) converts such pictures when they are read"
    other = f"{path}: has {header.channels} channels, but the model was trained on pictures with {spec.channels}"
    check(spec.convert or spec.seen_channels(header.channels) == spec.channels, f"{other}; {fix}")
    try:
        pictures.check_size(f"{path}:", header.height, header.width, spec)
    except pictures.BadPicture:
        wanted = f"{spec.height}x{spec.width}"
        fix = f", but the model takes {wanted}; --resize=crop or --resize=stretch (in Python resize=) brings pictures "
        fix += "to this size"
        if spec.crop_box is not None:
            fix = f"; the model's data are cropped from larger pictures with data.crop_box {spec.crop_box} (left, top, "
            fix += f"right, bottom) and brought to {wanted}: give such pictures"
        raise ValueError(f"{path}: is {header.height}x{header.width} (height x width){fix}") from None
