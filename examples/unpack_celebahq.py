"""Unpacks Glow's CelebA-HQ records into PNG files: python examples/unpack_celebahq.py celeba-tfr celebahq."""

import pathlib
import sys

import numpy as np
import tensorflow as tf
from PIL import Image

FEATURES = {"shape": tf.io.FixedLenFeature([3], tf.int64), "data": tf.io.FixedLenFeature([], tf.string)}

if __name__ == "__main__":
    records, pictures = map(pathlib.Path, sys.argv[1:])
    for part in ("train", "validation"):
        (pictures / part).mkdir(parents=True)
        files = sorted(str(file) for file in (records / part).glob("*-r08-*.tfrecords"))
        for number, record in enumerate(tf.data.TFRecordDataset(files)):
            example = tf.io.parse_single_example(record, FEATURES)
            pixels = np.frombuffer(example["data"].numpy(), np.uint8).reshape(example["shape"].numpy())
            Image.fromarray(pixels).save(pictures / part / f"{number:05d}.png")
