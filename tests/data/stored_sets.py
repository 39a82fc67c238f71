"""Sets on disk exactly as TensorFlow Datasets prepares them, with images that a test knows."""

import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds


def store_known_set(folder, name, **parts):
    """Prepares a set of TFDS' catalog: `parts` are arrays or lists of images; all else that an example has is 0.

    Its labels are the images' numbers, modulo ten.
    """
    builder = tfds.builder(name, data_dir=folder)
    pathlib.Path(builder.data_dir).mkdir(parents=True)
    writer = tfds.core.SequentialWriter(builder.info, max_examples_per_shard=1000)
    writer.initialize_splits(list(parts))
    features = builder.info.features
    for part, images in parts.items():
        for number, image in enumerate(images):
            label = {"label": number % 10} if "label" in features else {}
            writer.add_examples({part: [_empty(features) | label | {"image": image}]})
    writer.close_all()


def store_own_set(folder, name, images, dtype=np.uint8, shape=(None, None, 3)):
    """Stores a set that no catalog has, with a training part of images that need not have one size."""
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(shape=shape, dtype=dtype)})
    training = tf.data.Dataset.from_generator(
        lambda: ({"image": image} for image in images), output_signature={"image": tf.TensorSpec(shape, dtype)}
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name,
        "1.0.0",
        features=features,
        split_datasets={"train": training},
        data_dir=str(folder),
        disable_shuffling=True,
    )


def _empty(feature):
    if isinstance(feature, tfds.features.FeaturesDict):
        return {name: _empty(part) for name, part in feature.items()}
    return "" if isinstance(feature, tfds.features.Text) else 0
