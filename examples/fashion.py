"""Small models of Fashion-MNIST, and what they are good for: the recipes that the docs measure, minutes on two cores.

    python -m examples.fashion models binary|gray|classes --workdir=RUN
    python -m examples.fashion classes --workdir=RUN [--guidance=W] [--samples=16]
    python -m examples.fashion features
    python -m examples.fashion prior --workdir=RUN [--count=2000] [--seeds=3]
    python -m examples.fashion outliers --workdir=RUN [--count=2000]
    python -m examples.fashion restoration --workdir=RUN [--count=100] [--variants]

`python -m examples.fashion RECIPE --help` says what a recipe measures.
"""

import dataclasses
import hashlib
import pathlib
import time
import types
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import nvae_tf
from benchmarks import results
from benchmarks.workloads import run_python
from examples.digits import Count, Guidance, Temperature, Workdir, accuracy, class_samples, rows
from nvae_tf.data import data_spec
from nvae_tf.data.pipeline import chosen_images, evaluation_batches, stored_spec
from nvae_tf.data.sources import load_split
from nvae_tf.evaluation.batch_norm_statistics import readjusted
from nvae_tf.evaluation.denoising import psnr
from nvae_tf.evaluation.fid import frechet_distance, statistics_of
from nvae_tf.evaluation.outliers import aurocs, flagged, scores_by_name
from nvae_tf.generation.sampling import reconstruct_images
from nvae_tf.models.restoration import Mask, downsampling, gaussian_blur, measured
from nvae_tf.runs.loading import load_run
from nvae_tf.schemas import write_arrays
from nvae_tf.training.prior import learn_prior

DEBIAN = "/usr/share/datasets/fashion-mnist"
COUNTS = {"train": 9600, "test": 2000}
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
FEATURES = pathlib.Path("runs/fashion_features.keras")
Images = Annotated[str, "Folder of Fashion-MNIST's four files."]
Kind = Annotated[str, "Which model; may stand without --kind=.", *KINDS]


