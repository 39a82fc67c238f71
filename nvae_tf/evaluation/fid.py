"""The Fréchet inception distance of samples from the training images (Heusel et al. 2017): `fid` and `frechet`."""

import contextlib
import dataclasses
import hashlib
import importlib
import os
import pathlib
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.data.pipeline import content_digest, evaluation_batches, iterate, stored_spec
from nvae_tf.data.sources import load_split
from nvae_tf.evaluation.batch_norm_statistics import readjusted
from nvae_tf.evaluation.inception import FeatureExtractor, Inception, cache_folder
from nvae_tf.evaluation.task import EvaluationTask
from nvae_tf.files import file_sha256, read_arrays, write_arrays
from nvae_tf.generation.sampling import ImageGenerator
from nvae_tf.models.latents import Temperature, image_seeds, temperatures_of_groups
from nvae_tf.models.reweighted_prior import check_prior
from nvae_tf.progress import ImageProgress
from nvae_tf.schemas import Field

_STATISTICS = {
    "mean": Field("number", ("features",)),
    "covariance": Field("number", ("features", "features")),
    "count": Field("whole number", (), 2),
}
_SAMPLES_AT_ONCE = 256  # a multiple of the generator's own batches


class FeatureStatistics(NamedTuple):
    """The mean and the covariance of the features of `count` images, in float64."""

    mean: np.ndarray  # `[features]`
    covariance: np.ndarray  # unbiased, `[features, features]`
    count: int


def statistics_of(
    batches: Iterable[np.ndarray], progress: Callable[[int], None] = lambda done: None
) -> FeatureStatistics:
    """The statistics of features in batches `[images, features]`; `progress` gets the number of images done.

    One batch at a time is in memory. Batches are merged by the difference of their means (Chan, Golub & LeVeque 1983),
    not by sums of squares. ValueError: features do not fit each other, are not finite, or are of fewer than 2 images.
    """
    total, mean, scatter = 0, 0.0, 0.0
    for batch in batches:
        features = np.asarray(batch, np.float64)
        if features.ndim != 2 or (total and features.shape[1] != len(mean)) or not np.isfinite(features).all():
            raise ValueError(f"features {features.shape} are not [images, features] as those before, or not all finite")
        if count := len(features):
            difference, centered = features.mean(axis=0) - mean, features - features.mean(axis=0)
            between = np.outer(difference, difference) * (total * count / (total + count))
            scatter = centered.T @ centered + (scatter + between)
            mean = mean + difference * (count / (total + count))
            total += count
        progress(total)
    if total < 2:
        raise ValueError(f"the covariance of features needs at least 2 images, there are {total}")
    return FeatureStatistics(mean, scatter / (total - 1), total)


