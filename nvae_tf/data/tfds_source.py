"""Image sets through TensorFlow Datasets (TFDS)."""

import contextlib
import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from nvae_tf.data.closing import closed_at_exit
from nvae_tf.data.decoded_cache import DecodedCache, fingerprint
from nvae_tf.data.geometry import WrongSize, fit_pixels, geometry
from nvae_tf.data.image_sources import ArraySource, ImageSource, check_memory
from nvae_tf.data.picture_files import PictureHeader
from nvae_tf.data.reports import Report
from nvae_tf.data.tfds_download import download_and_prepare
from nvae_tf.data_spec import DataSpec
from nvae_tf.errors import first_line
from nvae_tf.setting_checks import did_you_mean

_READ_BATCH = 256


def first_image(spec: DataSpec) -> PictureHeader:
    """What TFDS says of the images: a size is None where they differ.

    Raises:
        ValueError, ConnectionError: see `load`.
    """
    builder = _builder(spec)
    height, width, channels = _image_feature(builder).shape
    return PictureHeader(height, width, channels or 3, _bits(_image_feature(builder)))


def load(spec: DataSpec, split: str, report: Report) -> ImageSource:
    """Loads one part into memory, or into `spec.cache`, in TFDS' stored order.

    A set that is prepared on disk is used without any network. Otherwise TFDS downloads and prepares it,
    after a check that the hosts answer: on its own, TFDS waits for minutes when they don't.

    Args:
        spec: a complete spec with source "tfds"; `source_name` is the TFDS name, `name` or `name/config`, and `path`
            TFDS' data folder, None for TFDS' default.
        split: "train" or "test".
        report: where to tell what is going on.

    Raises:
        ValueError: TFDS knows no such set or split, its examples have no "image", the images have another size, or they
            do not fit into memory.
        ConnectionError: the set is not on disk and can't be downloaded; the message has the manual way.
    """
    builder = _builder(spec)
    _check_form(builder, spec)
    # TFDS' builder of a folder of pictures needs no preparation and never says that it is prepared.
    if not builder.is_prepared() and not isinstance(builder, tfds.folder_dataset.ImageFolder):
        download_and_prepare(builder)
    name = {"train": spec.train_split, "test": spec.test_split}[split]
    count = _number_of_examples(builder, name, split, spec)
    cache = DecodedCache(spec, split, fingerprint(spec, _contents(builder))) if spec.cache else None
    if cache is None:
        check_memory(
            count * int(np.prod(spec.image_shape)),
            f"{spec.source_name}: {count:,} images of {spec.image_shape}",
            "name a folder for the decoded images, --config.data.cache=FOLDER",
        )
        return _in_memory(builder, name, spec, count, report)
    if not cache.exists:
        cache.write(_batches(builder, name, spec), count, report)
    return cache.source()


def _in_memory(builder, name, spec, count, report):
    images, done = np.empty((count, *spec.image_shape), np.uint8), 0
    for batch in _batches(builder, name, spec):
        images[done : done + len(batch)] = batch
        done += len(batch)
        report.progress(f"reading {builder.info.full_name}: {done:,} of {count:,} images")
    if done != count:
        raise ValueError(f"{builder.data_path}: has {done} images, and says that it has {count}; prepare the set anew")
    return ArraySource(images)


def _batches(builder, name, spec) -> Iterator[np.ndarray]:
    """Batches of images, uint8 of the spec's size."""
    # File order, so that an example keeps its number from one run to the next.
    dataset = builder.as_dataset(split=name, shuffle_files=False)
    problems = []

    def fit(pixels):
        try:
            return _fitted(pixels, spec)
        except WrongSize as error:
            problems.append(f"{builder.info.full_name}: an image {error}")
            raise

    def fitted(example):
        image = tf.numpy_function(fit, [example["image"]], tf.uint8, stateful=False)
        return tf.ensure_shape(image, spec.image_shape)

    batches = dataset.map(fitted, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).batch(_READ_BATCH)

    def read():
        try:
            yield from batches.as_numpy_iterator()
        except tf.errors.OpError as error:
            raise ValueError(problems[0] if problems else f"{builder.info.full_name}: {error.message}") from None

    return closed_at_exit(read())


