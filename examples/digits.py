"""How good models of the digits are: the recipes that the docs measure.

    python -m examples.digits quality --workdir=runs/demo [--temperature=T] [--guidance=W] [--count=1000]
    python -m examples.digits mixture_of_bernoullis [--components=120]

`python -m examples.digits RECIPE --help` says what a recipe measures.
"""

from collections.abc import Callable
from typing import Annotated, Any

import numpy as np
from scipy.special import logsumexp
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

import nvae_tf
from benchmarks import results
from nvae_tf.data import data_spec
from nvae_tf.data.sources import load_split
from nvae_tf.generation.sampling import generate_images

# The flags of recipes.
Workdir = Annotated[str, "Run folder of nvae-train."]
Temperature = Annotated[float, "What multiplies the priors' sigma."]
Guidance = Annotated[float, "Classifier-free guidance of models with classes."]
Count = Annotated[int, "Number of images.", 1]
Seed = Annotated[int, "Of the samples.", 0]


def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Bitmaps `[count, 16, 16, 1]` of 0.0 and 1.0, and labels, of a part of the digits."""
    source = load_split(data_spec("digits"), split)
    return (source.images // 255).astype(np.float32), source.labels


def rows(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


def quality(
    workdir: Workdir, temperature: Temperature = 1.0, guidance: Guidance = 1.0, count: Count = 1000, seed: Seed = 1
) -> dict[str, Any]:
    """How sure a classifier of real digits is of samples (its mean largest class probability), and of test digits.

    Samples are the likelihood's mean images, cut at one half. For a conditional model (data.labels) all classes are
    asked for in turn: `agreement` is how often the classifier sees the one that was asked for, `accuracy_of_model` how
    often the model's own Bayes' rule knows a test digit.
    """
    model, (training, training_labels), (images, truth) = nvae_tf.load(workdir), digits("train"), digits("test")
    machine = CalibratedClassifierCV(SVC(C=10.0, gamma="scale"), ensemble=False, cv=5)
    machine.fit(rows(training), training_labels)
    labels = np.arange(count) % model.config.num_classes if model.config.num_classes else None
    samples = generate_images(model, count, temperature, seed, labels=labels, guidance=guidance)
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
        classified = np.argmax(model.classify(images, batch_size=100), axis=1)
        measured["accuracy_of_model"] = float((classified == truth).mean())
    return measured


def mixture_of_bernoullis(components: Annotated[int, "Number of components.", 1] = 120) -> dict[str, Any]:
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


if __name__ == "__main__":
    results.run_recipe("examples.digits", __doc__, quality, mixture_of_bernoullis)
