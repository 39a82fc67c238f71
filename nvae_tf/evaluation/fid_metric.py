"""The Fréchet inception distance of samples from the training images: `fid`."""

import dataclasses
import hashlib
import math
from typing import Any

import numpy as np

from nvae_tf.data.pipeline import content_digest, evaluation_batches, iterate, stored_spec
from nvae_tf.data.sources import load_split
from nvae_tf.evaluation.batch_norm_statistics import readjusted
from nvae_tf.evaluation.feature_statistics import (
    FeatureStatistics,
    RunningFeatureStatistics,
    load_statistics,
    save_statistics,
)
from nvae_tf.evaluation.fid import image_statistics
from nvae_tf.evaluation.frechet_distance import frechet_distance
from nvae_tf.evaluation.inception import FeatureExtractor, Inception, load_inception
from nvae_tf.evaluation.inception_file import cache_folder
from nvae_tf.evaluation.kept_batches import KeptBatches
from nvae_tf.evaluation.named_extractor import named_extractor
from nvae_tf.evaluation.progress import ImageProgress
from nvae_tf.evaluation.task import EvaluationTask
from nvae_tf.generation.sampling import ImageGenerator
from nvae_tf.models.noise import image_seeds
from nvae_tf.models.temperatures import Temperature, temperatures_of_groups

_REAL_BATCH = 64
# Samples of one kept batch; a multiple of the generator's own batches.
_SAMPLES = 256


@dataclasses.dataclass(frozen=True)
class FidSettings:
    """How samples are drawn and compared.

    Attributes:
      samples: how many are drawn; published distances are of 50,000.
      temperature: of the priors.
      inception: the graph's file; None to download it once.
      extractor: another one than Inception, see `named_extractor`.
      batch_norm_iterations: of the readjustment of batch-norm statistics before the samples are drawn; 0 for none.
    """

    samples: int = 50_000
    temperature: Temperature = 1.0
    inception: str | None = None
    extractor: str | None = None
    batch_norm_iterations: int = 0


def load_extractor(task: EvaluationTask, settings: FidSettings) -> FeatureExtractor:
    """Inception, with a note if it may not be the published one, or another one; looks at the temperature as well.

    Raises:
      FileNotFoundError, ConnectionError, ValueError: see `load_inception`, `named_extractor` and
        `temperatures_of_groups`.
    """
    temperatures_of_groups(settings.temperature, task.trained.model.plan)
    if settings.extractor:
        return named_extractor(settings.extractor)
    extractor = load_inception(settings.inception, strategy=task.strategy)
    if not extractor.is_published:
        task.status.keep(
            "Note: this is not the published Inception graph to the last byte, as far as that is known; the distance "
            "may not be comparable with published ones."
        )
    return extractor


def measure_fid(task: EvaluationTask, settings: FidSettings, extractor: FeatureExtractor) -> dict[str, Any] | None:
    """Draws samples and measures their distance from the training images, as they are stored.

    The replicas of a process share the samples. Features of finished ones are kept, and several processes share
    them, see `KeptBatches`.

    Returns:
      None in a process that is not the chief of several, or where another one has been faster.
    """
    kept = samples_of(task, settings, extractor)
    moved = _draw_missing(task, settings, extractor, kept) if kept.is_begun(task.share) else None
    if task.share.index:
        return None
    real = real_statistics(task, extractor)
    running = RunningFeatureStatistics()
    try:
        kept.for_each(lambda arrays: running.add(arrays["features"]))
    except FileNotFoundError:
        task.status.keep("another train.evaluate has put the samples' features together meanwhile")
        return None
    return {
        "value": frechet_distance(real, running.statistics()),
        "samples": settings.samples,
        "temperature": settings.temperature,
        "real_images": real.count,
        "extractor": extractor.name,
        "extractor_is_published": isinstance(extractor, Inception) and extractor.is_published,
        "batch_norm_iterations": settings.batch_norm_iterations,
        "batch_norm_shift": moved,
    }


def samples_of(task: EvaluationTask, settings: FidSettings, extractor: FeatureExtractor) -> KeptBatches:
    """The features of samples of the same checkpoint, drawn in the same way."""
    drawing = dataclasses.replace(settings, inception=None, extractor=None)
    what = task.checkpoint_sha256, task.seed, drawing, extractor.name
    digest = hashlib.sha256(repr(what).encode()).hexdigest()[:12]
    folder = task.folder.evaluation / f"unfinished-fid-{digest}"
    return KeptBatches(folder, math.ceil(settings.samples / _SAMPLES))


def _draw_missing(
    task: EvaluationTask, settings: FidSettings, extractor: FeatureExtractor, kept: KeptBatches
) -> str | None:
    """Draws what no process has drawn; returns how far batch norm was readjusted."""
    model, moved = task.trained.model, None
    if settings.batch_norm_iterations:
        # Every process by itself, with the same result; the copy is on all replicas, as the model is.
        with task.strategy.scope():
            adjusted = readjusted(model, settings.temperature, settings.batch_norm_iterations, seed=task.seed)
        model, moved = adjusted.model, adjusted.text
        task.status.keep(moved)
    generator = ImageGenerator(model, task.strategy)
    missing = kept.missing(task.share)
    sizes = {number: min(_SAMPLES, settings.samples - number * _SAMPLES) for number in missing}
    progress = ImageProgress(task.status, settings.samples, settings.samples - sum(sizes.values()))
    for number, size in sizes.items():
        if kept.has(number):
            progress.count_other(size)
            continue
        first = number * _SAMPLES
        images = generator.from_seeds(image_seeds(task.seed, size, first), settings.temperature)
        # As they would be in a PNG file, and as the training images are.
        images = np.rint(images * np.float32(255.0)) / np.float32(255.0)
        if not kept.write(number, {"features": extractor.features(images)}):
            break
        progress.of_batch(first)(first + size)
    return moved


def real_statistics(task: EvaluationTask, extractor: FeatureExtractor) -> FeatureStatistics:
    """Of the training images, from the user's cache folder where they are there."""
    spec = stored_spec(task.spec)
    source = load_split(spec, "train", task.status.report())
    fingerprint = f"train, {content_digest(source, spec)}, {extractor.name}"
    file = cache_folder() / "feature_statistics" / f"{hashlib.sha256(fingerprint.encode()).hexdigest()[:16]}.npz"
    statistics = load_statistics(file, fingerprint)
    if statistics is None:
        task.status.keep(f"features of the {source.count:,} training images, to be kept in {file}")
        progress = ImageProgress(task.status, source.count).of_batch(0)
        batches = iterate(evaluation_batches(source, spec, _REAL_BATCH, seed=0), source)
        statistics = image_statistics((batch.numpy() for batch in batches), extractor, progress)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_statistics(file, statistics, fingerprint)
    return statistics
