"""A fingerprint of what a data set holds, for results that are kept."""

import dataclasses
import hashlib

import numpy as np

from nvae_tf.data.image_sources import ImageSource
from nvae_tf.data.pipeline import evaluation_batches, iterate
from nvae_tf.data_spec import DataSpec

# All images of a large set would take as long as what the result is kept for.
_LOOKED_AT = 256


def stored_spec(spec: DataSpec) -> DataSpec:
    """The data set with its images as they are stored: 8 bits, neither binarized nor mirrored."""
    return dataclasses.replace(spec, num_bits=8, binarise=False, horizontal_flip=False)


def content_digest(source: ImageSource, spec: DataSpec) -> str:
    """The SHA-256 of the number of images and of the pixels of up to 256 of them, spread evenly over the set.

    Args:
      source: one part of a data set.
      spec: the data set.
    """
    numbers = np.unique(np.linspace(0, source.count - 1, min(source.count, _LOOKED_AT)).astype(np.int64))
    digest = hashlib.sha256(f"{source.count} {spec.image_shape}".encode())
    for image in iterate(evaluation_batches(source, stored_spec(spec), 1, seed=0, numbers=numbers), source):
        digest.update(image.numpy().tobytes())
    return digest.hexdigest()