def fashion(folder: str, split: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a part, uint8 `[count, 28, 28, 1]`, and their labels."""
    source = load_split(dataclasses.replace(data_spec("fashion_mnist"), path=folder, labels=True), split)
    return source.images[:count], np.asarray(source.labels[:count])


def models(kind: Kind, workdir: Workdir, images: Images = DEBIAN) -> dict[str, Any]:
    """Trains a model on the first 9,600 training images (2,000 test images), which go into a file beside the run."""
    file = pathlib.Path(workdir).absolute().parent / "fashion_mnist_part.npz"
    if not file.exists():
        parts = {split: fashion(images, split, count) for split, count in COUNTS.items()}
        arrays = {split: pixels for split, (pixels, _) in parts.items()}
        write_arrays(file, arrays | {f"{split}_labels": labels for split, (_, labels) in parts.items()})
    preset, settings = KINDS[kind]
    flags = [f"--config.{name}={value}" for name, value in (_RECIPE | settings | {"data.path": file}).items()]
    return {"peak_memory_bytes": run_python("train.main", f"--config={preset}", f"--workdir={workdir}", *flags)}


def classes(
    workdir: Workdir,
    temperature: Temperature = 1.0,
    guidance: Guidance = 1.0,
    samples: Annotated[int, "Draws of the latents whose mean bound classifies test images.", 1] = 1,
    images: Images = DEBIAN,
) -> dict[str, Any]:
    """In how many samples of a conditional model a classifier of the same images sees the class that was asked for.

    In how many test images it sees the true class, and in how many the model's own Bayes' rule does.
    """
    (training, labels), (test, truth) = (fashion(images, split, count) for split, count in COUNTS.items())
    machine, model = SVC(C=10.0).fit(rows(training) / 255.0, labels), nvae_tf.load(workdir)
    drawn, wanted = class_samples(model, 1000, temperature, guidance)
    return {
        "samples_seen_as_asked": float((machine.predict(rows(drawn)) == wanted).mean()),
        "test_images_seen_rightly": float((machine.predict(rows(test) / 255.0) == truth).mean()),
        "test_images_classified_by_the_model": accuracy(model, test / np.float32(255.0), truth, samples),
    }


def binarized(images: np.ndarray, seed: int) -> np.ndarray:
    """Each pixel of images in [0, 1] drawn from Bernoulli(intensity)."""
    return (np.random.default_rng(seed).random(images.shape, np.float32) < images).astype(np.float32)


def features(images: Images = DEBIAN) -> dict[str, Any]:
    """Trains a classifier of binarized images, whose 64 last features stand in for Inception's.

    Then: nvae-evaluate --metrics=frechet --extractor=examples.fashion:make_extractor.
    """
    keras.utils.set_random_seed(0)
    convolutions = [(layers.Conv2D(count, 3, activation="relu"), layers.MaxPooling2D()) for count in (32, 64)]
    dense = layers.Flatten(), layers.Dropout(0.3), layers.Dense(64, activation="relu"), layers.Dense(10)
    model = keras.Sequential([keras.Input([28, 28, 1]), *convolutions[0], *convolutions[1], *dense])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    training, labels = fashion(images, "train")
    for epoch in range(3):
        model.fit(binarized(training / np.float32(255.0), epoch), labels, batch_size=128, verbose=2)
    test, labels = fashion(images, "test")
    accuracy = model.evaluate(binarized(test / np.float32(255.0), 3), labels, verbose=0)[1]
    FEATURES.parent.mkdir(parents=True, exist_ok=True)
    model.save(FEATURES)
    return {"file": str(FEATURES), "accuracy_on_test_images": accuracy}


def make_extractor() -> types.SimpleNamespace:
    """The extractor, see docs/evaluation.md: float32 `[batch, 64]` of images in [0, 1].

    Images `[batch, 28, 28, 1]` are binarized with a seed of their content.
    """
    if not FEATURES.is_file():
        raise FileNotFoundError(f"{FEATURES}: no such file; `python -m examples.fashion features` writes it")
    classifier = keras.models.load_model(FEATURES)
    model = keras.Model(classifier.inputs, classifier.layers[-2].output)

    def features(images: np.ndarray) -> np.ndarray:
        content = np.ascontiguousarray(images, np.float32).tobytes()
        seed = int.from_bytes(hashlib.sha256(content).digest()[:8])
        return model.predict(binarized(images, seed), batch_size=256, verbose=0)

    name = f"fashion features {hashlib.sha256(FEATURES.read_bytes()).hexdigest()[:8]}"
    return types.SimpleNamespace(name=name, features=features)


def prior(workdir: Workdir, count: Count = 2000, seeds: Annotated[int, "Number of seeds.", 1] = 3) -> dict[str, Any]:
    """The Fréchet distance, in the features of `features`, of real images, reconstructions and several ways to sample.

    Mean and range over seeds, also with batch norm readjusted. Learns three reweighted priors in turn, of which the
    last stays in the run folder.
    """
    run, extractor = load_run(workdir), make_extractor()
    spec, stored = run.config.data, stored_spec(run.config.data)
    train, test = (load_split(stored, split) for split in COUNTS)
    real = statistics_of(extractor.features(batch.numpy()) for batch in evaluation_batches(train, stored, 256, 0))

    def distance(images: np.ndarray) -> float:
        rounded = np.rint(images * np.float32(255.0)) / np.float32(255.0)
        return float(frechet_distance(real, statistics_of([extractor.features(rounded)])))

    numbers = range(min(count, test.count))
    unseen, seen = (chosen_images(test, each, "test", numbers)[0] for each in (stored, spec))
    made = {"unseen real images": unseen, "their reconstructions": reconstruct_images(run.model, seen)}
    made["the top group's latents from test images"] = reconstruct_images(run.model, seen, 1)
    table = [{"images": name, "distance": distance(images)} for name, images in made.items()]
    ways = [(1.0, {}), (0.9, {}), (1.0, {"kind": "mixture"}), (1.0, {"groups": 1}), (1.0, {"groups": 2})]
    for temperature, settings in ways:
        if settings:
            learn_prior(workdir, **settings)
        model, kind = nvae_tf.load(workdir), "reweighted" if settings else "model"
        models = {"as trained": model, "readjusted": readjusted(model, temperature, prior=kind).model}
        for batch_norm, model in models.items():
            start = time.perf_counter()
            samples = [model.generate(count, temperature, seed, prior=kind) for seed in range(1, seeds + 1)]
            row = {"images": f"samples, temperature {temperature:g}", "prior": settings or "the model's"}
            row |= {"batch norm": batch_norm, "seconds": (time.perf_counter() - start) / seeds}
            distances = list(map(distance, samples))
            row |= {"distance": float(np.mean(distances)), "smallest": min(distances), "largest": max(distances)}
            table.append(row)
            results.say(str(row))
    return {"samples": count, "seeds": seeds, "rows": table}


def outliers(workdir: Workdir, count: Count = 2000, images: Images = DEBIAN) -> dict[str, Any]:
    """After nvae-calibrate, for a model of `models`: how well outlier scores separate test images from others.

    From scikit-learn's digits, test images that are turned and upside down, noise, black images, and training images.
    """
    model = nvae_tf.load(workdir)
    (training, _), (test, _) = (fashion(images, split, count) for split in COUNTS)
    digits = [Image.fromarray(np.uint8(image * 255 / 16)) for image in load_digits().images[:count]]
    # As in MNIST, 20 of 28 pixels are used.
    digits = [np.pad(digit.resize((20, 20), Image.Resampling.BICUBIC), 4) for digit in digits]
    sets = {"digits": np.expand_dims(digits, -1), "turned by 90 degrees": np.rot90(test, axes=(1, 2))}
    sets |= {"upside down": test[:, ::-1], "black": 0 * test, "training images": training}
    sets["noise"] = np.random.RandomState(0).randint(0, 256, test.shape)

    def scores(pixels: np.ndarray) -> dict[str, np.ndarray]:
        inputs = pixels / np.float32(255.0)
        inputs = binarized(inputs, 0) if model.config.likelihood == "bernoulli" else inputs
        return scores_by_name(model.outlier_score(inputs, batch_size=100).parts, model.outlier_calibration)

    own, table = scores(test), []
    for name, pixels in sets.items():
        other = scores(pixels)
        shares = {f"p at most 0.05, {score}": share for score, share in flagged(other).items()}
        table.append({"outliers": name} | aurocs(own, other) | shares)
    return {"images_of_each_kind": len(test), "auroc": table}


def restoration(
    workdir: Workdir, count: Count = 100, variants: Annotated[bool, "Measure pnp and map too."] = False
) -> dict[str, Any]:
    """The mean PSNR in dB of restorations by the model, a classical method, and the linear estimate (`linear`).

    Also how often the model beats the classical method, which has the best parameter for these images, and seconds an
    image, the tracing of the graph included. With --variants `pnp` has no steps of gradient descent, `map` 80 and none
    of PnP-HVAE. Needs scikit-image.
    """
    run = load_run(workdir)
    spec = run.config.data
    images, *_ = chosen_images(load_split(spec, "test"), spec, "test", range(count))
    training, *_ = chosen_images(load_split(spec, "train"), spec, "train", range(COUNTS["train"]))
    methods = {"model": {}}
    if variants:
        methods |= {"pnp": {"steps": 0}, "map": {"steps": 80, "pnp_steps": 0}}
    height, width = size = images.shape[1:3]
    hole = np.zeros(size, bool)
    hole[height // 3 :, width // 3 :][: round(height / 2.8), : round(width / 2.8)] = True
    tasks = {"x2": (downsampling(size, 2), 0.0), "hole": (Mask(hole), 0.0), "noise": (Mask(), 0.2)}
    tasks["blur"] = gaussian_blur(size, 1.5), 0.02
    table = []
    for task, (operator, sigma) in tasks.items():
        values, seconds = measured(operator, images, sigma, seed=1), {}
        method, classical = classical_restorations(task, values, images, hole)
        made = {"classical": classical, "linear": linear_estimate(operator, values, sigma, training)}
        for name, settings in methods.items():
            start = time.perf_counter()
            made[name] = run.model.restore(values, operator, sigma, batch_size=50, **settings).numpy()
            seconds[f"{name}, s/image"] = (time.perf_counter() - start) / count
        regions = {task: slice(None)} | ({"inside the hole": hole} if task == "hole" else {})
        for part, region in regions.items():
            decibels = {name: psnr(restored[:, region], images[:, region]) for name, restored in made.items()}
            row = {"task": part, "method": method} | {name: float(each.mean()) for name, each in decibels.items()}
            row["better, %"] = 100.0 * float(np.mean(decibels["model"] > decibels["classical"]))
            table.append(row | seconds)
    return {"images": count, "rows": table}


def linear_estimate(operator: Any, values: np.ndarray, sigma: float, training: np.ndarray) -> np.ndarray:
    """The linear estimate of images with the mean and covariance of the training images, in [0, 1]."""
    shape, flat = training.shape[1:], rows(training).astype(np.float64)
    mean, covariance = flat.mean(axis=0), np.cov(flat, rowvar=False)
    # Rows are the columns of A.
    matrix = np.reshape(operator.apply(np.eye(len(mean), dtype=np.float32).reshape(-1, *shape)), [len(mean), -1])
    cross = covariance @ matrix
    inner = matrix.T @ cross + max(sigma, 1e-3) ** 2 * np.eye(matrix.shape[1])
    residual = rows(values) - mean @ matrix
    return np.clip(mean + residual @ np.linalg.solve(inner, cross.T), 0.0, 1.0).reshape(-1, *shape)


def classical_restorations(task: str, values: np.ndarray, images: np.ndarray, hole: np.ndarray) -> tuple[str, Any]:
    """A classical method and what it makes of measurements; its parameter is the best for these images."""
    from skimage import restoration as classical

    profile = gaussian_blur((13, 13), 1.5).rows[6]
    kernel = np.outer(profile, profile)[..., np.newaxis]
    name, method, parameters = {
        "x2": ("bicubic", lambda image, _: tf.image.resize(image, hole.shape, "bicubic"), [None]),
        "hole": ("biharmonic", lambda image, _: classical.inpaint_biharmonic(image, hole, channel_axis=-1), [None]),
        "noise": (
            "total variation",
            lambda image, weight: classical.denoise_tv_chambolle(image, weight, channel_axis=-1),
            np.linspace(0.05, 0.5, 10),
        ),
        "blur": (
            "Richardson-Lucy",
            lambda image, steps: classical.richardson_lucy(np.maximum(image, 1e-6), kernel, steps),
            (5, 10, 20, 30, 50, 100),
        ),
    }[task]
    return name, tuned(method, parameters, values, images)


def tuned(method: Callable, parameters: Iterable, values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """What `method(value, parameter)` makes of values, in [0, 1], with the parameter that is best for these images."""
    made = [np.clip([method(value, parameter) for value in values], 0.0, 1.0) for parameter in parameters]
    return max(made, key=lambda candidates: psnr(candidates, images).mean())


if __name__ == "__main__":
    results.run_recipe("examples.fashion", __doc__, models, classes, features, prior, outliers, restoration)
