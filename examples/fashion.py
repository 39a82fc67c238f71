"""What the bundled model of Fashion-MNIST, or one of yours, is good for: the recipes that the docs measure.

    python -m examples.fashion features
    python -m examples.fashion tell_classes --output=RUN [--workdir=RUN] [--steps=3600]
    python -m examples.fashion outliers [--workdir=RUN] [--count=2000]
    python -m examples.fashion restoration [--workdir=RUN] [--count=100]

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

import nvae_tf
from benchmarks import results
from examples.digits import Count, rows
from nvae_tf.command_line import RUN_HELP
from nvae_tf.data import data_spec
from nvae_tf.data.sources import load_split
from nvae_tf.evaluation.denoising import psnr
from nvae_tf.evaluation.outliers import aurocs, flagged, scores_by_name
from nvae_tf.files import check_new_folder
from nvae_tf.models.restoration import Mask, downsampling, gaussian_blur, measured
from nvae_tf.runs.loading import load_run

DEBIAN = "/usr/share/datasets/fashion-mnist"
COUNTS = {"train": 9600, "test": 2000}
FEATURES = pathlib.Path("runs/fashion_features.keras")
Images = Annotated[str, "Folder of Fashion-MNIST's four files."]
Run = Annotated[str, RUN_HELP]
Output = Annotated[str, "The run folder to write."]
Steps = Annotated[int, "Steps of 32 images and 64 pairs of classes.", 1]
SYMMETRIC = [0, 1, 2, 3, 4, 6, 8]  # classes whose mirror images are of the class too


def fashion(folder: str, split: str, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a part, uint8 `[count, 28, 28, 1]`, and their labels."""
    source = load_split(dataclasses.replace(data_spec("fashion_mnist"), path=folder, labels=True), split)
    return source.images[:count], np.asarray(source.labels[:count])


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


