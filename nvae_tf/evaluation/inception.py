"""The features of the Fréchet inception distance: pool 3 of TensorFlow's published Inception graph of 2015.

The distance of Heusel et al. (2017) is defined with this very graph: other weights or another resizing give other
numbers. It takes pixels from 0 to 255 at `ExpandDims:0` `[batch, height, width, 3]`, resizes them to 299 x 299 (with
no aligned corners, half-pixel centers or antialiasing), and gives 2,048 features at `pool_3:0` `[batch, 1, 1, 2048]`.
"""

import hashlib
import os
import pathlib
import tarfile
import zlib
from typing import Protocol

import numpy as np
import requests
import tensorflow as tf
from google.protobuf.message import DecodeError

from nvae_tf.errors import first_line
from nvae_tf.files import atomic_file
from nvae_tf.replicas import divided, joined

NUM_FEATURES = 2048
GRAPH_NAME = "classify_image_graph_def.pb"
URL = "https://storage.googleapis.com/download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz"
_HELP = f"download {URL} where there is a network, and name that file, or the {GRAPH_NAME} in it, with --inception=PATH"
_ARCHIVE_SIZE = 88_931_400
# From listings of the archive, and from one public project; a file of another size or sum is accepted, with a note.
_PUBLISHED_SIZE = 95_673_916
_PUBLISHED_MD5 = "e6bb154e85f5d4331c22abcddb5dcf31"
_INPUT, _OUTPUT = "ExpandDims", "pool_3"
_FLOAT = tf.float32.as_datatype_enum
_IMAGES_AT_ONCE = 32  # each takes some tens of megabytes


class FeatureExtractor(Protocol):
    """An object that computes features of images; statistics are kept under its `name`, so change both together."""

    name: str

    def features(self, images: np.ndarray) -> np.ndarray:
        """The features `[batch, features]` of images `[batch, height, width, channels]` in [0, 1]."""


class Inception:
    """The extractor of published distances, from the graph's file or the archive that it is in, by default a download.

    All replicas of the strategy share the images. Distances may not be comparable unless the file `is_published`.
    FileNotFoundError, ConnectionError or ValueError: there is no file, it can't be downloaded, or is another.
    """

    def __init__(self, path: str | pathlib.Path | None = None, strategy: tf.distribute.Strategy | None = None):
        file = downloaded_inception(cache_folder()) if path is None else pathlib.Path(path).expanduser()
        content = graph_content(file)
        pool = _batch_function(content, str(file))
        self._strategy = strategy or tf.distribute.get_strategy()
        self._pool = tf.function(lambda pixels: self._strategy.run(pool, [pixels]), autograph=False)
        self.name = f"inception-2015-12-05 {hashlib.sha256(content).hexdigest()[:16]}"
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        self.is_published = (len(content), md5) == (_PUBLISHED_SIZE, _PUBLISHED_MD5)

    def features(self, images: np.ndarray) -> np.ndarray:
        """float32 `[batch, 2048]` of images as `rgb_pixels` takes them, whatever the batch, but for the last bits."""
        pixels, replicas = rgb_pixels(images), self._strategy.num_replicas_in_sync
        padded = np.pad(pixels, [(0, -len(pixels) % replicas), (0, 0), (0, 0), (0, 0)])
        size, rows = _IMAGES_AT_ONCE * replicas, [np.zeros((0, NUM_FEATURES), np.float32)]
        for first in range(0, len(padded), size):
            parts = divided(self._strategy, tf.constant(padded[first : first + size]))
            rows.append(joined(self._strategy, self._pool(parts)).numpy().reshape(-1, NUM_FEATURES))
        return np.concatenate(rows)[: len(pixels)]


def rgb_pixels(images: np.ndarray) -> np.ndarray:
    """Images `[batch, height, width, 1 or 3]` in [0, 1] as the graph takes them: float32 of whole numbers 0 ... 255,
    gray repeated to three channels; ValueError for any other shape, type or values.
    """
    images = np.asarray(images)
    has_features = images.ndim == 4 and images.shape[-1] in (1, 3) and images.dtype.kind == "f"
    if not has_features or not np.all((images >= 0.0) & (images <= 1.0)):
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; Inception takes gray or RGB images, floats in [0, 1] "
            "[batch, height, width, 1 or 3]"
        )
    pixels = np.rint(images.astype(np.float32) * np.float32(255.0))
    return np.repeat(pixels, 3, axis=-1) if images.shape[-1] == 1 else pixels


