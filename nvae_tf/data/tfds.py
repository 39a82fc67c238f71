"""Image sets through TensorFlow Datasets (TFDS): prepared on disk, or downloaded where the hosts answer."""

import contextlib
import functools
import pathlib
import queue
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator

import numpy as np
import requests
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from nvae_tf.config import DataSpec, check, did_you_mean
from nvae_tf.data.array_files import decoded_once, fill
from nvae_tf.data.pictures import BadPicture, PictureHeader, check_form, fit_pixels, report_conversion
from nvae_tf.data.pipeline import closed_at_exit
from nvae_tf.data.sources import ArraySource, ImageSource, check_memory, class_numbers
from nvae_tf.errors import first_line
from nvae_tf.progress import Report

_READ_BATCH = 256
# TFDS looks there for sets that are prepared already.
_TFDS_HOST = "https://storage.googleapis.com"
_DEFAULT_PORTS = {"http": 80, "https": 443, "ftp": 21}
# A file that can't be fetched; a page of text in its place; one that must be put into the manual folder (that is an
# AssertionError); a package that preparing it needs.
_PREPARATION_ERRORS = (
    tfds.download.DownloadError,
    tfds.download.download_manager.NonMatchingChecksumError,
    requests.RequestException,
    AssertionError,
    ImportError,
)


def first_tfds_image(spec: DataSpec) -> PictureHeader:
    """The form of the images by TFDS' description: a size is None where they differ."""
    feature = _image_feature(_builder(spec))
    height, width, channels = feature.shape
    return PictureHeader(height, width, channels or 3, _bits(feature))


def load_tfds(spec: DataSpec, split: str, report: Report) -> ImageSource:
    """One part, in memory or in `spec.cache`, in TFDS' stored order.

    `source_name` is `name` or `name/config`, and `path` TFDS' data folder, None for its default. A set that is prepared
    there needs no network; where it is not and can't be downloaded, the ConnectionError has the manual way.
    """
    builder = _builder(spec)
    feature = _image_feature(builder)
    check_form(builder.info.full_name, feature.shape[-1], _bits(feature), spec)
    # TFDS' builder of a folder of pictures needs no preparation and never says that it is prepared.
    if not builder.is_prepared() and not isinstance(builder, tfds.folder_dataset.ImageFolder):
        _download_and_prepare(builder)
    name = {"train": spec.train_split, "test": spec.test_split}[split]
    count = _number_of_examples(builder, name, split, spec)
    form = spec.seen_channels(feature.shape[-1] or spec.channels), _bits(feature)
    report_conversion({form: count}, spec, report)
    classes = _class_names(builder) if spec.labels else ()

    def read_labels():
        return class_numbers(_labels(builder, name), count, f"{builder.info.full_name}, split {name}")

    if spec.cache:
        # Distinguishes prepared sets of the same name.
        info = pathlib.Path(builder.data_path) / "dataset_info.json"
        contents = builder.info.full_name, info.read_bytes(), info.stat().st_mtime_ns
        batches = functools.partial(_batches, builder, name, spec)
        return decoded_once(spec, split, contents, lambda: (count, batches()), report, classes, read_labels)
    fix = "name a folder for the decoded images, --config.data.cache=FOLDER"
    what = f"{spec.source_name}: {count:,} images of {spec.image_shape}"
    check_memory(count * int(np.prod(spec.image_shape)), what, fix)
    images = np.empty((count, *spec.image_shape), np.uint8)
    fill(images, _batches(builder, name, spec), spec, f"reading {builder.info.full_name}", report)
    source = ArraySource(images)
    return source.labeled(read_labels(), classes) if classes else source


def tfds_is_prepared(spec: DataSpec) -> bool:
    """Whether the images can be read without a download."""
    return _builder(spec).is_prepared()


def tfds_classes(spec: DataSpec) -> tuple[str, ...]:
    """The names of the classes by TFDS' description; none where no example has a `label`."""
    return _class_names(_builder(spec))


def _class_names(builder):
    feature = builder.info.features["label"] if "label" in builder.info.features else None
    is_known = isinstance(feature, tfds.features.ClassLabel) and feature.num_classes
    return tuple(feature.names) if is_known else ()


def _labels(builder, name):
    """The labels of a split, in the order of `_batches`."""
    images = {"image": tfds.decode.SkipDecoding()}
    dataset = builder.as_dataset(split=name, shuffle_files=False, decoders=images)
    batches = dataset.map(lambda example: example["label"]).batch(_READ_BATCH)
    return np.concatenate(list(batches.as_numpy_iterator()))


def _batches(builder, name, spec) -> Iterator[np.ndarray]:
    """Batches of images, uint8 of the spec's size."""
    problems = []

    def fit(pixels):
        if pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        try:
            return fit_pixels(pixels, spec, f"{builder.info.full_name}: an image")
        except BadPicture as error:
            problems.append(str(error))
            raise

    def fitted(example):
        image = tf.numpy_function(fit, [example["image"]], tf.uint8, stateful=False)
        return tf.ensure_shape(image, spec.image_shape)

    def read():
        # File order, so that an example keeps its number from one run to the next.
        dataset = builder.as_dataset(split=name, shuffle_files=False)
        batches = dataset.map(fitted, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).batch(_READ_BATCH)
        try:
            yield from batches.as_numpy_iterator()
        except tf.errors.OpError as error:
            raise ValueError(problems[0] if problems else f"{builder.info.full_name}: {error.message}") from None

    return closed_at_exit(read())