def tell_classes(
    output: Output, workdir: Run = "fashion", steps: Steps = 3600, images: Images = DEBIAN
) -> dict[str, Any]:
    """Trains a model with classes further, so that `classify` names the classes of more images rightly.

    To the loss of training it adds -log p(class | image) by Bayes' rule over the bounds of two classes, the image's
    own and another. A pair of classes is drawn as often as the model takes the one for the other, then an image of it.
    """
    check_new_folder(pathlib.Path(output), f"--output={output}")
    run = load_run(workdir)
    model, generator = run.model, np.random.default_rng(0)
    pixels, classes = fashion(images, "train")
    pixels, classes = pixels / np.float32(255.0), classes.astype(np.int32)
    mistaken = np.full([10, 10], 0.5)  # how often each class is taken for each other one
    np.add.at(mistaken, classes[:2000], model.classify(pixels[:2000], samples=4, batch_size=100).numpy())
    np.fill_diagonal(mistaken, 0.0)
    mistaken = (mistaken + mistaken.T).ravel()
    images_of = [np.flatnonzero(classes == label) for label in range(10)]
    model.compile(optimizer=nvae_tf.NVAEAdamax(keras.optimizers.schedules.CosineDecay(2e-3, steps, alpha=0.02)))

    def drawn(labels: np.ndarray) -> np.ndarray:
        images = pixels[[generator.choice(images_of[label]) for label in labels]]
        mirrored = np.isin(labels, SYMMETRIC) & (generator.random(len(labels)) < 0.5)
        return np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)

    @tf.function(autograph=False)
    def train_step(
        images: tf.Tensor, labels: tf.Tensor, pair_images: tf.Tensor, pairs: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        step = model.objective.total_steps + model.optimizer.iterations  # after the warm-up of the KL
        with tf.GradientTape() as tape:
            loss = model.loss(images, labels, step)
            # As `classify` does it: the statistics of a batch would tell that all its classes are right, or wrong.
            scores = [model.score(pair_images, seed=step, labels=pairs[:, i], per_group=True) for i in (0, 1)]
            cross_entropy = tf.reduce_mean(tf.nn.softplus(scores[0].nelbo - scores[1].nelbo))  # with the same draws
            total = loss.total + 3.0 * cross_entropy
        weights = model.trainable_weights
        model.optimizer.apply(tape.gradient(total, weights, unconnected_gradients="zero"), weights)
        for variable, value in loss.updates:
            variable.assign(value)
        return loss.total, cross_entropy

    for step in range(steps):
        labels = generator.integers(10, size=32, dtype=np.int32)
        pairs = np.stack(np.divmod(generator.choice(100, size=64, p=mistaken / mistaken.sum()), 10), axis=1)
        pairs = pairs.astype(np.int32)
        loss, cross_entropy = train_step(drawn(labels), labels, drawn(pairs[:, 0]), pairs)
        if step % 100 == 99:
            print(f"step {step + 1:,}: loss {loss:,.1f}, cross-entropy {cross_entropy:.3f}", flush=True)
    model.optimizer.iterations.assign_add(run.step)  # the checkpoint's number counts the steps of both trainings
    nvae_tf.save(model, output, run.config)
    return {"loss": float(loss), "cross_entropy": float(cross_entropy)}


def outliers(workdir: Run = "fashion", count: Count = 2000, images: Images = DEBIAN) -> dict[str, Any]:
    """How well the outlier scores of a model, after nvae-calibrate, separate test images from others.

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
        scored = model.outlier_score(pixels / np.float32(255.0), batch_size=100)
        return scores_by_name(scored.parts, model.outlier_calibration)

    own, table = scores(test), []
    for name, pixels in sets.items():
        other = scores(pixels)
        shares = {f"p at most 0.05, {score}": share for score, share in flagged(other).items()}
        table.append({"outliers": name} | aurocs(own, other) | shares)
    return {"images_of_each_kind": len(test), "auroc": table}


def restoration(workdir: Run = "fashion", count: Count = 100, images: Images = DEBIAN) -> dict[str, Any]:
    """The mean PSNR in dB of restorations by the model, a classical method, and the linear estimate (`linear`).

    Also how often the model beats the classical method, which has the best parameter for these images, and seconds an
    image, the tracing of the graph included. Needs scikit-image.
    """
    model, parts = nvae_tf.load(workdir), (("test", count), ("train", COUNTS["train"]))
    true, training = (fashion(images, split, number)[0] / np.float32(255.0) for split, number in parts)
    height, width = size = true.shape[1:3]
    hole = np.zeros(size, bool)
    hole[height // 3 :, width // 3 :][: round(height / 2.8), : round(width / 2.8)] = True
    tasks = {"x2": (downsampling(size, 2), 0.0), "hole": (Mask(hole), 0.0), "noise": (Mask(), 0.2)}
    tasks["blur"] = gaussian_blur(size, 1.5), 0.02
    table = []
    for task, (operator, sigma) in tasks.items():
        values = measured(operator, true, sigma, seed=1)
        method, classical = classical_restorations(task, values, true, hole)
        made = {"classical": classical, "linear": linear_estimate(operator, values, sigma, training)}
        start = time.perf_counter()
        made["model"] = model.restore(values, operator, sigma, batch_size=50).numpy()
        seconds = (time.perf_counter() - start) / count
        regions = {task: slice(None)} | ({"inside the hole": hole} if task == "hole" else {})
        for part, region in regions.items():
            decibels = {name: psnr(restored[:, region], true[:, region]) for name, restored in made.items()}
            row = {"task": part, "method": method} | {name: float(each.mean()) for name, each in decibels.items()}
            row["better, %"] = 100.0 * float(np.mean(decibels["model"] > decibels["classical"]))
            table.append(row | {"seconds_an_image": seconds})
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
    results.run_recipe("examples.fashion", __doc__, features, tell_classes, outliers, restoration)
