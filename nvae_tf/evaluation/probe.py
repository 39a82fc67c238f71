"""Probes: how well simple classifiers tell classes apart by frozen features, with few labels and with many."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from nvae_tf.config import check
from nvae_tf.data.pipeline import images_alone
from nvae_tf.data.sources import ImageSource, load_split, spread_numbers
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
        sources = [load_split(spec, part, task.status.report()) for part in ("train", "test")]
        check(len(np.unique(sources[0].labels)) > 1, "all training images are of one class")
    return sources


def measure_probe(task: EvaluationTask, sources: Sequence[ImageSource]) -> dict[str, Any]:
    """Accuracies on the test images, with labels of some training images, drawn at random, and of all of them.

    The classifiers see the model's features, the pixels, or 50 principal components of the pixels. With some labels an
    accuracy is the mean over five draws of the labels.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from threadpoolctl import threadpool_limits

    kinds, (labels, test_labels) = _representations(task, sources)
    check(len(np.unique(labels)) > 1, f"--metrics=probe: the {len(labels):,} images that it takes are of one class")
    count = len(labels)
    probes = {"logistic regression": LogisticRegression(max_iter=1000), "nearest neighbors": KNeighborsClassifier()}
    counts = [*(number for number in LABELS if number < count), count]
    accuracy: dict[str, dict[str, list[float]]] = {probe: {name: [] for name in kinds} for probe in probes}
    for number, probe, (name, (train, test)) in itertools.product(counts, probes, kinds.items()):
        draws = (np.random.default_rng(seed).permutation(count)[:number] for seed in itertools.count())
        draws = filter(lambda rows: len(np.unique(labels[rows])) > 1, draws)  # one class alone can't be told apart
        draws = [*itertools.islice(draws, 1 if number == count else SPLITS)]
        with threadpool_limits(1):  # threads of a BLAS wait in loops: with two, a fit took 2 to 25 times as long
            scores = [probes[probe].fit(train[rows], labels[rows]).score(test, test_labels) for rows in draws]
        accuracy[probe][name].append(float(np.mean(scores)))
    return {"labels": counts, "splits": SPLITS, "test_images": len(test_labels), "accuracy": accuracy}


def _representations(task: EvaluationTask, sources: Sequence[ImageSource]) -> tuple[dict, list[np.ndarray]]:
    """The rows of the training and of the test images, standardized by the training images, and the labels of both.

    Of each at most about 10,000 images are taken: whole batches, spread evenly, since a folder has class after class.
    """
    from sklearn.decomposition import PCA
    from sklearn.preprocessing import StandardScaler

    model, size, kinds, labels = task.trained.model, task.batch_size, {"features": [], "pixels": []}, []
    # Means over positions where there are very many features.
    pool = "mean" if sum(map(math.prod, model.plan.latent_shapes())) > _MOST_FEATURES else None
    for part in sources:
        numbers = spread_numbers(math.ceil(part.count / size), math.ceil(_MOST_IMAGES / size))
        # Batch by batch: all images as one tensor might not fit on a GPU.
        images = [batch.numpy() for batch in task.batches(part, images_alone(task.spec), numbers)]
        labels.append(np.concatenate([part.labels[number * size :][:size] for number in numbers]))
        features = [model.features(batch, pool=pool, batch_size=size) for batch in images]
        kinds["features"].append(np.concatenate(features))
        kinds["pixels"].append(np.concatenate([batch.reshape(len(batch), -1) for batch in images]))
    for name, parts in kinds.items():
        kinds[name] = list(map(StandardScaler().fit(parts[0]).transform, parts))
    pixels = kinds["pixels"]
    components = PCA(min(_COMPONENTS, *pixels[0].shape), random_state=0).fit(pixels[0])
    return kinds | {"PCA of the pixels": list(map(components.transform, pixels))}, labels
