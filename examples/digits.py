"""How good models of the digits are: the recipes that the docs measure.

    python -m examples.digits quality --workdir=runs/demo [--temperature=T] [--guidance=W] [--count=1000]
    python -m examples.digits mixture_of_bernoullis [--components=120]
    python -m examples.digits kl_control [--steps=400] [--batch_size=64] [--figure=FILE.png]

`python -m examples.digits RECIPE --help` says what a recipe measures.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import logsumexp
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

import nvae_tf
from benchmarks import results
from benchmarks.workloads import run_python
from nvae_tf.data import data_spec
from nvae_tf.data.sources import load_split
from nvae_tf.generation.sampling import generate_images, latent_direction, move_images
from nvae_tf.reports.evaluate import evaluate_run

SETTINGS = {"kl_final_weight": (0.25, 0.5, 1.0, 2.0, 4.0), "free_nats": (0.0, 4.0, 8.0, 16.0)}
_DEFAULTS = {"kl_final_weight": 1.0, "free_nats": 0.0}
CLASSES = ((3, 8), (1, 7), (4, 9), (0, 6))
STRENGTHS = (0.0, 1.0, 1.5, 2.0)


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Bitmaps `[count, 16, 16, 1]` of 0.0 and 1.0, and labels, of a part of the digits."""
    source = load_split(data_spec("digits"), split)
    return (source.images // 255).astype(np.float32), source.labels


def classifier() -> Any:
    """A support vector machine with calibrated probabilities, trained on the training digits."""
    images, labels = digits("train")
    return CalibratedClassifierCV(SVC(C=10.0, gamma="scale"), ensemble=False, cv=5).fit(rows(images), labels)


def rows(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def class_samples(model: Any, count: int, temperature: float, guidance: float, seed: int = 1) -> tuple[np.ndarray, Any]:
    """Samples of a model's classes in turn, and these classes; None where it has none."""
    labels = np.arange(count) % model.config.num_classes if model.config.num_classes else None
    return generate_images(model, count, temperature, seed, labels=labels, guidance=guidance), labels


def accuracy(model: Any, images: np.ndarray, truth: np.ndarray) -> float:
    """In how many images a conditional model sees the true class by Bayes' rule."""
    return float((np.argmax(model.classify(images, batch_size=100), axis=1) == truth).mean())


def quality(
    workdir: str, temperature: float = 1.0, guidance: float = 1.0, count: int = 1000, seed: int = 1
) -> dict[str, Any]:
    """How sure a classifier of real digits is of samples (its mean largest class probability), and of test digits.

    Samples are the likelihood's mean images, cut at one half. For a conditional model (data.labels) all classes are
    asked for in turn: `agreement` is how often the classifier sees the one that was asked for, `accuracy_of_model` how
    often the model's own Bayes' rule knows a test digit.
    """
    model, machine, (images, truth) = nvae_tf.load(workdir), classifier(), digits("test")
    samples, labels = class_samples(model, count, temperature, guidance, seed)
    on_real, on_samples = machine.predict_proba(rows(images)), machine.predict_proba(rows(samples) > 0.5)
    measured = {
        "temperature": temperature,
        "accuracy_on_real": float((on_real.argmax(axis=1) == truth).mean()),
        "confidence_on_real": float(on_real.max(axis=1).mean()),
        "confidence_on_samples": float(on_samples.max(axis=1).mean()),
        "samples_per_class": np.bincount(on_samples.argmax(axis=1), minlength=10).tolist(),
    }
    if labels is not None:
        measured["agreement"] = float((on_samples.argmax(axis=1) == labels).mean())
        measured["accuracy_of_model"] = accuracy(model, images, truth)
    return measured


def mixture_of_bernoullis(components: int = 120) -> dict[str, Any]:
    """The baseline of the demo: exact negative log-likelihood of the test digits, in nats per image.

    Of 20 to 320 components a held-out fifth of the training part likes 120 best.
    """
    training, test = (rows(digits(split)[0]) for split in ("train", "test"))
    return {"components": components, "test_nats": float(fitted_mixture(training, components)(test).mean())}


def fitted_mixture(images: np.ndarray, components: int, seed: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """Fits `p(x) = sum_k weight_k prod_d Bernoulli(x_d; mean_kd)` to 0/1 images `[count, pixels]` by 60 steps of EM.

    It starts from images drawn at random, with half a count of each value in every pixel. Returns a function that gives
    -log p of each image, in nats.
    """

    def log_joint(images: np.ndarray) -> np.ndarray:
        return images @ np.log(means).T + (1 - images) @ np.log1p(-means).T + log_weights

    starts = np.random.RandomState(seed).choice(len(images), components, replace=False)
    means, log_weights = 0.25 + 0.5 * images[starts], np.full(components, -np.log(components), np.float32)
    for _ in range(60):
        joint = log_joint(images)
        responsibilities = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
        counts = responsibilities.sum(axis=0, dtype=np.float64).astype(np.float32)
        means = (responsibilities.T @ images + 0.5) / (counts + 1.0)[:, None]
        log_weights = np.log(counts + 1.0) - np.log(counts.sum() + components)
    return lambda images: -logsumexp(log_joint(images), axis=1)


def kl_control(steps: int = 400, batch_size: int = 64, figure: str = "") -> dict[str, Any]:
    """Bounds and active units of models that are trained with several objective.kl_final_weight and free_nats.

    The model of weight 1 and no free nats also moves test digits along the difference of two classes' mean latents;
    how often the classifier then sees the other class, at each strength.
    """
    models, seen = [], {}
    objectives = [_DEFAULTS | {name: value} for name, values in SETTINGS.items() for value in values]
    objectives.remove(_DEFAULTS)  # which are in both
    for objective in objectives:
        with tempfile.TemporaryDirectory() as folder:
            settings = {"train.steps": steps, "train.batch_size": batch_size}
            train("digits", folder, settings | {f"objective.{name}": value for name, value in objective.items()})
            evaluation = evaluate_run(folder, ["elbo", "latents"])
            seen = seen_after_moving(nvae_tf.load(folder)) if objective == _DEFAULTS else seen
        row = objective | {name: evaluation[name] for name in ("kl_nats", "reconstruction_nats", "nelbo_nats")}
        row["active_units"] = evaluation["latents"]["active_units"]
        row["reconstruction_with_a_tenth_nats"] = evaluation["latents"]["active_only"]["reconstruction_nats"]
        models.append(row)
    if figure:
        draw(models, figure)
    return {"rows": models, "strengths": list(STRENGTHS), "seen_after_moving": seen}


def seen_after_moving(model: Any) -> dict[str, list[float]]:
    """For pairs of classes: which part of the first's test digits the machine sees as the second, at each strength."""
    machine, (images, labels), (test_images, test_labels) = classifier(), digits("train"), digits("test")
    seen = {}
    for start, target in CLASSES:
        direction = latent_direction(model, images[labels == target], images[labels == start])
        moved = move_images(model, test_images[test_labels == start], direction, STRENGTHS, mean=True)
        predicted = machine.predict(moved.reshape(-1, 256) > 0.5).reshape(moved.shape[:2])
        seen[f"{start} to {target}"] = (predicted == target).mean(axis=0).tolist()
    return seen


def train(preset: str, workdir: str, settings: dict[str, Any]) -> int:
    """Runs `nvae-train` with a preset and what else is set; gives its peak memory in bytes."""
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    return run_python("train.main", f"--config={preset}", f"--workdir={workdir}", *flags)


def draw(models: list[dict[str, float]], file: str) -> None:
    """Draws KL, reconstruction and active units over each of the settings."""
    from matplotlib.figure import Figure

    figure = Figure((8.0, 3.2), 100, layout="constrained")
    for axes, (name, values) in zip(figure.subplots(1, 2), SETTINGS.items(), strict=True):
        wanted = [(_DEFAULTS | {name: value}).items() for value in values]
        along = [next(row for row in models if settings <= row.items()) for settings in wanted]
        for key, label, color in (("kl_nats", "KL", "#0a63c4"), ("reconstruction_nats", "reconstruction", "#c2410c")):
            axes.plot([row[key] for row in along], "o-", color=color, label=label)
        axes.set(xlabel=f"objective.{name}", ylabel="nats per image", ylim=(0.0, None))
        axes.set_xticks(range(len(values)), map("{:g}".format, values))
        units = axes.twinx()
        units.plot([row["active_units"] for row in along], "s--", color="#4b5563", label="active units")
        units.set(ylabel="active units", ylim=(0, 1.1 * max(row["active_units"] for row in models)))
    figure.legend(handles=[*axes.lines, *units.lines], loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file)


if __name__ == "__main__":
    results.run_recipe("examples.digits", __doc__, quality, mixture_of_bernoullis, kl_control)
