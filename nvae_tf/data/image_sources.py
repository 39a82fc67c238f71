"""What the pipeline asks of a source of images, and the three forms in which sources hold them.

TensorFlow is imported when a pipeline is made: settings are completed and checked with the sources before it starts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import psutil

if TYPE_CHECKING:
    import tensorflow as tf


class ImageSource(Protocol):
    """One part of a data set: numbered images with values from 0 to 255.

    Attributes:
        count: number of images.
        image_shape: size of one image, `(height, width, channels)`.
        failures: what went wrong while images were read; TensorFlow passes on no more than the text of an error.
    """

    count: int
    image_shape: tuple[int, int, int]
    failures: Sequence[Exception]

    def reader(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns a function from indices `[batch]` to uint8 images `[batch, height, width, channels]`.

        It is called once per pipeline, eagerly; the function it returns is traced into the pipeline's graph.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Images held in memory.

    Attributes:
        images: uint8 `[count, height, width, channels]`.
        labels: int64 `[count]`, or None where the set has none.

    Raises:
        ValueError: the arrays have another type or shape.
    """

    images: np.ndarray
    labels: np.ndarray | None = None
    failures: Sequence[Exception] = ()

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or not self.images.size:
            raise ValueError(
                "Images must be a non-empty uint8 array [count, height, width, channels], "
                f"not {self.images.dtype} {list(self.images.shape)}."
            )
        if self.labels is not None and self.labels.shape != (self.count,):
            raise ValueError(f"Labels have shape {list(self.labels.shape)}, but there are {self.count} images.")

    @property
    def count(self) -> int:
        """Number of images."""
        return self.images.shape[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Size of one image, `(height, width, channels)`."""
        return self.images.shape[1:]

    def reader(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns a function from indices `[batch]` to uint8 images `[batch, height, width, channels]`."""
        import tensorflow as tf

        images = self._tensor
        return lambda indices: tf.gather(images, indices)

    @functools.cached_property
    def _tensor(self) -> tf.Tensor:
        """The images, one copy for all pipelines."""
        import tensorflow as tf

        # An eager tensor is captured by reference, where an array would be copied into the graph. On an
        # accelerator, TensorFlow's default place, it would be in the way: tf.data runs on the CPU.
        with tf.device("/CPU:0"):
            return tf.constant(self.images)


@dataclasses.dataclass(frozen=True, eq=False)
class ReadSource:
    """Images that a Python function reads when they are asked for: from files, or a memory-mapped array.

    Attributes:
        count: number of images.
        image_shape: size of one image, `(height, width, channels)`.
        read: from numbers `[batch]` to uint8 images `[batch, height, width, channels]`; called by several threads.
    """

    count: int
    image_shape: tuple[int, int, int]
    read: Callable[[np.ndarray], np.ndarray]
    failures: list[Exception] = dataclasses.field(default_factory=list)

    def reader(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns a function from indices `[batch]` to uint8 images `[batch, height, width, channels]`."""
        import tensorflow as tf

        def read_or_note(indices):
            try:
                return self.read(indices)
            except Exception as error:
                self.failures.append(error)
                raise

        def images_at(indices):
            images = tf.numpy_function(read_or_note, [indices], tf.uint8, stateful=False)
            return tf.ensure_shape(images, [indices.shape[0], *self.image_shape])

        return images_at


@dataclasses.dataclass(frozen=True, eq=False)
class StackedSource:
    """Images of several channels, each channel an image of another source: stacked MNIST.

    Attributes:
        base: a source of images of one channel.
        orders: for each channel a permutation of the numbers of `base`, `[channels, count]`.
    """

    base: ImageSource
    orders: np.ndarray

    @classmethod
    def at_random(cls, base: ImageSource, channels: int, seed: int) -> StackedSource:
        """Every image of `base` once in each channel, in orders that depend on the seed alone."""
        # RandomState, because NumPy promises never to change its numbers; those of Generator may change.
        random = np.random.RandomState(seed)
        return cls(base, np.stack([random.permutation(base.count) for _ in range(channels)]))

    @property
    def count(self) -> int:
        """Number of images."""
        return self.base.count

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Size of one image, `(height, width, channels)`."""
        return (*self.base.image_shape[:2], len(self.orders))

    @property
    def failures(self) -> Sequence[Exception]:
        """What went wrong in the source of the channels."""
        return self.base.failures

    def reader(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns a function from indices `[batch]` to uint8 images `[batch, height, width, channels]`."""
        import tensorflow as tf

        read = self.base.reader()
        with tf.device("/CPU:0"):
            orders = [tf.constant(order) for order in self.orders]
        return lambda indices: tf.concat([read(tf.gather(order, indices)) for order in orders], axis=-1)


def check_memory(needed: int, what: str, fix: str) -> None:
    """Looks, before images are read, whether there is memory for them.

    Args:
        needed: bytes of the images.
        what: the images, for the message: "... need 4.7 GB of memory".
        fix: what to do about it.

    Raises:
        ValueError: there is too little.
    """
    free = psutil.virtual_memory().available
    # The array, and its copy in TensorFlow; the model wants some too.
    if needed > free / 3:
        raise ValueError(f"{what} need {needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free: {fix}")
