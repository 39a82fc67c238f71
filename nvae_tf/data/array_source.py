"""What the pipeline asks of a source of images, and the source that holds a split in memory."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
import tensorflow as tf


class ImageSource(Protocol):
    """One split of a data set: numbered images with whole-number values from 0 to `maximum_value`."""

    count: int
    image_shape: tuple[int, int, int]
    maximum_value: int
    labels: np.ndarray | None

    def reader(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns a function from indices `[batch]` to integer images `[batch, height, width, channels]`.

        It is called once per pipeline, eagerly; the function it returns is traced into the pipeline's graph.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """A split held in memory.

    Attributes:
        images: uint8 `[count, height, width, channels]`, values from 0 to `maximum_value`.
        maximum_value: the value that stands for intensity 1, at most 255.
        labels: int64 `[count]`, or None where the set has none.

    Raises:
        ValueError: the arrays have another type or shape, or a pixel exceeds `maximum_value`.
    """

    images: np.ndarray
    maximum_value: int = 255
    labels: np.ndarray | None = None

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or not self.images.size:
            raise ValueError(
                "Images must be a non-empty uint8 array [count, height, width, channels], "
                f"not {self.images.dtype} {list(self.images.shape)}."
            )
        if self.images.max() > self.maximum_value:
            raise ValueError(
                f"The largest pixel value is {self.images.max()}, above the stated maximum {self.maximum_value}."
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
        # An eager tensor is captured by reference, where an array would be copied into the graph. On an
        # accelerator, TensorFlow's default place, it would be in the way: tf.data runs on the CPU.
        with tf.device("/CPU:0"):
            images = tf.constant(self.images)
        return lambda indices: tf.gather(images, indices)