def image_statistics(
    batches: Iterable[np.ndarray], extractor: FeatureExtractor, progress: Callable[[int], None] = lambda done: None
) -> FeatureStatistics:
    """`statistics_of` the features of images `[batch, height, width, channels]` in [0, 1]."""
    return statistics_of((extractor.features(images) for images in batches), progress)


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """`|m1 - m2|^2 + Tr(C1 + C2 - 2 (C1 C2)^(1/2))` (Heusel et al. 2017, eq. 6), each set taken for a Gaussian.

    The trace of the root is the sum of the singular values of `C1^(1/2) C2^(1/2)`: the root of a nearly singular
    `C1 C2` itself may be complex. Fewer images make the distance larger; published distances are from 50,000. It is in
    the square of the features' unit. ValueError for statistics of different extractors.
    """
    if len(one.mean) != len(other.mean):
        raise ValueError(f"the sets have {len(one.mean)} and {len(other.mean)} features, of different extractors")
    difference = one.mean - other.mean
    traces = np.trace(one.covariance) + np.trace(other.covariance)
    roots = np.linalg.svd(_root(one.covariance).T @ _root(other.covariance), compute_uv=False)
    return max(float(difference @ difference + traces - 2.0 * float(roots.sum())), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """`R [features, rank]` with `R R^T` equal to the covariance, without the directions that have no variance."""
    values, vectors = np.linalg.eigh(covariance)
    # A smaller eigenvalue may be rounding: the root of 1e-16 is 1e-8, and there can be thousands of them.
    kept = values > len(values) * np.finfo(np.float64).eps * np.abs(values).max(initial=0.0)
    return vectors[:, kept] * np.sqrt(values[kept])


def named_extractor(name: str) -> FeatureExtractor:
    """Makes the extractor of "module:function"; statistics are kept under its name, with a digest of the module."""
    module_name, _, function_name = name.partition(":")
    # In an installed command the first entry is the command's own folder, not the working directory.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (ModuleNotFoundError, ValueError) as error:
        raise ValueError(f"--extractor={name}: name it as MODULE:FUNCTION, as my_features:make ({error})") from None
    make = getattr(module, function_name, None)
    if not callable(make):
        fault = f"{module_name} has no function {function_name!r}"
        raise ValueError(f"--extractor={name}: name it as MODULE:FUNCTION, as my_features:make ({fault})")
    extractor = make()
    if not (isinstance(getattr(extractor, "name", None), str) and callable(getattr(extractor, "features", None))):
        needed = "a string `name` and a method `features(images)`, see nvae_tf.evaluation.inception.FeatureExtractor"
        raise ValueError(f"--extractor={name} gives {type(extractor).__name__}; it must have {needed}")
    file = getattr(module, "__file__", None)
    digest = file_sha256(pathlib.Path(file))[:8] if file else "no file"
    return types.SimpleNamespace(name=f"{extractor.name} ({module_name}, {digest})", features=extractor.features)


@dataclasses.dataclass(frozen=True)
class FidSettings:
    """How samples are drawn and compared."""

    samples: int = 50_000  # as many as for published distances
    temperature: Temperature = 1.0  # multiplies the priors' sigma
    inception: str | None = None  # the graph's file; None to download it once
    extractor: str | None = None  # an extractor other than Inception, see `named_extractor`
    batch_norm_iterations: int = 0  # for readjusting batch-norm statistics before samples are drawn; 0: not readjusted
    prior: str = "model"  # or "reweighted", see `NVAE.generate`


def load_extractor(task: EvaluationTask, settings: FidSettings) -> FeatureExtractor:
    """Loads Inception, or the user's own extractor; ValueError for settings that do not fit the model."""
    temperatures_of_groups(settings.temperature, task.trained.model.plan)
    check_prior(settings.prior, task.trained.model)
    if settings.extractor:
        return named_extractor(settings.extractor)
    extractor = Inception(settings.inception, task.strategy)
    if not extractor.is_published:
        task.status.keep("Note: not the published Inception graph, as far as is known: compare the distance with care.")
    return extractor


def measure_fid(task: EvaluationTask, settings: FidSettings, extractor: FeatureExtractor) -> dict[str, Any] | None:
    """The entry of the evaluation file: the distance of samples from the training images; None but on the chief."""
    model, shift = task.trained.model, None
    if settings.batch_norm_iterations:
        drawing = settings.temperature, settings.batch_norm_iterations
        # Every worker by itself, with the same result; the copy is on all replicas, as the model is.
        with task.strategy.scope():
            model, shift = readjusted(model, *drawing, seed=task.seed, prior=settings.prior)
        task.status.keep(shift)
    generator = ImageGenerator(model, task.strategy)

    def batch_seeds(numbers: Sequence[int]) -> list[tf.Tensor]:
        seeds = image_seeds(task.seed, settings.samples)
        return [seeds[number * _SAMPLES_AT_ONCE :][:_SAMPLES_AT_ONCE] for number in numbers]

    def compute(seeds: tf.Tensor, *_: Any) -> dict[str, np.ndarray]:
        images = generator.generate(len(seeds), settings.temperature, seeds, prior=settings.prior)
        images = np.rint(images * np.float32(255.0)) / np.float32(255.0)  # as they would be in a PNG file
        return {"features": np.asarray(extractor.features(images))}

    work = f"{settings.temperature} {settings.batch_norm_iterations} {settings.prior} {extractor.name}"
    batches = task.shared_batches(work, settings.samples, _SAMPLES_AT_ONCE, batch_seeds, compute)
    samples = statistics_of(batch["features"] for batch in batches)
    if not task.workers.is_chief:
        return None
    real = _real_statistics(task, extractor)
    return {
        "value": frechet_distance(real, samples),
        "samples": settings.samples,
        "temperature": settings.temperature,
        "prior": settings.prior,
        "real_images": real.count,
        "extractor": extractor.name,
        "extractor_is_published": isinstance(extractor, Inception) and extractor.is_published,
        "batch_norm_iterations": settings.batch_norm_iterations,
        "batch_norm_shift": shift,
    }


def _real_statistics(task: EvaluationTask, extractor: FeatureExtractor) -> FeatureStatistics:
    """The statistics of the training images, kept in the user's cache folder."""
    spec = stored_spec(task.spec)
    source = load_split(spec, "train", task.status.report())
    fingerprint = f"train, {content_digest(source, spec)}, {extractor.name}"
    file = cache_folder() / "feature_statistics" / f"{hashlib.sha256(fingerprint.encode()).hexdigest()[:16]}.npz"
    # Made again where the file is damaged.
    with contextlib.suppress(FileNotFoundError, ValueError):
        arrays = read_arrays(file, _STATISTICS)
        return FeatureStatistics(arrays["mean"], arrays["covariance"], int(arrays["count"]))
    task.status.keep(f"features of the {source.count:,} training images, to be kept in {file}")
    batches = iterate(evaluation_batches(source, spec, batch_size=64, seed=0), source)
    progress = ImageProgress(task.status.show_if_due, source.count)
    statistics = image_statistics((images.numpy() for images in batches), extractor, progress.show)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(file, statistics._asdict())
    return statistics