def _batch_function(content: bytes, where: str) -> tf.types.experimental.ConcreteFunction:
    """The frozen graph, built for one decoded image, as a function of a batch; messages begin with `where`."""
    graph = tf.compat.v1.GraphDef()
    try:
        graph.ParseFromString(content)
    except DecodeError:
        raise ValueError(f"{where}: not a frozen graph of TensorFlow, or cut off; download it again") from None
    # With the graph's old version number some operations are read by rules that functions don't know.
    graph.versions.producer = tf.version.GRAPH_DEF_VERSION
    for node in list(graph.node):
        node.attr.pop("_output_shapes", None)  # of one image
        if node.op == "BatchNormWithGlobalNormalization":
            _renew_batch_norm(graph, node)

    def pool(images: tf.Tensor) -> tf.Tensor:
        (features,) = tf.graph_util.import_graph_def(graph, {f"{_INPUT}:0": images}, [f"{_OUTPUT}:0"], name="")
        return tf.ensure_shape(features, [None, 1, 1, NUM_FEATURES])

    try:
        wrapped = tf.compat.v1.wrap_function(pool, [tf.TensorSpec([None, None, None, 3])])
        return wrapped.prune(wrapped.inputs[0], wrapped.outputs[0])
    except (ValueError, tf.errors.OpError) as error:
        needed = f"[batch, 1, 1, {NUM_FEATURES}] at {_OUTPUT} can't be computed from {_INPUT}"
        raise ValueError(f"{where}: not the Inception of 2015: {needed} ({first_line(error)})") from None


def _renew_batch_norm(graph: tf.compat.v1.GraphDef, node: tf.compat.v1.NodeDef) -> None:
    """Replaces an old batch norm of the graph, which TensorFlow does not allow in functions."""
    inputs, mean, variance, beta, gamma, *others = node.input
    name, epsilon = node.name, node.attr["variance_epsilon"].f
    if not node.attr["scale_after_normalization"].b:  # its gamma is not used
        ones = graph.node.add(name=f"{name}/no_scale", op="OnesLike", input=[gamma])
        ones.attr["T"].type = _FLOAT
        gamma = ones.name
    node.Clear()
    node.name, node.op = name, "FusedBatchNormV3"
    node.input.extend([inputs, gamma, beta, mean, variance, *others])
    node.attr["T"].type = node.attr["U"].type = _FLOAT
    node.attr["epsilon"].f, node.attr["is_training"].b = epsilon, False


def downloaded_inception(
    folder: pathlib.Path, url: str = URL, size: int = _ARCHIVE_SIZE, timeout_seconds: float = 8.0
) -> pathlib.Path:
    """The archive of `size` bytes in a folder, downloaded if it is not there; a ConnectionError says how to by hand."""
    file = folder / url.rpartition("/")[2]
    if file.exists() and file.stat().st_size == size:
        return file
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as partial:
        try:
            with requests.get(url, stream=True, timeout=timeout_seconds) as response, partial.open("wb") as target:
                response.raise_for_status()
                target.writelines(response.iter_content(2**20))
        except requests.RequestException as error:
            raise ConnectionError(f"Inception can't be downloaded ({error}): {_HELP}") from None
        if partial.stat().st_size != size:
            raise ConnectionError(f"{url} gave {partial.stat().st_size:,} bytes, not {size:,}: try again, or {_HELP}")
    return file


def graph_content(file: pathlib.Path) -> bytes:
    """The graph's file as bytes, from itself or from the archive that it is in."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; {_HELP}")
    # Any file of zeros is a tar archive, so its name decides.
    if not file.name.endswith((".tgz", ".tar.gz", ".tar")):
        return file.read_bytes()
    try:
        with tarfile.open(file) as archive:
            files = (member for member in archive if member.isfile())
            (member,) = (file for file in files if pathlib.PurePosixPath(file.name).name == GRAPH_NAME)
            return archive.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise ValueError(f"{file}: a damaged archive, or without {GRAPH_NAME} ({error}); {_HELP}") from None


def cache_folder() -> pathlib.Path:
    """The folder where this package keeps downloads and statistics for a user."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nvae_tf"
