"""A small classifier of Fashion-MNIST whose 64 features stand in for Inception's in the Fréchet distance.

    python -m benchmarks.fashion_features [--path=FOLDER] [--json=FILE]
    nvae-evaluate --workdir=RUN --metrics=frechet --extractor=benchmarks.fashion_features:make_extractor

For models of binary images: it sees binary images alone, each pixel drawn from Bernoulli(intensity), of the training
images as the model does and of the means that a model generates. Trains for some epochs on the labels of the 60,000
training images, prints its accuracy on the test images, and writes it to runs/fashion_features.keras, or where the
environment variable FASHION_FEATURES says. The features are the units before the last layer. Distances in them compare
with each other, not with those in others.
"""

import dataclasses
import hashlib
import os
import pathlib
import time
from typing import Any

import numpy as np

from benchmarks import results
from nvae_tf.config import check
from nvae_tf.errors import start_tensorflow_quietly
from nvae_tf.files import atomic_file

FOLDER = "/usr/share/datasets/fashion-mnist"  # of Debian's package dataset-fashion-mnist
EPOCHS, BATCH_SIZE, NUM_FEATURES = 3, 128, 64


def features_file() -> pathlib.Path:
    return pathlib.Path(os.environ.get("FASHION_FEATURES", "runs/fashion_features.keras"))


def images_and_labels(path: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images `[count, 28, 28, 1]` in [0, 1] and labels `[count]`."""
    from nvae_tf.data import data_spec
    from nvae_tf.data.sources import load_split

    spec = dataclasses.replace(data_spec("fashion_mnist"), path=path, labels=True)
    source = load_split(spec, split)
    return source.images[:].astype(np.float32) / 255.0, np.asarray(source.labels)


def binarized(images: np.ndarray, seed: int) -> np.ndarray:
    """Each pixel of images in [0, 1] drawn from Bernoulli(intensity)."""
    return (np.random.default_rng(seed).random(images.shape, np.float32) < images).astype(np.float32)


def trained(path: str) -> tuple[Any, float]:
    """The classifier, and its accuracy on the test images."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input([28, 28, 1]),
            *(layers.Conv2D(32, 3, activation="relu"), layers.MaxPooling2D()),
            *(layers.Conv2D(64, 3, activation="relu"), layers.MaxPooling2D()),
            *(layers.Flatten(), layers.Dropout(0.3), layers.Dense(NUM_FEATURES, activation="relu")),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    images, labels = images_and_labels(path, "train")
    for epoch in range(EPOCHS):
        model.fit(binarized(images, epoch), labels, batch_size=BATCH_SIZE, verbose=2)
    images, labels = images_and_labels(path, "test")
    return model, model.evaluate(binarized(images, EPOCHS), labels, verbose=0)[1]


class FashionFeatures:
    """The extractor, see `nvae_tf.evaluation.inception.FeatureExtractor`."""

    def __init__(self, file: pathlib.Path):
        import keras

        check(file.is_file(), f"{file}: no such file; `python -m benchmarks.fashion_features` writes it")
        model = keras.models.load_model(file)
        self._model = keras.Model(model.inputs, model.layers[-2].output)
        self.name = f"fashion features {hashlib.sha256(file.read_bytes()).hexdigest()[:8]}"

    def features(self, images: np.ndarray) -> np.ndarray:
        """float32 `[batch, 64]` of images `[batch, 28, 28, 1]` in [0, 1], binarized with a seed of their content."""
        content = np.ascontiguousarray(images, np.float32).tobytes()
        seed = int.from_bytes(hashlib.sha256(content).digest()[:8])
        return self._model.predict(binarized(images, seed), batch_size=256, verbose=0)


def make_extractor() -> FashionFeatures:
    return FashionFeatures(features_file())


def main(arguments: list[str] | None = None) -> None:
    parser = results.benchmark_parser("fashion_features", __doc__)
    parser.add_argument("--path", default=FOLDER, help=f"folder with the IDX files of Fashion-MNIST, {FOLDER}")
    options, start = parser.parse_args(arguments), time.perf_counter()
    start_tensorflow_quietly()
    model, accuracy = trained(options.path)
    file = features_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as partial:
        # Keras wants its ending.
        model.save(partial.with_suffix(".keras"))
        partial.with_suffix(".keras").replace(partial)
    print(f"accuracy on the test images {accuracy:.4f}, {time.perf_counter() - start:.0f} s; written to {file}")
    results.write_json(results.stamp() | {"accuracy": accuracy, "epochs": EPOCHS}, options.json)


if __name__ == "__main__":
    main()
