"""Image sets through TensorFlow Datasets (TFDS): prepared on disk, or downloaded where the hosts answer."""

import contextlib
import pathlib
import urllib.parse
from collections.abc import Iterator

import numpy as np
import requests
import tensorflow as tf
import tensorflow_datasets as tfds

from nvae_tf.config import DataSpec, did_you_mean
from nvae_tf.data.array_files import decoded_once, reported
from nvae_tf.data.pictures import PictureHeader, check_form, check_size, fit_images
from nvae_tf.data.sources import ArraySource, ImageSource, check_memory, class_numbers
from nvae_tf.errors import first_line, wrap_read_errors
from nvae_tf.progress import Report


def first_tfds_image(spec: DataSpec) -> PictureHeader:
    """The form of the images by TFDS' description: a size is None where they differ."""
    form = _image_form(_builder(spec))
    return form._replace(channels=form.channels or 3)


def load_tfds(spec: DataSpec, split: str, report: Report) -> ImageSource:
    """One part, in memory or in `spec.cache`, in TFDS' stored order.

    `source_name` is `name` or `name/config`, and `path` TFDS' data folder, None for its default. A set that is prepared
    there needs no network; where it is not and can't be downloaded, the ConnectionError has the manual way.
    """
    builder = _builder(spec)
    full_name = builder.info.full_name
    check_form(full_name, *_image_form(builder)[2:], spec)
    if not builder.is_prepared():
        _download_and_prepare(builder)
    name = {"train": spec.train_split, "test": spec.test_split}[split]
    count = 0
    with contextlib.suppress(KeyError, ValueError):
        count = builder.info.splits[name].num_examples
    if count < 1:
        present = ", ".join(f"{key} ({info.num_examples:,} images)" for key, info in builder.info.splits.items())
        existing = f"TFDS set {full_name} has the splits {present}"
        raise ValueError(f"data.{split}_split = {name!r}: {existing}; a part of one is written 'train[:90%]'")
    batches, classes = _batches(builder, name, spec), tfds_classes(spec) if spec.labels else ()

    def read_labels():
        # In the order of `_batches`.
        examples = builder.as_dataset(split=name, shuffle_files=False, decoders={"image": tfds.decode.SkipDecoding()})
        labels = examples.map(lambda example: example["label"]).batch(1024).as_numpy_iterator()
        return class_numbers(np.concatenate([*labels]), count, f"{full_name}, split {name}")

    if spec.cache:
        # Distinguishes prepared sets of the same name.
        info = pathlib.Path(builder.data_path) / "dataset_info.json"
        contents = full_name, info.read_bytes(), info.stat().st_mtime_ns
        return decoded_once(spec, split, contents, lambda: (count, batches), report, classes, read_labels)
    fix = "name a folder for the decoded images, --config.data.cache=FOLDER"
    what = f"{spec.source_name}: {count:,} images of {spec.image_shape}"
    check_memory(count * int(np.prod(spec.image_shape)) * np.dtype(spec.dtype).itemsize, what, fix)
    source = ArraySource(np.concatenate([*reported(batches, count, f"reading {full_name}", report)]))
    return source.labeled(read_labels(), classes) if classes else source


def tfds_is_prepared(spec: DataSpec) -> bool:
    """Whether the images can be read without a download."""
    return _builder(spec).is_prepared()


def tfds_classes(spec: DataSpec) -> tuple[str, ...]:
    """The names of the classes by TFDS' description; none where no example has a `label`."""
    features = _builder(spec).info.features
    feature = features["label"] if "label" in features else None
    is_known = isinstance(feature, tfds.features.ClassLabel) and feature.num_classes
    return tuple(feature.names) if is_known else ()


def _batches(builder, name, spec) -> Iterator[np.ndarray]:
    """Batches of one image of the spec's size and type, in the order of the files: an example keeps its number."""
    examples = builder.as_dataset(split=name, shuffle_files=False).map(lambda example: example["image"])
    try:
        for image in examples.as_numpy_iterator():
            check_size(f"{builder.info.full_name}: an image", *image.shape[:2], spec)
            yield fit_images(image[np.newaxis], spec, builder.info.full_name)
    except tf.errors.OpError as error:
        raise ValueError(f"{builder.info.full_name}: {first_line(error)}") from None


def _builder(spec):
    try:
        return tfds.builder(spec.source_name, data_dir=pathlib.Path(spec.path) if spec.path else None)
    # TFDS raises errors of many kinds: no such set, configuration or version, a set that needs a package of its own.
    except Exception as error:
        known = tfds.list_builders(with_community_datasets=False)
        is_unknown = isinstance(error, tfds.core.DatasetNotFoundError)
        nearest = did_you_mean(spec.source_name.partition("/")[0], known) if is_unknown else ""
        # Not chained: some messages list several hundred names; before the reason stand all arguments.
        reason = first_line(error).split('}": ')[-1]
        taken = f"TensorFlow Datasets {tfds.__version__} can't take it ({reason})"
        raise ValueError(f"data.source_name = {spec.source_name!r}: {taken}{nearest}") from None


def _image_form(builder):
    """Height, width, channels, each None where it differs, and bits."""
    features = builder.info.features
    if "image" not in features or features["image"].np_dtype not in (np.uint8, np.uint16):
        needed = f"it must have a feature 'image' of uint8 or uint16, and has {', '.join(features)}"
        raise ValueError(f"TFDS set '{builder.name}': {needed}")
    return PictureHeader(*features["image"].shape, 8 * np.dtype(features["image"].np_dtype).itemsize)


def _download_and_prepare(builder):
    """Lets TFDS prepare the set from files in `downloads/manual`, and from its hosts, which are asked before.

    ConnectionError, which has the manual way, where a host does not answer: TFDS would wait for minutes.
    """
    files = {url: info.filename or url.rpartition("/")[2] for url, info in (builder.url_infos or {}).items()}
    # A set with several configurations names the files of all; the files of one mostly have its name.
    config = builder.builder_config.name if builder.builder_config else ""
    files = {url: name for url, name in files.items() if config in url} or files
    manual = pathlib.Path(builder.data_dir_root) / "downloads" / "manual"
    missing = {url: name for url, name in files.items() if not (manual / name).exists()}
    # TFDS looks there for sets that are prepared already.
    asked = missing if files else ["https://storage.googleapis.com"]
    try:
        for scheme, host in sorted({urllib.parse.urlsplit(url)[:2] for url in asked}):
            if scheme in ("http", "https"):
                with wrap_read_errors(f"{host}: ", "", ConnectionError):
                    requests.head(f"{scheme}://{host}", timeout=4.0)
        builder.download_and_prepare()
    except Exception as error:
        raise ConnectionError(
            f"Data set '{builder.info.full_name}' is not prepared in {builder.data_path} and can't be downloaded "
            f"({first_line(error)}).\nEither put these files, under these names, into\n    {manual}\n"
            + "".join(f"    {name} from {url}\n" for url, name in missing.items())
            + f"or prepare the set on a machine with network, with the same version of TFDS ({tfds.__version__}):\n"
            f"    tfds build {builder.info.full_name.rpartition('/')[0]} --data_dir=tfds_data\n"
            "and copy all of tfds_data to any place, which --config.data.path names."
        ) from None
