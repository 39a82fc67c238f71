"""Real images that come with scikit-learn, so that they need no network: handwritten digits, patches of photographs."""

import numpy as np
from PIL import Image

from nvae_tf.config import DataSpec, check, check_choice
from nvae_tf.data.pictures import PictureHeader
from nvae_tf.data.sources import ArraySource, ImageSource
from nvae_tf.progress import Report

_DIGITS_SIZE, _DIGITS = 16, tuple("0123456789")
_LARGEST_PATCH = 96
# Columns of the 640 that a photograph has: training patches end where test patches begin.
_TEST_COLUMNS_FROM = 512


def first_bundled_image(spec: DataSpec) -> PictureHeader:
    """What the images of a set are like."""
    size, channels = (_DIGITS_SIZE, 1) if spec.source_name == "digits" else (spec.height or 32, 3)
    return PictureHeader(size, spec.width or size, channels, 8)


def bundled_classes(spec: DataSpec) -> tuple[str, ...]:
    """The names of a set's classes; none for the photographs."""
    return _DIGITS if spec.source_name == "digits" else ()


def load_bundled(spec: DataSpec, split: str, _: Report) -> ImageSource:
    """Makes one part of the set `spec.source_name`, "digits" or "photos"."""
    check_choice("data.source_name", spec.source_name, ("digits", "photos"), "no bundled set")
    if spec.path or spec.crop_box or spec.resize != "none":
        raise ValueError(f"Data set '{spec.name}' is bundled: remove data.path, data.crop_box and data.resize")
    return _digits(split) if spec.source_name == "digits" else _photos(spec, split)


def _photos(spec, split):
    """Patches of both photographs, 427x640: training patches from the left part, test patches from the right."""
    from sklearn.datasets import load_sample_images

    size = spec.height, spec.width
    check(max(size) <= _LARGEST_PATCH, f"data.height, data.width = {size}: must be at most {_LARGEST_PATCH}")
    columns = slice(None, _TEST_COLUMNS_FROM) if split == "train" else slice(_TEST_COLUMNS_FROM, None)
    step = {"train": 8, "test": 16}[split]
    photographs = np.stack(load_sample_images().images)[:, :, columns]
    windows = np.lib.stride_tricks.sliding_window_view(photographs, size, (1, 2))[:, ::step, ::step]
    # [photographs, rows, columns, channels, height, width] -> a patch a row.
    return ArraySource(windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, *size, 3))


def _digits(split):
    """The 1,797 handwritten digits of scikit-learn as 16x16 bitmaps.

    Their 8x8 intensities count the pixels of 4x4 blocks of 32x32 bitmaps (Alpaydin & Kaynak 1998, UCI "Optical
    Recognition of Handwritten Digits"). Interpolated and cut at one half they are bitmaps again, with complete strokes.
    """
    # Here, because importing scikit-learn takes a second that no other data set needs.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    size = (_DIGITS_SIZE, _DIGITS_SIZE)
    pictures = [Image.fromarray((image / 16).astype(np.float32)) for image in bunch.images]
    enlarged = np.stack([np.asarray(picture.resize(size, Image.Resampling.BICUBIC)) for picture in pictures])
    images = np.where(enlarged > 0.5, 255, 0).astype(np.uint8)
    labels = bunch.target
    # Every fifth of a fixed random order, grouped by label, is for testing: a fifth of each label. RandomState,
    # because NumPy promises never to change its numbers; Generator's may change.
    order = np.random.RandomState(20200708).permutation(len(labels))
    grouped = order[np.argsort(labels[order], kind="stable")]
    chosen = np.isin(np.arange(len(labels)), grouped[::5]) == (split == "test")
    return ArraySource(images[chosen][..., np.newaxis]).labeled(labels[chosen], _DIGITS)
