"""Small models of Fashion-MNIST, and what they are good for: the recipes that the docs measure, minutes on two cores.

    python -m benchmarks.fashion models binary|gray|classes --workdir=RUN
    python -m benchmarks.fashion classes --workdir=RUN [--guidance=W]
    python -m benchmarks.fashion features
    python -m benchmarks.fashion prior --workdir=RUN [--samples=2000] [--seeds=3]
    python -m benchmarks.fashion outliers --workdir=RUN [--count=2000] [--llr_images=300]
    python -m benchmarks.fashion restoration --workdir=RUN [--count=100] [--tasks=x2,hole,noise,blur] [--variants]

`models` trains on the first 9,600 training images (2,000 test images) of --images; an interrupted run goes on.

`classes`: in how many samples of a conditional model a support vector machine, trained on the same images, sees the
class that was asked for, in how many test images the true one, and in how many the model's own Bayes' rule does.

`features` trains a classifier of binarized images, the labels of all 60,000; its 64 last features stand in for
Inception's: nvae-evaluate --metrics=frechet --extractor=benchmarks.fashion:make_extractor. It is written to
runs/fashion_features.keras, or where the environment variable FASHION_FEATURES says.

`prior`: the Fréchet distance in these features of samples drawn in several ways, mean and range over seeds. Learns
three reweighted priors in turn, of which the last stays in the run folder, and measures how long that takes and how
much longer sampling, in turns with the model's own prior.

`outliers`, after nvae-calibrate, for any run of gray images: the area under the ROC curve of each score of test images
against scikit-learn's digits, test images that are turned and upside down, noise, and black images; and the share of
images with a p-value of at most 0.05.

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
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks import results
from benchmarks.results import say
from benchmarks.workloads import run_python
from nvae_tf.config import check
from nvae_tf.errors import exit_on_user_error, start_tensorflow_quietly
from nvae_tf.files import atomic_file, write_arrays

IMAGES = "/usr/share/datasets/fashion-mnist"  # of Debian's package dataset-fashion-mnist
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
LLR_SAMPLES, BATCH_SIZE = 20, 100


def fashion(folder: str, split: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a part, uint8 `[count, 28, 28, 1]`, and their labels."""
    from nvae_tf.data import data_spec
    from nvae_tf.data.sources import load_split

    source = load_split(dataclasses.replace(data_spec("fashion_mnist"), path=folder, labels=True), split)
    return source.images[:count], np.asarray(source.labels[:count])


def models(options: argparse.Namespace) -> None:
    """Trains a model; the images that it sees go into a file beside the run folder."""
    file = pathlib.Path(options.workdir).absolute().parent / "fashion_mnist_part.npz"
    if not file.exists():
        parts = {split: fashion(options.images, split, count) for split, count in COUNTS.items()}
        file.parent.mkdir(parents=True, exist_ok=True)
        labels = {f"{split}_labels": labels for split, (_, labels) in parts.items()}
        write_arrays(file, {split: images for split, (images, _) in parts.items()} | labels)
    preset, settings = KINDS[options.kind]
    flags = [f"--config.{name}={value}" for name, value in (_RECIPE | settings | {"data.path": file}).items()]
    run_python("train.main", f"--config={preset}", f"--workdir={options.workdir}", *flags)


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
    found = np.argmax(model.classify(test / np.float32(255.0), batch_size=BATCH_SIZE), axis=1)
    return {
        "samples_seen_as_asked": float((machine.predict(rows(samples)) == wanted).mean()),
        "test_images_seen_rightly": float((machine.predict(rows(test) / 255.0) == truth).mean()),
        "test_images_classified_by_the_model": float((found == truth).mean()),
    }


# Features for the Fréchet distance.


def features_file() -> pathlib.Path:
    return pathlib.Path(os.environ.get("FASHION_FEATURES", "runs/fashion_features.keras"))


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
    features_file().parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(features_file()) as partial:
        # Keras wants its ending.
        model.save(partial.with_suffix(".keras"))
        partial.with_suffix(".keras").replace(partial)
    return {"file": str(features_file()), "accuracy_on_test_images": accuracy}


class FashionFeatures:
    """The extractor, see `nvae_tf.evaluation.inception.FeatureExtractor`."""

    def __init__(self, file: pathlib.Path):
        import keras

        check(file.is_file(), f"{file}: no such file; `python -m benchmarks.fashion features` writes it")
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


# Ways to draw samples.


