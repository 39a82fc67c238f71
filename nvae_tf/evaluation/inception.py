"""The features of the Fréchet inception distance: pool 3 of TensorFlow's published Inception graph of 2015.

The distance of Heusel et al. (2017) is defined with this very graph, `classify_image_graph_def.pb` of
`inception-2015-12-05.tgz`; other weights or another resizing give other numbers. Its conventions:

* Pixels are in 0 .. 255 and are those of 8-bit pictures: values are rounded to whole numbers.
* The graph resizes to 299 x 299 from any size, by TensorFlow's old bilinear operation, which neither aligns corners nor
  half-pixel centers, nor smooths where it makes images smaller. Nothing is resized outside.
* The graph normalizes: 128 is subtracted and the result divided by 128.
* Gray images are repeated to three channels. An alpha channel has no place in it.
* Images go in at `ExpandDims:0` `[batch, height, width, 3]`; the 2,048 features are `pool_3:0` `[batch, 1, 1, 2048]`.
* The statistics of 50,000 generated images are compared with those of the training set.
"""

import hashlib
import pathlib
from typing import Protocol

import numpy as np
import tensorflow as tf

from nvae_tf.evaluation.frozen_graph import batch_function, graph_of
from nvae_tf.evaluation.inception_file import downloaded_inception, graph_content
from nvae_tf.replicas import divided, joined
from nvae_tf.setting_checks import check

NUM_FEATURES = 2048
_INPUT, _OUTPUT = "ExpandDims", "pool_3"
# The operations that say that this is the graph and that it resizes by itself.
_OPERATIONS = {_INPUT: "ExpandDims", "ResizeBilinear": "ResizeBilinear", "Sub": "Sub", "Mul": "Mul", _OUTPUT: "AvgPool"}
# The size is told by several listings of the archive. The MD5 was found in one public project, beside the same size;
# no source for a SHA-256 was found. So they tell whether this is the file, and nothing is refused because of them.
_PUBLISHED_SIZE = 95_673_916
_PUBLISHED_MD5 = "e6bb154e85f5d4331c22abcddb5dcf31"
# Each takes some tens of megabytes on its way through the network.
_IMAGES_AT_ONCE = 32


class FeatureExtractor(Protocol):
    """What gives features of images.

    Attributes:
      name: another one for every extractor that gives other numbers: a part of what statistics are kept under.
    """

    name: str

    def features(self, images: np.ndarray) -> np.ndarray:
        """The features `[batch, features]` of images `[batch, height, width, channels]` in [0, 1]."""


class Inception:
    """Inception 2015, up to pool 3; made by `load_inception`.

    Attributes:
      name: "inception-2015-12-05" with the beginning of the SHA-256 of the graph's file.
      is_published: whether the graph's file has the size and the MD5 that are told of the published one; if not,
        the distances may not be comparable with published ones.
    """

    def __init__(self, content: bytes, where: str, strategy: tf.distribute.Strategy | None = None):
        """Makes the extractor of a graph.

        Args:
          content: the graph's file.
          where: it comes from, for messages.
          strategy: all of its replicas, in this process, share the images.

        Raises:
          ValueError: it is not that graph.
        """
        graph = graph_of(content, where)
        pool = batch_function(graph, _OPERATIONS, _INPUT, _OUTPUT, where)
        self._strategy = strategy or tf.distribute.get_strategy()
        self._pool = tf.function(lambda pixels: self._strategy.run(pool, [pixels]), autograph=False)
        found = pool.outputs[0].shape
        check(
            found[1:] == (1, 1, NUM_FEATURES),
            f"{where}: {_OUTPUT} has shape {found}, not [batch, 1, 1, {NUM_FEATURES}]: it is not the Inception of 2015",
        )
        self.name = f"inception-2015-12-05 {hashlib.sha256(content).hexdigest()[:16]}"
        md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
        self.is_published = len(content) == _PUBLISHED_SIZE and md5 == _PUBLISHED_MD5

    def features(self, images: np.ndarray) -> np.ndarray:
        """float32 `[batch, 2048]`; those of an image do not depend on its batch, but for the last bits.

        Args:
          images: float `[batch, height, width, 1 or 3]` in [0, 1].

        Raises:
          ValueError: the images are of another form or not all in [0, 1].
        """
        pixels, replicas = rgb_pixels(images), self._strategy.num_replicas_in_sync
        # Each replica takes as many; black images that fill up are cut off again.
        filled = np.pad(pixels, [(0, -len(pixels) % replicas), (0, 0), (0, 0), (0, 0)])
        size, rows = _IMAGES_AT_ONCE * replicas, []
        for first in range(0, len(filled), size):
            parts = divided(self._strategy, tf.constant(filled[first : first + size]))
            rows.append(joined(self._strategy, self._pool(parts)).numpy().reshape(-1, NUM_FEATURES))
        return np.concatenate(rows)[: len(pixels)] if rows else np.zeros((0, NUM_FEATURES), np.float32)


def load_inception(
    path: str | pathlib.Path | None = None,
    cache_dir: str | pathlib.Path | None = None,
    strategy: tf.distribute.Strategy | None = None,
) -> Inception:
    """The extractor of published distances.

    The file is checked as far as is possible: a download by the archive's size, each graph by its operations and
    by the number of its features. Whether it is the published one to the last byte is told by
    `Inception.is_published`, see there.

    Args:
      path: `classify_image_graph_def.pb` or the archive that it is in; None to download the archive, once.
      cache_dir: where the download is kept; `nvae_tf` in the user's cache folder if not given.
      strategy: see `Inception`.

    Raises:
      FileNotFoundError: there is no file at `path`.
      ConnectionError: it can't be downloaded; that is known within seconds where nothing answers.
      ValueError: the file is damaged or not this graph.
    """
    file = pathlib.Path(path).expanduser() if path is not None else downloaded_inception(cache_dir)
    return Inception(graph_content(file), str(file), strategy)


def rgb_pixels(images: np.ndarray) -> np.ndarray:
    """Images as the graph takes them, float32 `[batch, height, width, 3]` of whole numbers from 0 to 255.

    Args:
      images: float `[batch, height, width, 1 or 3]` in [0, 1]; gray is repeated.

    Raises:
      ValueError: they are of another form, of whole numbers, or not all in [0, 1].
    """
    images = np.asarray(images)
    check(
        images.ndim == 4 and images.shape[-1] in (1, 3) and min(images.shape[1:]) > 0,
        f"images have shape {images.shape}; features are of gray or RGB images [batch, height, width, 1 or 3], "
        "without alpha",
    )
    check(images.dtype.kind == "f", f"images are of type {images.dtype}; they must be floats in [0, 1]")
    within = bool(np.all((images >= 0.0) & (images <= 1.0)))
    check(within, "images have values outside [0, 1], or NaN, so they have no features")
    pixels = np.rint(images.astype(np.float32) * np.float32(255.0))
    return np.repeat(pixels, 3, axis=-1) if images.shape[-1] == 1 else pixels
