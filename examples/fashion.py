"""Small models of Fashion-MNIST, and what they are good for: the recipes that the docs measure, minutes on two cores.

    python -m examples.fashion models binary|gray|classes --workdir=RUN
    python -m examples.fashion classes --workdir=RUN [--guidance=W]
    python -m examples.fashion features
    python -m examples.fashion prior --workdir=RUN [--count=2000] [--seeds=3]
    python -m examples.fashion outliers --workdir=RUN [--count=2000]
    python -m examples.fashion restoration --workdir=RUN [--count=100] [--tasks=x2,hole,noise,blur] [--variants]

`models` trains on the first 9,600 training images (2,000 test images) of --images; an interrupted run goes on.

`classes`: in how many samples of a conditional model a support vector machine, trained on the same images, sees the
class that was asked for, in how many test images the true one, and in how many the model's own Bayes' rule does.

`features` trains a classifier of binarized images, the labels of all 60,000; its 64 last features stand in for
Inception's: nvae-evaluate --metrics=frechet --extractor=examples.fashion:make_extractor.

`prior`: the Fréchet distance in these features of --count samples drawn in several ways, mean and range over seeds, and
the seconds of the fastest draw. Learns three reweighted priors in turn, of which the last stays in the run folder.

`outliers`, after nvae-calibrate, for a model of `models`: nvae-evaluate --metrics=outliers on a copy of the run with
scikit-learn's digits, test images that are turned and upside down, noise, black images, and training images.

`restoration`, which needs scikit-image, for any run: the mean PSNR in dB of a hole's pixels too, how often the model
beats the classical method (with the best parameter for these images), and seconds an image, the tracing of the graph
included; `mmse` is the linear estimate with the training images' mean and covariance. With --variants `pnp` has no
steps of gradient descent, `map` 80 and none of PnP-HVAE.
"""

import argparse
import dataclasses
import functools
import hashlib
import importlib.util
import pathlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.results import say
from examples.digits import train
from nvae_tf.config import check
from nvae_tf.errors import exit_on_user_error, start_tensorflow_quietly
from nvae_tf.files import read_arrays, write_arrays
from nvae_tf.schemas import ANY

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
BATCH_SIZE = 100