def prior(options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for row in rows_of_prior(options):
        say(f"{row['images']}: {row['distance']:.2f}")
        rows.append(row)
    return {"samples": options.samples, "seeds": options.seeds, "rows": rows}


def rows_of_prior(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Of real images, of reconstructions, and of each way to draw: the Fréchet distance from the training images."""
    from nvae_tf.data.pipeline import chosen_images, evaluation_batches, stored_spec
    from nvae_tf.data.sources import load_split
    from nvae_tf.evaluation.batch_norm_statistics import readjusted
    from nvae_tf.evaluation.fid import frechet_distance, image_statistics
    from nvae_tf.generation.sampling import ImageGenerator, reconstruct_images
    from nvae_tf.training.companions import prior_text
    from nvae_tf.training.loading import load, load_run
    from nvae_tf.training.prior import learn_prior

    run, extractor = load_run(options.workdir), make_extractor()
    model, spec, stored = run.model, run.config.data, stored_spec(run.config.data)
    train, test = (load_split(stored, split) for split in COUNTS)
    real = image_statistics((batch.numpy() for batch in evaluation_batches(train, stored, 256, 0)), extractor)

    def row(name: str, images: np.ndarray) -> dict[str, Any]:
        rounded = np.rint(images * np.float32(255.0)) / np.float32(255.0)
        return {"images": name, "distance": frechet_distance(real, image_statistics([rounded], extractor))}

    def of_samples(name: str, model: Any, temperature: float = 1.0, prior: str = "model") -> dict[str, Any]:
        generator, seeds = ImageGenerator(model), range(1, options.seeds + 1)
        drawn = (generator.generate(options.samples, temperature, seed, prior=prior) for seed in seeds)
        found = [row(name, images)["distance"] for images in drawn]
        return {"images": name, "distance": statistics.mean(found), "smallest": min(found), "largest": max(found)}

    yield row("unseen real images", chosen_images(test, stored, "test", at_most=options.samples)[0])
    seen, _ = chosen_images(test, spec, "test", at_most=options.samples)
    yield row("their reconstructions", reconstruct_images(model, seen))
    yield row("the top group's latents from test images", reconstruct_images(model, seen, 1))
    for temperature in (1.0, 0.9, 0.8, 0.7, 0.6):
        yield of_samples(f"temperature {temperature:g}", model, temperature)
    for temperature in (1.0, 0.9, 0.8, 0.7):
        name = f"readjusted batch norm, temperature {temperature:g}"
        yield of_samples(name, readjusted(model, temperature).model, temperature)
    for settings in ({"kind": "mixture"}, {"groups": 1}, {"groups": 2}):
        start, name = time.perf_counter(), " ".join(f"--{key}={value}" for key, value in settings.items())
        about = learn_prior(options.workdir, **settings)
        learned = {"seconds_to_learn": time.perf_counter() - start}
        say(prior_text(about))
        model = load(options.workdir)
        learned |= {key: about.get(key) for key in ("cross_entropy", "effective_proposals")}
        yield of_samples(name, model, prior="reweighted") | learned | {"time_ratio": time_ratio(model)}
        name = f"{name}, readjusted batch norm"
        yield of_samples(name, readjusted(model, 1.0, prior="reweighted").model, prior="reweighted")


def time_ratio(model: Any) -> float:
    """How many times as long samples of the reweighted prior take: the median over turns."""
    from nvae_tf.generation.sampling import generate_images

    ways = {prior: functools.partial(generate_images, model, 160, prior=prior) for prior in ("model", "reweighted")}
    seconds = results.take_turns(ways, rounds=7)
    return statistics.median(np.divide(seconds["reweighted"], seconds["model"]))


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
    import tensorflow as tf

    from nvae_tf.data.pipeline import evaluation_batches, images_alone
    from nvae_tf.data.sources import ArraySource, load_split
    from nvae_tf.evaluation.outliers import aurocs, flagged, scores_of
    from nvae_tf.training.loading import load_run

    run = load_run(options.workdir)
    model, spec, calibration = run.model, images_alone(run.config.data), run.model.outlier_calibration
    check(hasattr(calibration, "mean"), calibration or f"first: nvae-calibrate --workdir={options.workdir}")
    sources = [load_split(spec, split) for split in COUNTS]
    spread = [np.linspace(0, part.count - 1, min(options.count, part.count)).astype(np.int32) for part in sources]
    training, test = (
        part.reader()(tf.constant(numbers)).numpy() for part, numbers in zip(sources, spread, strict=True)
    )
    sets = {"test": test, "training": training, "digits": digits(test.shape[1])[: len(test)]}
    sets |= {"turned by 90 degrees": np.rot90(test, axes=(1, 2)), "upside down": test[:, ::-1]}
    sets |= {"noise": np.random.RandomState(0).randint(0, 256, test.shape).astype(np.uint8), "black": 0 * test}
    ratios, scores = likelihood_ratios(model) if options.llr_images else lambda images: {}, {}
    for name, images in sets.items():
        # Binarized, if the run's own images are.
        (seen,) = evaluation_batches(ArraySource(np.ascontiguousarray(images)), spec, len(images), seed=0)
        found = model.outlier_score(seen, batch_size=BATCH_SIZE).parts
        arrays = {"reconstruction": found.reconstruction.numpy(), "kl": found.kl.numpy()}
        scores[name] = scores_of(arrays, calibration) | ratios(seen[: options.llr_images])
        say(f"{name}: {len(images)} images")
    areas = [{"outliers": name} | aurocs(scores["test"], scores[name]) for name in list(scores)[2:]]
    areas.append({"outliers": "test images, among training images"} | aurocs(scores["training"], scores["test"]))
    shares = [{"images": name} | flagged(of_set) for name, of_set in scores.items()]
    return {"images_of_each_kind": len(test), "auroc": areas, "p_value_of_at_most_0.05": shares}


def likelihood_ratios(model: Any) -> Callable[[Any], dict[str, np.ndarray]]:
    """A function that gives LLR>k of images by its name, for k of 1, 2, 4 ... latent groups."""
    import tensorflow as tf

    from nvae_tf.evaluation.outliers import likelihood_ratio
    from nvae_tf.models.latents import image_seeds

    powers = [2**power for power in range(20) if 2**power < model.plan.num_groups]
    # Traced once for each k.
    ratio = tf.function(functools.partial(likelihood_ratio, model), autograph=False, reduce_retracing=True)

    def of_images(images: Any) -> dict[str, np.ndarray]:
        rows = images, image_seeds(0, len(images))
        batches = [[row[first : first + BATCH_SIZE] for row in rows] for first in range(0, len(images), BATCH_SIZE)]
        return {f"LLR>{k}": np.concatenate([ratio(*batch, k, LLR_SAMPLES) for batch in batches]) for k in powers}

    return of_images


# Restoration.

CLASSICAL = {"x2": "bicubic", "hole": "biharmonic", "noise": "total variation", "blur": "Richardson-Lucy"}
_TV_WEIGHTS, _RICHARDSON_LUCY_STEPS = np.linspace(0.05, 0.5, 10), (5, 10, 20, 30, 50, 100)


def restoration(options: argparse.Namespace) -> dict[str, Any]:
    from nvae_tf.data.pipeline import chosen_images
    from nvae_tf.data.sources import load_split
    from nvae_tf.models.restoration import measured
    from nvae_tf.training.loading import load_run, spec_to_read

    has_classical = importlib.util.find_spec("skimage") is not None
    check(has_classical, "the classical methods need scikit-image: pip install scikit-image")
    run = load_run(options.workdir)
    spec = spec_to_read(run.config, options.data_path)
    images, _ = chosen_images(load_split(spec, "test"), spec, "test", count=options.count)
    training, _ = chosen_images(load_split(spec, "train"), spec, "train", at_most=options.training_images)
    variants = {"model": {}}
    variants |= {"pnp": {"steps": 0}, "map": {"steps": 80, "pnp_steps": 0}} if options.variants else {}
    rows = []
    for task in options.tasks:
        operator, sigma, hole = task_of(task, images.shape[1:3])
        values, seconds = measured(operator, images, sigma, seed=1), {}
        made = {"classical": classical(task, values, images), "mmse": linear_mmse(operator, values, sigma, training)}
        for name, settings in variants.items():
            start = time.perf_counter()
            made[name] = run.model.restore(values, operator, sigma, batch_size=options.batch_size, **settings).numpy()
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
    """Of every image, in dB, of all pixels or those of a region."""
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


def main(arguments: list[str] | None = None) -> None:
    parser, count = results.benchmark_parser("fashion", __doc__), results.at_least
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(measure: Callable, *flags: tuple[str, dict[str, Any]]) -> None:
        of_command = commands.add_parser(measure.__name__, allow_abbrev=False)
        of_command.set_defaults(measure=measure)
        of_command.add_argument("--json", type=results.json_file, metavar="FILE", default=argparse.SUPPRESS)
        for name, settings in flags:
            of_command.add_argument(name, **settings)

    workdir, data_set = ("--workdir", {"required": True}), ("--images", {"default": IMAGES})
    of_samples = [(f"--{name}", {"type": float, "default": 1.0}) for name in ("temperature", "guidance")]
    command(models, ("kind", {"choices": KINDS}), workdir, data_set)
    command(classes, workdir, data_set, *of_samples)
    command(features, data_set)

    def number(name: str, default: int, least: int = 1) -> tuple[str, dict[str, Any]]:
        return f"--{name}", {"type": count(least), "default": default}

    command(prior, workdir, number("samples", 2000, 2), number("seeds", 3))
    command(outliers, workdir, number("count", 2000, 10), number("llr_images", 300, 0))
    some = ("--tasks", {"type": results.names(CLASSICAL), "default": list(CLASSICAL)})
    flags = some, ("--data_path", {}), ("--variants", {"action": "store_true"})
    command(
        restoration, workdir, *flags, number("count", 100), number("training_images", 9600, 2), number("batch_size", 50)
    )
    options = parser.parse_args(arguments)
    with exit_on_user_error():
        if options.measure is models:
            models(options)
        else:
            start_tensorflow_quietly()
            results.run(options, options.measure)


if __name__ == "__main__":
    main()
