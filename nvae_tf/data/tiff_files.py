"""Images in TIFF files, by `tifffile`: pages, channels, and crops of large images, which are read alone."""

import contextlib
import functools
import itertools
import logging
import pathlib
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from nvae_tf.config import MOST_CHANNELS, DataSpec, check
from nvae_tf.data.pictures import TIFF, BadPicture, PictureHeader, check_form, check_size, fit_images, list_pictures
from nvae_tf.data.sources import ImageSource, held_out
from nvae_tf.data.sources import lacks_folders_of_parts as tiff_holds_out
from nvae_tf.errors import require, wrap_read_errors
from nvae_tf.progress import Report

_WHITE_IS_ZERO, _PALETTE = 0, 3  # what TIFF's numbers of `PhotometricInterpretation` mean


class _Stack(NamedTuple):
    """The images of one file; `pages` `[images, pages of an image]` are those whose samples are its channels."""

    path: pathlib.Path
    pages: np.ndarray
    header: PictureHeader


def first_tiff_image(spec: DataSpec) -> PictureHeader:
    """What the images of the first file are like; no size where crops of them are taken."""
    header = _stack(_files(spec, "train")[0], spec).header
    return header._replace(height=None, width=None) if spec.crop == "random" else header


def load_tiff(spec: DataSpec, split: str, _: Report) -> ImageSource:
    """One part of the images in a file or a folder of files, the header of each checked; pixels are read on demand.

    The parts are the sub-folders `train_split` and `test_split`, or else a fraction of all images is held out.
    """
    stacks = [_stack(path, spec) for path in _files(spec, split)]
    images = [(stack, number) for stack in stacks for number in range(len(stack.pages))]
    if tiff_holds_out(spec):
        names = [f"{stack.path.relative_to(spec.path)}:{number}" for stack, number in images]
        images = [images[number] for number in held_out(names, spec)[split == "test"]]
    return _source(images, spec)


def stack_images(path: pathlib.Path, spec: DataSpec) -> np.ndarray:
    """All images of one file as the data set has them, or with `data.crop` the crops of a grid over them."""
    stack = _stack(path, spec)
    source = _source([(stack, number) for number in range(len(stack.pages))], spec)
    return source.read(np.arange(source.count))


def write_stack(file: BinaryIO, images: np.ndarray) -> None:
    """Writes images `[count, height, width, channels]` as a TIFF file: each is a page with all channels."""
    several, write = images.shape[-1] > 1, require("tifffile", "scientific").imwrite
    how = {"photometric": "minisblack", "planarconfig": "contig" if several else None}
    write(file, images if several else images[..., 0], **how)


def _files(spec: DataSpec, split: str) -> list[pathlib.Path]:
    path = pathlib.Path(spec.path)
    if path.is_file():
        return [path]
    folder = path if tiff_holds_out(spec) else path / {"train": spec.train_split, "test": spec.test_split}[split]
    files = [folder / name for name in list_pictures(folder) if name.lower().endswith(TIFF)]
    check(len(files) > 0, f"{folder}: no TIFF files in it")
    return files


def _source(images: list[tuple[_Stack, int]], spec: DataSpec) -> ImageSource:
    """Images, each whole; or the crops of a grid, which `read` takes elsewhere where it is given places in [0, 1)."""
    places = []
    for row, (stack, _) in enumerate(images):
        height, width, channels, bits = stack.header
        check_form(stack.path, channels, bits, spec)
        if spec.crop == "none":
            check_size(f"{stack.path}:", height, width, spec)
            if height * width > spec.max_pixels:
                fix = f"more than data.max_pixels = {spec.max_pixels:,}; cut it: --config.data.crop=random"
                raise BadPicture(f"{stack.path}: has {height * width:,} pixels, {fix}")
            places.append((row, 0, 0))
        elif height < spec.height or width < spec.width:
            size, fix = f"{height}x{width} (height x width)", "lower data.height and data.width, or leave this file out"
            raise BadPicture(f"{stack.path}: is {size}, smaller than crops of {spec.height}x{spec.width}; {fix}")
        else:
            sides = range(0, height - spec.height + 1, spec.height), range(0, width - spec.width + 1, spec.width)
            places += itertools.product([row], *sides)
    table = np.array(places)

    def read(numbers: np.ndarray, at: np.ndarray | None = None) -> np.ndarray:
        result = []
        for row, (image, *corner) in enumerate(table[numbers]):
            stack, number = images[image]
            size = stack.header[:2] if spec.crop == "none" else (spec.height, spec.width)
            if at is not None:
                corner = (at[row].astype(np.float64) * (np.subtract(stack.header[:2], size) + 1)).astype(int)
            pages = [_crop(stack.path, page, *corner, *size) for page in stack.pages[number]]
            result.append(fit_images(np.concatenate(pages, axis=-1)[np.newaxis], spec, f"{stack.path}, image {number}"))
        return np.concatenate(result)

    return ImageSource(len(table), spec.image_shape, read, spec.dtype)


