"""The features of the Fréchet inception distance: pool 3 of TensorFlow's published Inception graph of 2015.

The distance of Heusel et al. (2017) is defined with this very graph: other weights or another resizing give other
numbers. It takes pixels from 0 to 255 at `ExpandDims:0` `[batch, height, width, 3]`, resizes them to 299 x 299 (with
no aligned corners, half-pixel centers or antialiasing), and gives 2,048 features at `pool_3:0` `[batch, 1, 1, 2048]`.
"""

import hashlib
import http.client
import os
import pathlib
import shutil
import tarfile
import urllib.request
import zlib
from typing import Protocol

import numpy as np
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
# The nodes, with their operations, by which the graph is recognized; it resizes images by itself.
_OPERATIONS = {_INPUT: "ExpandDims", "ResizeBilinear": "ResizeBilinear", "Sub": "Sub", "Mul": "Mul", _OUTPUT: "AvgPool"}
_FLOAT = tf.float32.as_datatype_enum
_IMAGES_AT_ONCE = 32  # each takes some tens of megabytes


class FeatureExtractor(Protocol):
    """An object that computes features of images; statistics are kept under its `name`, so change both together."""

    name: str

    def features(self, images: np.ndarray) -> np.ndarray:
        """The features `[batch, features]` of images `[batch, height, width, channels]` in [0, 1]."""


class Inception:
    """The extractor of published distances, from the graph's file or the archive that it is in, by default a download.

    The archive is downloaded once, into the user's cache. All replicas of the strategy share the images. Distances may
    not be comparable unless the file has the size and MD5 of the published one, `is_published`. FileNotFoundError,
    ConnectionError or ValueError: there is no file, it can't be downloaded, or is another.
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
        size, rows = _IMAGES_AT_ONCE * replicas, []
        for first in range(0, len(padded), size):
            parts = divided(self._strategy, tf.constant(padded[first : first + size]))
            rows.append(joined(self._strategy, self._pool(parts)).numpy().reshape(-1, NUM_FEATURES))
        return np.concatenate(rows)[: len(pixels)] if rows else np.zeros((0, NUM_FEATURES), np.float32)


def rgb_pixels(images: np.ndarray) -> np.ndarray:
    """Images `[batch, height, width, 1 or 3]` in [0, 1] as the graph takes them: float32 of whole numbers 0 ... 255,
    gray repeated to three channels; ValueError for any other shape, type or values.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or min(images.shape[1:]) == 0:
        needed = "features are of gray or RGB images [batch, height, width, 1 or 3], without alpha"
        raise ValueError(f"images have shape {images.shape}; {needed}")
    if images.dtype.kind != "f":
        raise ValueError(f"images are of type {images.dtype}; they must be floats in [0, 1]")
    if not np.all((images >= 0.0) & (images <= 1.0)):
        raise ValueError("images have values outside [0, 1], or NaN, so they have no features")
    pixels = np.rint(images.astype(np.float32) * np.float32(255.0))
    return np.repeat(pixels, 3, axis=-1) if images.shape[-1] == 1 else pixels


def _batch_function(content: bytes, where: str) -> tf.types.experimental.ConcreteFunction:
    """The frozen graph, built for one decoded image, as a function of a batch; messages begin with `where`."""
    graph = tf.compat.v1.GraphDef()
    try:
        graph.ParseFromString(content)
    except DecodeError:
        raise ValueError(f"{where}: not a frozen graph of TensorFlow, or cut off; download it again") from None
    operations = {node.name: node.op for node in graph.node}
    missing = [f"{name} ({kind})" for name, kind in _OPERATIONS.items() if operations.get(name) != kind]
    if missing:
        raise ValueError(f"{where}: another graph than expected, it lacks the nodes {', '.join(missing)}")
    try:
        part = _from_images_to_pool(graph)
        wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(part, name=""), [])
        function = wrapped.prune(f"{_INPUT}:0", f"{_OUTPUT}:0")
    except (ValueError, tf.errors.OpError) as error:
        raise ValueError(f"{where}: {_OUTPUT} can't be computed from {_INPUT} ({first_line(error)})") from None
    shape = function.outputs[0].shape
    if shape.rank != 4 or [*shape] != [None, 1, 1, NUM_FEATURES]:
        needed = f"[batch, 1, 1, {NUM_FEATURES}]: it is not the Inception of 2015"
        raise ValueError(f"{where}: {_OUTPUT} has shape {shape}, not {needed}")
    return function


def _from_images_to_pool(graph: tf.compat.v1.GraphDef) -> tf.compat.v1.GraphDef:
    """The nodes that the output needs, with a placeholder for a batch of images, and batch norms of today."""
    part = tf.compat.v1.GraphDef()
    # With the graph's old version number some operations are read by rules that functions don't know.
    part.versions.producer = tf.version.GRAPH_DEF_VERSION
    batch = part.node.add(name=_INPUT, op="Placeholder")
    batch.attr["dtype"].type = _FLOAT
    batch.attr["shape"].shape.CopyFrom(tf.TensorShape([None, None, None, 3]).as_proto())
    nodes = {node.name: node for node in graph.node}
    seen, waiting = {_INPUT}, [_OUTPUT]
    while waiting:
        name = waiting.pop()
        if name in seen or name not in nodes:
            continue  # the import reports what is missing
        seen.add(name)
        copy = part.node.add()
        copy.CopyFrom(nodes[name])
        copy.attr.pop("_output_shapes", None)  # of one image
        waiting.extend(source.removeprefix("^").partition(":")[0] for source in copy.input)
        if copy.op == "BatchNormWithGlobalNormalization":
            _renew_batch_norm(part, copy)
    return part


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
    """The archive of `size` bytes in a folder, downloaded if it is not there; a ConnectionError says how to by hand.

    `keras.utils.get_file` waits without end for a silent host; here each answer must come within `timeout_seconds`.
    """
    from nvae_tf.data.tfds import unreachable_hosts  # takes a second

    file = folder / url.rpartition("/")[2]
    if file.exists() and file.stat().st_size == size:
        return file
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as partial:
        try:
            # Alone, `urlopen` would wait for a name that is never resolved.
            for host, cause in unreachable_hosts([url], timeout_seconds).items():
                raise OSError(f"{host}: {cause}")
            with urllib.request.urlopen(url, timeout=timeout_seconds) as response, partial.open("wb") as target:
                shutil.copyfileobj(response, target)
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(f"Inception can't be downloaded ({error}): {_HELP}") from None
        received = partial.stat().st_size
        if received != size:
            raise ConnectionError(
                f"{url} gave {received:,} bytes, not the {size:,} of the archive: try again, or {_HELP}"
            )
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
            members = [member for member in archive if pathlib.PurePosixPath(member.name).name == GRAPH_NAME]
            if len(members) != 1 or not members[0].isfile():
                raise ValueError(f"{file}: has no {GRAPH_NAME} in it; {_HELP}")
            return archive.extractfile(members[0]).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{file}: a damaged archive ({error}); remove it, and download it again: {_HELP}") from None


def cache_folder() -> pathlib.Path:
    """The folder where this package keeps downloads and statistics for a user."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nvae_tf"