def fashion(folder: str, split: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a part, uint8 `[count, 28, 28, 1]`, and their labels."""
    from nvae_tf.data import data_spec
    from nvae_tf.data.sources import load_split

    source = load_split(dataclasses.replace(data_spec("fashion_mnist"), path=folder, labels=True), split)
    return source.images[:count], np.asarray(source.labels[:count])


def models(options: argparse.Namespace) -> dict[str, Any]:
    """Trains a model; the images that it sees go into a file beside the run folder."""
    file = pathlib.Path(options.workdir).absolute().parent / "fashion_mnist_part.npz"
    if not file.exists():
        parts = {split: fashion(options.images, split, count) for split, count in COUNTS.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        labels = {f"{split}_labels": labels for split, (_, labels) in parts.items()}
        write_arrays(file, {split: images for split, (images, _) in parts.items()} | labels)
    preset, settings = KINDS[options.kind]
    return {"peak_memory_bytes": train(preset, options.workdir, _RECIPE | settings | {"data.path": file})}


def classes(options: argparse.Namespace) -> dict[str, Any]:
    from sklearn.svm import SVC

    import nvae_tf
    from nvae_tf.generation.sampling import generate_images

    def rows(images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), -1)

    (training, labels), (test, truth) = (fashion(options.images, split, count) for split, count in COUNTS.items())
    machine = SVC(C=10.0).fit(rows(training) / 255.0, labels)
    model, wanted = nvae_tf.load(options.workdir), np.arange(1000) % 10
    samples = generate_images(model, 1000, options.temperature, 1, labels=wanted, guidance=options.guidance)
    predicted = np.argmax(model.classify(test / np.float32(255.0), batch_size=BATCH_SIZE), axis=1)
    return {
        "samples_seen_as_asked": float((machine.predict(rows(samples)) == wanted).mean()),
        "test_images_seen_rightly": float((machine.predict(rows(test) / 255.0) == truth).mean()),
        "test_images_classified_by_the_model": float((predicted == truth).mean()),
    }


# Features for the Fréchet distance.


def binarized(images: np.ndarray, seed: int) -> np.ndarray:
    """Each pixel of images in [0, 1] drawn from Bernoulli(intensity)."""
    return (np.random.default_rng(seed).random(images.shape, np.float32) < images).astype(np.float32)


def features(options: argparse.Namespace) -> dict[str, Any]:
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    convolutions = [(layers.Conv2D(count, 3, activation="relu"), layers.MaxPooling2D()) for count in (32, 64)]
    dense = layers.Flatten(), layers.Dropout(0.3), layers.Dense(64, activation="relu"), layers.Dense(10)
    model = keras.Sequential([keras.Input([28, 28, 1]), *convolutions[0], *convolutions[1], *dense])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    images, labels = fashion(options.images, "train")
    for epoch in range(3):
        model.fit(binarized(images / np.float32(255.0), epoch), labels, batch_size=128, verbose=2)
    images, labels = fashion(options.images, "test")
    accuracy = model.evaluate(binarized(images / np.float32(255.0), 3), labels, verbose=0)[1]
    FEATURES.parent.mkdir(parents=True, exist_ok=True)
    model.save(FEATURES)
    return {"file": str(FEATURES), "accuracy_on_test_images": accuracy}


class FashionFeatures:
    """The extractor, see `nvae_tf.evaluation.inception.FeatureExtractor`."""

    def __init__(self):
        import keras

        check(FEATURES.is_file(), f"{FEATURES}: no such file; `python -m examples.fashion features` writes it")
        model = keras.models.load_model(FEATURES)
        self._model = keras.Model(model.inputs, model.layers[-2].output)
        self.name = f"fashion features {hashlib.sha256(FEATURES.read_bytes()).hexdigest()[:8]}"

    def features(self, images: np.ndarray) -> np.ndarray:
        """float32 `[batch, 64]` of images `[batch, 28, 28, 1]` in [0, 1], binarized with a seed of their content."""
        content = np.ascontiguousarray(images, np.float32).tobytes()
        seed = int.from_bytes(hashlib.sha256(content).digest()[:8])
        return self._model.predict(binarized(images, seed), batch_size=256, verbose=0)


make_extractor = FashionFeatures


# Ways to draw samples.


def prior(options: argparse.Namespace) -> dict[str, Any]:
    from nvae_tf.data.pipeline import chosen_images, evaluation_batches, stored_spec
    from nvae_tf.data.sources import load_split
    from nvae_tf.evaluation.batch_norm_statistics import readjusted
    from nvae_tf.evaluation.fid import frechet_distance, image_statistics
    from nvae_tf.generation.sampling import ImageGenerator, reconstruct_images
    from nvae_tf.runs.companions import prior_text
    from nvae_tf.runs.loading import load, load_run
    from nvae_tf.training.prior import learn_prior

    run, extractor, rows = load_run(options.workdir), make_extractor(), []
    model, spec, stored = run.model, run.config.data, stored_spec(run.config.data)
    train, test = (load_split(stored, split) for split in COUNTS)
    real = image_statistics((batch.numpy() for batch in evaluation_batches(train, stored, 256, 0)), extractor)

    def add(name: str, draw: Callable[[int], np.ndarray], seeds: int, **more: Any) -> None:
        """A row with the distance of the images that `draw` makes of each seed from the training images."""
        distances, seconds = [], []
        for seed in range(1, seeds + 1):
            start = time.perf_counter()
            images = draw(seed)
            seconds.append(time.perf_counter() - start)
            rounded = np.rint(images * np.float32(255.0)) / np.float32(255.0)
            distances.append(frechet_distance(real, image_statistics([rounded], extractor)))
        say(f"{name}: {statistics.mean(distances):.2f}")
        row = {"images": name, "distance": statistics.mean(distances)}
        row |= {"smallest": min(distances), "largest": max(distances)}
        rows.append(row | {"seconds": min(seconds)} | more)

    def add_samples(name: str, model: Any, temperature: float = 1.0, prior: str = "model", **more: Any) -> None:
        generator = ImageGenerator(model)
        add(name, lambda seed: generator.generate(options.count, temperature, seed, prior=prior), options.seeds, **more)

    first = range(min(options.count, test.count))
    unseen, seen = (chosen_images(test, each, "test", first)[0] for each in (stored, spec))
    add("unseen real images", lambda seed: unseen, 1)
    add("their reconstructions", lambda seed: reconstruct_images(model, seen), 1)
    add("the top group's latents from test images", lambda seed: reconstruct_images(model, seen, 1), 1)
    for temperature in (1.0, 0.9, 0.8, 0.7, 0.6):
        add_samples(f"temperature {temperature:g}", model, temperature)
    for temperature in (1.0, 0.9, 0.8, 0.7):
        name = f"readjusted batch norm, temperature {temperature:g}"
        add_samples(name, readjusted(model, temperature).model, temperature)
    for settings in ({"kind": "mixture"}, {"groups": 1}, {"groups": 2}):
        start, name = time.perf_counter(), " ".join(f"--{key}={value}" for key, value in settings.items())
        about = learn_prior(options.workdir, **settings)
        learned = {"seconds_to_learn": time.perf_counter() - start}
        learned |= {key: about.get(key) for key in ("cross_entropy", "effective_proposals")}
        say(prior_text(about))
        model = load(options.workdir)
        add_samples(name, model, prior="reweighted", **learned)
        adjusted = readjusted(model, 1.0, prior="reweighted").model
        add_samples(f"{name}, readjusted batch norm", adjusted, prior="reweighted")
    return {"samples": options.count, "seeds": options.seeds, "rows": rows}


# Outlier scores.


def digits(size: int) -> np.ndarray:
    """All digits of scikit-learn, uint8 `[count, size, size, 1]`; as in MNIST, 5 of 7 parts of the size are used."""
    from PIL import Image
    from sklearn.datasets import load_digits

    inner = round(size * 20 / 28)
    pictures = [Image.fromarray(np.uint8(eight * 255 / 16)) for eight in load_digits().images]
    inside = [np.asarray(picture.resize((inner, inner), Image.Resampling.BICUBIC)) for picture in pictures]
    before = (size - inner) // 2
    around = before, size - inner - before
    return np.pad(inside, [(0, 0), around, around])[..., np.newaxis]


def outliers(options: argparse.Namespace) -> dict[str, Any]:
    from nvae_tf.reports.evaluate import evaluate_run
    from nvae_tf.runs.run_folder import RunFolder, read_run_config

    folder = RunFolder(pathlib.Path(options.workdir))
    config = read_run_config(folder)
    check(folder.outliers_file.is_file(), f"first: nvae-calibrate --workdir={options.workdir}")
    parts = {name: array[: options.count] for name, array in read_arrays(pathlib.Path(config.data.path), ANY).items()}
    test = parts["test"]
    sets = {"digits": digits(test.shape[1])[: len(test)], "turned by 90 degrees": np.rot90(test, axes=(1, 2))}
    sets |= {"upside down": test[:, ::-1], "black": 0 * test, "training images": parts["train"]}
    sets["noise"] = np.random.RandomState(0).randint(0, 256, test.shape).astype(np.uint8)
    rows = [{"outliers": name} for name in sets]
    with tempfile.TemporaryDirectory() as place:
        # The evaluation of a part of the images must not take the place of the run's own.
        run, data, files = (pathlib.Path(place, name) for name in ("run", "data.npz", "sets"))
        shutil.copytree(options.workdir, run)
        write_arrays(data, parts)
        files.mkdir()
        for name, images in sets.items():
            np.save(files / f"{name}.npy", images)
        places = [str(files / f"{name}.npy") for name in sets]
        metrics = evaluate_run(run, ["outliers"], batch_size=BATCH_SIZE, data_path=str(data), outliers=places)
        for row, measured in zip(rows, metrics["outliers"]["sets"].values(), strict=True):
            row |= measured["auroc"] | {f"p at most 0.05, {name}": share for name, share in measured["flagged"].items()}
    return {"images_of_each_kind": len(test), "auroc": rows}


# Restoration.

CLASSICAL = {"x2": "bicubic", "hole": "biharmonic", "noise": "total variation", "blur": "Richardson-Lucy"}
_TV_WEIGHTS, _RICHARDSON_LUCY_STEPS = np.linspace(0.05, 0.5, 10), (5, 10, 20, 30, 50, 100)


def restoration(options: argparse.Namespace) -> dict[str, Any]:
    from nvae_tf.data.pipeline import chosen_images
    from nvae_tf.data.sources import load_split
    from nvae_tf.models.restoration import measured
    from nvae_tf.runs.loading import load_run

    has_classical = importlib.util.find_spec("skimage") is not None
    check(has_classical, "the classical methods need scikit-image: pip install scikit-image")
    run = load_run(options.workdir)
    spec = run.config.data
    images, *_ = chosen_images(load_split(spec, "test"), spec, "test", range(options.count))
    training, *_ = chosen_images(load_split(spec, "train"), spec, "train", range(COUNTS["train"]))
    variants = {"model": {}}
    variants |= {"pnp": {"steps": 0}, "map": {"steps": 80, "pnp_steps": 0}} if options.variants else {}
    rows = []
    for task in options.tasks:
        operator, sigma, hole = task_of(task, images.shape[1:3])
        values, seconds = measured(operator, images, sigma, seed=1), {}
        made = {"classical": classical(task, values, images), "mmse": linear_mmse(operator, values, sigma, training)}
        for name, settings in variants.items():
            start = time.perf_counter()
            made[name] = run.model.restore(values, operator, sigma, batch_size=50, **settings).numpy()
            seconds[f"{name}: s/image"] = (time.perf_counter() - start) / len(images)
        decibels = {name: psnr(candidates, images) for name, candidates in made.items()}
        row = {"task": task, "method": CLASSICAL[task]} | {key: float(each.mean()) for key, each in decibels.items()}
        row["better %"] = 100.0 * float(np.mean(decibels["model"] > decibels["classical"]))
        in_hole = [] if hole is None else [float(psnr(each, images, hole).mean()) for each in made.values()]
        rows.append(row | {f"in the hole: {', '.join(made)}": in_hole} | seconds)
    return {"images": len(images), "rows": rows}


def task_of(task: str, size: tuple[int, int]) -> tuple[Any, float, np.ndarray | None]:
    """The operator, sigma, and the pixels of a hole `[height, width]`."""
    from nvae_tf.models.restoration import Mask, downsampling, gaussian_blur

    (top, left), (height, width) = ([side // 3 for side in size], [round(side / 2.8) for side in size])
    hole = np.zeros(size, bool)
    hole[top : top + height, left : left + width] = True
    simple = {"x2": (downsampling(size, 2), 0.0), "noise": (Mask(), 0.2), "blur": (gaussian_blur(size, 1.5), 0.02)}
    return (Mask(hole), 0.0, hole) if task == "hole" else (*simple[task], None)


def psnr(made: np.ndarray, images: np.ndarray, region: np.ndarray | None = None) -> np.ndarray:
    """The peak signal-to-noise ratio of every image in dB, over all pixels or those of a region."""
    squares = np.square(made.astype(np.float64) - images)
    squares = squares if region is None else squares[:, region]
    return -10.0 * np.log10(np.maximum(squares.reshape(len(images), -1).mean(axis=1), 1e-10))


def linear_mmse(operator: Any, values: np.ndarray, sigma: float, training: np.ndarray) -> np.ndarray:
    """The linear estimate of images with the mean and covariance of the training images, in [0, 1]."""
    shape, flat = training.shape[1:], training.reshape(len(training), -1).astype(np.float64)
    mean, covariance = flat.mean(axis=0), np.cov(flat, rowvar=False)
    # Rows are the columns of A.
    matrix = np.reshape(operator.apply(np.eye(len(mean), dtype=np.float32).reshape(-1, *shape)), [len(mean), -1])
    cross = covariance @ matrix
    inner = matrix.T @ cross + max(sigma, 1e-3) ** 2 * np.eye(matrix.shape[1])
    residual = values.reshape(len(values), -1) - mean @ matrix
    return np.clip(mean + residual @ np.linalg.solve(inner, cross.T), 0.0, 1.0).reshape(-1, *shape)


def classical(task: str, values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """What the classical method makes of measurements; its parameter is the best for these images."""
    import tensorflow as tf
    from skimage import restoration

    def richardson_lucy(image: np.ndarray, steps: int) -> np.ndarray:
        kernel = np.exp(-0.5 * np.square(np.arange(-6, 7) / 1.5))
        kernel, channels = np.outer(kernel, kernel) / kernel.sum() ** 2, np.moveaxis(np.maximum(image, 1e-6), -1, 0)
        return np.stack([restoration.richardson_lucy(channel, kernel, steps) for channel in channels], axis=-1)

    hole = task_of("hole", images.shape[1:3])[2]
    method, parameters = {
        "x2": (lambda image, _: tf.image.resize(image, images.shape[1:3], "bicubic").numpy(), [None]),
        "hole": (lambda image, _: restoration.inpaint_biharmonic(image, hole, channel_axis=-1), [None]),
        "noise": (functools.partial(restoration.denoise_tv_chambolle, channel_axis=-1), _TV_WEIGHTS),
        "blur": (richardson_lucy, _RICHARDSON_LUCY_STEPS),
    }[task]
    made = [np.clip([method(image, parameter) for image in values], 0.0, 1.0) for parameter in parameters]
    return max(made, key=lambda candidates: psnr(candidates, images).mean())


RECIPES = {each.__name__: each for each in (models, classes, features, prior, outliers, restoration)}


def main(arguments: list[str] | None = None) -> None:
    parser, count = results.benchmark_parser("examples.fashion", __doc__), results.at_least
    add, debian = parser.add_argument, "/usr/share/datasets/fashion-mnist"
    add("recipe", choices=RECIPES)
    add("kind", nargs="?", choices=KINDS, help="models: which")
    add("--workdir", metavar="RUN", help="run folder of the model")
    add("--images", default=debian, help="where the data set is (where Debian's dataset-fashion-mnist has it)")
    add("--temperature", type=float, default=1.0, help="classes: of the samples (1)")
    add("--guidance", type=float, default=1.0, help="classes: of the samples (1)")
    add("--count", type=count(10), help="how many images (2000; restoration: 100)")
    add("--seeds", type=count(1), default=3, help="prior: how often samples are drawn (3)")
    add("--tasks", type=results.names(CLASSICAL), default=list(CLASSICAL), help="restoration: some of the tasks")
    add("--variants", action="store_true", help="restoration: other settings of the method besides")
    options = parser.parse_args(arguments)
    if options.recipe != "features" and not options.workdir:
        parser.error(f"{options.recipe}: needs --workdir, the run folder of the model")
    if (options.recipe == "models") != bool(options.kind):
        parser.error(f"models: needs a kind, the others none: {', '.join(KINDS)}")
    options.count = options.count or (100 if options.recipe == "restoration" else 2000)
    start_tensorflow_quietly()
    with exit_on_user_error():
        results.run(options, RECIPES[options.recipe])


if __name__ == "__main__":
    main()