def _stack(path: pathlib.Path, spec: DataSpec) -> _Stack:
    """The images of a file by its headers; BadPicture for what can't be read, or not without a setting."""
    series, page, *_ = _opened(path, path.stat().st_mtime_ns)
    height, width, leading = page.imagelength, page.imagewidth, series.axes[: -len(page.axes)]
    numbers = np.arange(np.prod(series.shape[: len(leading)], dtype=int)).reshape(series.shape[: len(leading)])
    if spec.tiff_axes == "auto" and {"Z", "T"} <= {*leading}:
        fix = "save one of them to a file, or take each page as an image: --config.data.tiff_axes=pages"
        raise BadPicture(f"{path}: has both time and depth (axes {series.axes}); {fix}")
    if spec.tiff_axes == "auto" and "C" in leading:
        numbers = np.moveaxis(numbers, leading.index("C"), -1)
        pages = numbers.reshape(-1, numbers.shape[-1])
    else:
        pages = numbers.reshape((1, -1) if spec.tiff_axes == "channels" else (-1, 1))
    channels, kind = pages.shape[1] * page.samplesperpixel, page.dtype
    if channels > MOST_CHANNELS:
        fix = "--config.data.tiff_axes=pages makes each page an image"
        raise BadPicture(f"{path}: has {channels} channels, more than {MOST_CHANNELS}; {fix}")
    is_whole = kind in (np.bool_, np.uint8, np.uint16)
    if kind.kind not in "biuf":
        raise BadPicture(f"{path}: has {kind} values; save their real part or magnitude")
    if not is_whole and not spec.range:
        raise BadPicture(f"{path}: has {kind} values; say what is 0 and 1 for the model: --config.data.range=LOW,HIGH")
    for number, *corner in ((0, 0, 0), (numbers.size - 1, height - 1, width - 1)):  # is the file whole?
        _crop(path, number, *corner, 1, 1)
    return _Stack(path, pages, PictureHeader(height, width, channels, 8 * kind.itemsize if is_whole else 32))


@contextlib.contextmanager
def _logged_errors_raised() -> Iterator[None]:
    """In this block what tifffile would note in its log as an error, and pass over, is raised."""

    def refuse(record: logging.LogRecord) -> bool:
        check(record.levelno < logging.ERROR, record.getMessage())
        return True

    log = logging.getLogger("tifffile")
    log.addFilter(refuse)
    try:
        yield
    finally:
        log.removeFilter(refuse)


@functools.lru_cache(64)
def _opened(path: pathlib.Path, _: int) -> tuple[Any, Any, np.ndarray | None, list]:
    """The only series of a file, the page that is like all others, all pages if they lie there as they are, and the
    places of the tiles or strips of each page.

    The file is closed: one of thousands of files that were left open could not be opened.
    """
    tifffile = require("tifffile", "scientific")
    named = wrap_read_errors(f"{path}: not a TIFF file that can be read (", ")", BadPicture)
    with named, _logged_errors_raised(), tifffile.TiffFile(path) as file:
        series, *others = file.series
        if series.is_multifile:
            raise BadPicture(f"{path}: an OME file, some of whose pages are in other files; save all pages to one file")
        page, places = series.keyframe, [(each.dataoffsets, each.databytecounts) for each in series]
        mapped = None if series.dataoffset is None else tifffile.memmap(path, mode="r").reshape(-1, *page.shape)
    if others:
        raise BadPicture(f"{path}: has {1 + len(others)} series of images; save each to a file of its own")
    is_plain = page.axes in ("YX", "YXS", "SYX") and page.dtype is not None
    if not is_plain or series.shape[-len(page.shape) :] != page.shape or page.photometric in (_WHITE_IS_ZERO, _PALETTE):
        form = f"axes {series.axes}, {page.bitspersample} bits, {getattr(page.photometric, 'name', page.photometric)}"
        raise BadPicture(f"{path}: a TIFF file of a form that is not read ({form}); save it as gray or RGB")
    return series, page, mapped, places


def _crop(path: pathlib.Path, number: int, top: int, left: int, height: int, width: int) -> np.ndarray:
    """A part of a page `[height, width, samples]`; of the file only the tiles or strips that it lies in are read."""
    _, page, mapped, places = _opened(path, path.stat().st_mtime_ns)
    if mapped is not None:
        plane = np.moveaxis(mapped[number], 0, -1) if page.axes == "SYX" else mapped[number]
        return np.array(plane[top : top + height, left : left + width]).reshape(height, width, -1)
    rows, columns = page.tile[-2:] if page.is_tiled else (min(page.rowsperstrip, page.imagelength), page.imagewidth)
    down, across = -(-page.imagelength // rows), -(-page.imagewidth // columns)
    planes = range(page.samplesperpixel if page.axes == "SYX" else 1)
    rows_read = range(top // rows, -(-(top + height) // rows))
    columns_read = range(left // columns, -(-(left + width) // columns))
    result = np.zeros([len(rows_read) * rows, len(columns_read) * columns, page.samplesperpixel], page.dtype)
    damaged = f"{path}: page {number}: damaged, cut off, or of a form that is not read ("
    with wrap_read_errors(damaged, ")", BadPicture), path.open("rb") as file:
        for plane, row, column in itertools.product(planes, rows_read, columns_read):
            index = (plane * down + row) * across + column
            offset, size = (numbers[index] for numbers in places[number])
            file.seek(offset)
            data = file.read(size)
            check(len(data) == size, "it ends too early")
            if not data:
                continue  # left out, for zeros
            (part,), *_ = page.decode(data, index, jpegtables=page.jpegtables)
            y, x = (row - rows_read.start) * rows, (column - columns_read.start) * columns
            result[y : y + part.shape[0], x : x + part.shape[1], plane : plane + part.shape[2]] = part
    return result[top % rows :, left % columns :][:height, :width]