def _builder(spec):
    path, where = spec.path, f"data.source_name = {spec.source_name!r}:"
    is_file = path and pathlib.Path(path).is_file()
    check(not is_file, f"data.path = {path}: a file; for TFDS it names the folder with its data, or is left out")
    base, _, config = spec.source_name.partition("/")
    # TFDS warns of half-prepared sets: the error that follows says it better.
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        return tfds.builder(spec.source_name, data_dir=pathlib.Path(path) if path else None)
    except tfds.core.DatasetNotFoundError:
        nearest = did_you_mean(base, tfds.list_builders(with_community_datasets=False))
        # TFDS' own message lists several hundred names: not chained, so that this one is seen.
        catalog = "(https://www.tensorflow.org/datasets/catalog has the list)"
        raise ValueError(f"{where} TensorFlow Datasets {tfds.__version__} has no such set{nearest} {catalog}") from None
    # TFDS raises AssertionError where there is no such version.
    except (ValueError, AssertionError) as error:
        configs = [known.name for known in tfds.builder_cls(base.partition(":")[0]).BUILDER_CONFIGS]
        if not config or config in configs:
            raise ValueError(f"{where} {error}") from error
        present = f"only {', '.join(configs)}" if configs else "nor any other: leave it out"
        nearest = did_you_mean(config, configs)
        raise ValueError(f"{where} the set {base!r} has no configuration {config!r}, {present}{nearest}") from error
    # A name of another form, or of a collection that needs a package of its own.
    except Exception as error:
        raise ValueError(f"{where} TensorFlow Datasets can't take it ({first_line(error)})") from error
    finally:
        logging.set_verbosity(verbosity)


def _image_feature(builder):
    present = ", ".join(builder.info.features)
    check("image" in builder.info.features, f"TFDS set '{builder.name}' has no feature 'image', only {present}.")
    feature = builder.info.features["image"]
    fix = "write them to a .npy file in one of these types, and use data.source = arrays"
    actual = f"TFDS set '{builder.name}' has images of type {np.dtype(feature.np_dtype).name}, not uint8 or uint16"
    check(feature.np_dtype in (np.uint8, np.uint16), f"{actual}: {fix}")
    return feature


def _bits(feature):
    return np.dtype(feature.np_dtype).itemsize * 8


def _number_of_examples(builder, name, split, spec):
    if not builder.info.splits:
        # A set that does not record its size, as TFDS' mocks: it is read once to count.
        return sum(map(len, _batches(builder, name, spec)))
    try:
        count = builder.info.splits[name].num_examples
    except (KeyError, ValueError):
        count = 0
    if count < 1:
        present = ", ".join(f"{key} ({info.num_examples:,} images)" for key, info in builder.info.splits.items())
        existing = f"TFDS set {builder.info.full_name} has the splits {present}"
        example = "--config.data.train_split='train[:90%]' --config.data.test_split='train[90%:]'"
        raise ValueError(f"data.{split}_split = {name!r}: {existing}. A part of one is written {example}")
    return count


def _download_and_prepare(builder):
    """Checks that the hosts answer, then lets TFDS prepare the set: TFDS waits for minutes when they don't."""
    registered = builder.url_infos or {}
    config = builder.builder_config.name if builder.builder_config else ""
    manual = pathlib.Path(builder.data_dir_root) / "downloads" / "manual"
    # A set with several configurations names the files of all; those of one mostly have its name.
    archives = {url: info for url, info in registered.items() if config and config in url} or registered
    missing = {
        url: info.filename or url.rpartition("/")[2]
        for url, info in archives.items()
        if not (info.filename and (manual / info.filename).exists())
    }
    causes = unreachable_hosts(missing if registered else [_TFDS_HOST])
    if not causes:
        try:
            builder.download_and_prepare()
            return
        except _PREPARATION_ERRORS as error:
            causes = {"TFDS": str(error)}
    files = "\n".join(f"    {name} from {url}" for url, name in missing.items())
    name = builder.info.full_name.rpartition("/")[0]
    reasons = "; ".join(f"{host}: {cause}" for host, cause in causes.items())
    raise ConnectionError(
        f"Data set '{builder.info.full_name}' is not prepared in {builder.data_path} and can't be downloaded "
        f"({reasons}).\n"
        f"Either put these files, under these names, into\n    {manual}\n{files}\n"
        f"or prepare the set on a machine with network, with the same version of TFDS ({tfds.__version__}):\n"
        f'    python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', data_dir='tfds_data').download_and_prepare()\"\n"
        f"and copy the folder tfds_data/{builder.info.full_name} to {builder.data_path},\n"
        "or copy all of tfds_data to any place and name that in --config.data.path."
    )


def unreachable_hosts(urls: Iterable[str], timeout_seconds: float = 4.0) -> dict[str, str]:
    """The hosts of the addresses that do not answer in time, they or their proxies, as `{"host:port": cause}`."""
    endpoints = {_endpoint(url) for url in urls if urllib.parse.urlsplit(url).hostname}
    answers = queue.SimpleQueue()

    def connect(endpoint):
        try:
            socket.create_connection(endpoint, timeout=timeout_seconds).close()
            answers.put((endpoint, ""))
        except OSError as error:
            answers.put((endpoint, str(error)))

    for endpoint in endpoints:
        # Daemons, because resolving a name ignores every time-out and must not hold up the process' end.
        threading.Thread(target=connect, args=(endpoint,), daemon=True).start()
    causes = {endpoint: f"no answer within {timeout_seconds:g} seconds" for endpoint in endpoints}
    with contextlib.suppress(queue.Empty):
        for _ in endpoints:
            endpoint, cause = answers.get(timeout=timeout_seconds)
            causes[endpoint] = cause
    return {f"{host}:{port}": cause for (host, port), cause in sorted(causes.items()) if cause}


def _endpoint(url):
    """The host and port to which a client would really connect for `url`."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy and not urllib.request.proxy_bypass(parts.hostname):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    return parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme, 443)