def _fitted(pixels, spec):
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if geometry(spec).changes_nothing and pixels.shape == spec.image_shape:
        return pixels
    return fit_pixels(pixels, spec)


def _builder(spec):
    name, path = spec.source_name, spec.path
    if path and pathlib.Path(path).is_file():
        raise ValueError(f"data.path = {path}: a file; for TFDS it names the folder with its data, or is left out")
    base, _, config = name.partition("/")
    try:
        with _without_warnings():
            return tfds.builder(name, data_dir=pathlib.Path(path) if path else None)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        # TFDS' own message lists several hundred names: not chained, so that this one is seen.
        raise ValueError(
            f"data.source_name = {name!r}: TensorFlow Datasets {tfds.__version__} has no such set"
            f"{did_you_mean(base, known)} (https://www.tensorflow.org/datasets/catalog has the list)"
        ) from None
    # An AssertionError is how TFDS says that there is no such version.
    except (ValueError, AssertionError) as error:
        configs = [known.name for known in tfds.builder_cls(base.partition(":")[0]).BUILDER_CONFIGS]
        if not config or config in configs:
            raise ValueError(f"data.source_name = {name!r}: {error}") from error
        present = f"only {', '.join(configs)}" if configs else "nor any other: leave it out"
        raise ValueError(
            f"data.source_name = {name!r}: the set {base!r} has no configuration {config!r}, {present}"
            f"{did_you_mean(config, configs)}"
        ) from error
    # A name of another form, or of a collection that needs a package of its own.
    except Exception as error:
        reason = first_line(error)
        raise ValueError(f"data.source_name = {name!r}: TensorFlow Datasets can't take it ({reason})") from error


@contextlib.contextmanager
def _without_warnings():
    """Of what TFDS finds half-prepared: the error that follows says it better."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _image_feature(builder):
    if "image" not in builder.info.features:
        raise ValueError(f"TFDS set '{builder.name}' has no feature 'image', only {', '.join(builder.info.features)}.")
    feature = builder.info.features["image"]
    if feature.np_dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"TFDS set '{builder.name}' has images of type {np.dtype(feature.np_dtype).name}, not uint8 or "
            "uint16: write them to a .npy file in one of these types, and use data.source = arrays"
        )
    return feature


def _contents(builder):
    """What tells one prepared set from another of the same name."""
    info = pathlib.Path(builder.data_path) / "dataset_info.json"
    return builder.info.full_name, info.read_bytes(), info.stat().st_mtime_ns


def _bits(feature):
    return np.dtype(feature.np_dtype).itemsize * 8


def _check_form(builder, spec):
    feature = _image_feature(builder)
    bits, channels = _bits(feature), feature.shape[-1]
    for found, expected, setting in ((bits, spec.file_bits, "file_bits"), (channels, spec.channels, "channels")):
        if found != expected and found is not None and not spec.convert:
            raise ValueError(
                f"{builder.info.full_name}: data.{setting} is {expected}, but TFDS has {found}; "
                "--config.data.convert=True converts the images when they are read"
            )


def _number_of_examples(builder, name, split, spec):
    if not builder.info.splits:
        # A set that says nothing of its size, as TFDS' mocks: it is read once to count.
        return sum(len(batch) for batch in _batches(builder, name, spec))
    try:
        count = builder.info.splits[name].num_examples
        if count < 1:
            raise ValueError
        return count
    except (KeyError, ValueError):
        present = ", ".join(f"{key} ({info.num_examples:,} images)" for key, info in builder.info.splits.items())
        raise ValueError(
            f"data.{split}_split = {name!r}: TFDS set {builder.info.full_name} has the splits {present}. A part of one "
            "is written --config.data.train_split='train[:90%]' --config.data.test_split='train[90%:]'"
        ) from None
