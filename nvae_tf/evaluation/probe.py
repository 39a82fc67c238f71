"""Probes: how well simple classifiers tell classes apart by frozen features, with few labels and with many."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nvae_tf.data.pipeline import images_alone
from nvae_tf.data.sources import ImageSource, load_split
from nvae_tf.errors import wrap_read_errors
from nvae_tf.evaluation.task import EvaluationTask

LABELS, SPLITS = (50, 200, 500), 5
_MOST_IMAGES, _MOST_FEATURES, _COMPONENTS = 10_000, 16_384, 50


def load_probe(task: EvaluationTask) -> list[ImageSource]:
    """The training and the test images with their labels; ValueError where they have none, or another part is asked."""
    if task.split != "test":
        raise ValueError("--metrics=probe: it learns from the training part; leave --split=train out")
    spec = dataclasses.replace(task.spec, labels=True)  # the model may do without them
    with wrap_read_errors("--metrics=probe: it needs images with classes (", ")"):
        return [load_split(spec, part, task.status.report()) for part in ("train", "test")]


def measure_probe(task: EvaluationTask, sources: Sequence[ImageSource]) -> dict[str, Any]:
    """Accuracies on the test images, with labels of some training images, drawn at random, and of all of them.

    The classifiers see the model's features, the pixels, or 50 principal components of the pixels. With some labels an
    accuracy is the mean over five draws of the labels.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from threadpoolctl import threadpool_limits

    kinds = _representations(task, sources)
    count, tested = (len(part) for part in kinds["pixels"])
    labels, test_labels = sources[0].labels[:count], sources[1].labels[:tested]
    probes = {"logistic regression": LogisticRegression(max_iter=1000), "nearest neighbors": KNeighborsClassifier()}
    counts = [*(number for number in LABELS if number < count), count]
    accuracy: dict[str, dict[str, list[float]]] = {probe: {name: [] for name in kinds} for probe in probes}
    for number, probe, (name, (train, test)) in itertools.product(counts, probes, kinds.items()):
        # With all labels the draws are the same.
        seeds = range(1 if number == count else SPLITS)
        draws = [np.random.default_rng(seed).permutation(count)[:number] for seed in seeds]
        with threadpool_limits(1):  # threads of a BLAS wait in loops: with two, a fit took 2 to 25 times as long
            scores = [probes[probe].fit(train[rows], labels[rows]).score(test, test_labels) for rows in draws]
        accuracy[probe][name].append(float(np.mean(scores)))
    return {"labels": counts, "splits": SPLITS, "test_images": tested, "accuracy": accuracy}


def _representations(task: EvaluationTask, sources: Sequence[ImageSource]) -> dict[str, list[np.ndarray]]:
    """The rows of the training and of the test images, at most 10,000 each, standardized by the training images."""
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    model, kinds = task.trained.model, {"features": [], "pixels": []}
    # Means over positions where there are very many features.
    pool = "mean" if sum(map(math.prod, model.plan.latent_shapes())) > _MOST_FEATURES else None
    for part in sources:
        numbers = range(math.ceil(min(part.count, _MOST_IMAGES) / task.batch_size))
        # Batch by batch: all images as one tensor might not fit on a GPU.
        images = [batch.numpy() for batch in task.batches(part, images_alone(task.spec), numbers)]
        features = [model.features(batch, pool=pool, batch_size=task.batch_size) for batch in images]
        kinds["features"].append(np.concatenate(features))
        kinds["pixels"].append(np.concatenate([batch.reshape(len(batch), -1) for batch in images]))
    for name, parts in kinds.items():
        kinds[name] = list(map(StandardScaler().fit(parts[0]).transform, parts))
    pixels = kinds["pixels"]
    components = PCA(min(_COMPONENTS, *pixels[0].shape), random_state=0).fit(pixels[0])
    return kinds | {"PCA of the pixels": list(map(components.transform, pixels))}
