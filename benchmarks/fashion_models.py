"""Small models of Fashion-MNIST, each some twenty minutes on two cores: the recipes that the docs measure.

    python -m benchmarks.fashion_models binary --workdir=runs/fashion_binary
    python -m benchmarks.fashion_models gray --workdir=runs/fashion_gray
    python -m benchmarks.fashion_models classes --workdir=runs/fashion_classes
    python -m benchmarks.fashion_models measure --workdir=runs/fashion_classes [--guidance=W] [--json=FILE]

The first three train on the first 9,600 training images (2,000 test images) of --images, where Debian's package
dataset-fashion-mnist has them; a run that was interrupted goes on. `measure` says what a conditional model knows of
its classes: in how many of 1,000 samples a support vector machine, trained on the same images, sees the class that was
asked for, in how many test images it sees the true one, and in how many the model's own Bayes' rule does.
"""

import argparse
import gzip
import pathlib
import struct
import sys
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.workloads import run_python
from nvae_tf.errors import start_tensorflow_quietly

_RECIPE = {
    **{"model.num_groups_per_scale": 4, "model.num_latent_per_group": 10},
    **{"model.num_channels_encoder": 16, "model.num_channels_decoder": 16},
    **{"model.num_preprocess_cells": 1, "model.num_postprocess_cells": 1},
    **{"optimizer.warmup_epochs": 1.0, "train.batch_size": 32, "data.source": "arrays"},
}
# The preset and what else is set; an epoch has 300 steps.
KINDS = {
    "binary": ("mnist", {"train.epochs": 10}),
    "gray": ("fashion_mnist", {"train.epochs": 9}),
    "classes": ("fashion_mnist", {"train.epochs": 9, "data.labels": True, "train.label_dropout": 0.1}),
}
_PARTS = {"train": ("train", 9600), "test": ("t10k", 2000)}
SAMPLES = 1000


def fashion(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images `[count, 28, 28]`, uint8, that the models see of a part, and their labels `[count]`."""
    prefix, count = _PARTS[split]
    return tuple(_first(folder / f"{prefix}-{kind}-ubyte.gz", count) for kind in ("images-idx3", "labels-idx1"))


def _first(file: pathlib.Path, count: int) -> np.ndarray:
    with gzip.open(file) as stream:
        axes = stream.read(4)[3]
        shape = count, *struct.unpack(f">{axes}i", stream.read(4 * axes))[1:]
        return np.frombuffer(stream.read(int(np.prod(shape))), np.uint8).reshape(shape)


def train(kind: str, workdir: pathlib.Path, images: pathlib.Path) -> None:
    """Trains a model; the part of the images that it sees goes into a file beside the run folder."""
    file = workdir.absolute().parent / "fashion_mnist_part.npz"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        arrays = {}
        for split in _PARTS:
            arrays[split], arrays[f"{split}_labels"] = fashion(images, split)
        np.savez(file, **arrays)
    preset, settings = KINDS[kind]
    flags = [f"--config.{name}={value}" for name, value in (_RECIPE | settings | {"data.path": file}).items()]
    run_python("train.main", f"--config={preset}", f"--workdir={workdir}", *flags)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Agreement of a conditional model, a support vector machine and the labels, parts of 1."""
    start_tensorflow_quietly()
    from sklearn.svm import SVC

    import nvae_tf
    from nvae_tf.generation.sampling import generate_images

    (images, labels), (test_images, test_labels) = (fashion(options.images, split) for split in _PARTS)
    machine = SVC(C=10.0).fit(images.reshape(len(images), -1) / 255.0, labels)
    model, wanted = nvae_tf.load(options.workdir), np.arange(SAMPLES) % 10
    samples = generate_images(model, SAMPLES, options.temperature, seed=1, labels=wanted, guidance=options.guidance)
    found = model.classify(test_images[..., np.newaxis] / np.float32(255.0), batch_size=100)
    on_test = machine.predict(test_images.reshape(len(test_images), -1) / 255.0)
    return {
        "samples_seen_as_asked": float((machine.predict(samples.reshape(SAMPLES, -1)) == wanted).mean()),
        "test_images_seen_rightly": float((on_test == test_labels).mean()),
        "test_images_classified_by_the_model": float((np.argmax(found, axis=1) == test_labels).mean()),
    }


def main() -> None:
    parser = results.benchmark_parser("fashion_models", __doc__)
    parser.add_argument("what", choices=[*KINDS, "measure"], help="the model to train, or to measure one with classes")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="run folder")
    images = pathlib.Path("/usr/share/datasets/fashion-mnist")
    parser.add_argument("--images", type=pathlib.Path, default=images, help=f"folder of the four files ({images})")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the samples to measure")
    parser.add_argument("--guidance", type=float, default=1.0, help="of the samples to measure")
    options = parser.parse_args()
    if not (options.images / "train-images-idx3-ubyte.gz").is_file():
        sys.exit(
            f"--images={options.images}: no Fashion-MNIST; install Debian's dataset-fashion-mnist, see docs/data.md"
        )
    if options.what == "measure":
        results.run(options, measure)
    else:
        train(options.what, options.workdir, options.images)


if __name__ == "__main__":
    main()
