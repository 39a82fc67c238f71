"""The Fréchet inception distance of samples from the training images: `fid`."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from nvae_tf.data.pipeline import evaluation_batches, iterate
from nvae_tf.data.sources import load_split
from nvae_tf.data_spec import DataSpec
from nvae_tf.evaluation import (
    FeatureExtractor,
    FeatureStatistics,
    frechet_inception_distance,
    image_statistics,
    load_inception,
    load_statistics,
    readjusted,
    save_statistics,
)
from nvae_tf.generation import ImageGenerator
from nvae_tf.models import NVAE
from nvae_tf.models.noise import image_seeds
from nvae_tf.models.temperatures import Temperature
from train.evaluation.progress import ImageProgress
from train.evaluation.task import EvaluationTask

_REAL_BATCH = 64
# Drawn at a time; a multiple of the generator's own batches.
_SAMPLES = 256


@dataclasses.dataclass(frozen=True)
class FidSettings:
    """How samples are drawn and compared.

    Attributes:
      samples: how many are drawn; published distances are of 50,000.
      temperature: of the priors.
      inception: the graph's file; None to download it once.
      batch_norm_iterations: of the readjustment of batch-norm statistics before the samples are drawn; 0 for none.
    """

    samples: int = 50_000
    temperature: Temperature = 1.0
    inception: str | None = None
    batch_norm_iterations: int = 0


def fid_figures(task: EvaluationTask, settings: FidSettings) -> dict[str, Any]:
    """Draws samples and measures their distance from the training images, as they are stored: 8 bits, not binarised.

    Raises:
      FileNotFoundError, ConnectionError, ValueError: see `load_inception`.
    """
    extractor = load_inception(settings.inception)
    if not extractor.is_published:
        task.status.keep(
            "Note: this is not the published Inception graph to the last byte, as far as that is known; the distance "
            "may not be comparable with published ones."
        )
    real = real_statistics(task, extractor)
    model, moved = task.trained.model, None
    if settings.batch_norm_iterations:
        adjusted = readjusted(model, settings.temperature, settings.batch_norm_iterations, seed=task.seed)
        model, moved = adjusted.model, adjusted.text
        task.status.keep(moved)
    progress = ImageProgress(task.status, settings.samples)
    generated = samples(model, settings.samples, settings.temperature, task.seed)
    value = frechet_inception_distance(real, generated, extractor, progress.of_batch(0))
    return {
        "value": value,
        "samples": settings.samples,
        "temperature": settings.temperature,
        "real_images": real.count,
        "extractor": extractor.name,
        "batch_norm_iterations": settings.batch_norm_iterations,
        "batch_norm_shift": moved,
    }


def samples(model: NVAE, count: int, temperature: Temperature, seed: int) -> Iterator[np.ndarray]:
    """Batches of the images that `model.generate(count, temperature, seed)` draws."""
    generator = ImageGenerator(model)
    for first in range(0, count, _SAMPLES):
        yield generator.from_seeds(image_seeds(seed, min(_SAMPLES, count - first), first), temperature)


def real_statistics(task: EvaluationTask, extractor: FeatureExtractor) -> FeatureStatistics:
    """Of the training images, from the user's cache folder where they are there."""
    spec = dataclasses.replace(task.spec, num_bits=8, binarise=False, horizontal_flip=False)
    source = load_split(spec, "train", task.status.report())
    batches = evaluation_batches(source, spec, _REAL_BATCH, seed=0)
    (last,) = iterate(evaluation_batches(source, spec, 1, seed=0, numbers=[source.count - 1]), source)
    fingerprint = _fingerprint(spec, source.count, last.numpy(), extractor)
    file = _cache_folder() / f"{hashlib.sha256(fingerprint.encode()).hexdigest()[:16]}.npz"
    statistics = load_statistics(file, fingerprint)
    if statistics is None:
        task.status.keep(f"features of the {source.count:,} training images, to be kept in {file}")
        progress = ImageProgress(task.status, source.count).of_batch(0)
        images = (batch.numpy() for batch in iterate(batches, source))
        statistics = image_statistics(images, extractor, progress)
        file.parent.mkdir(parents=True, exist_ok=True)
        save_statistics(file, statistics, fingerprint)
    return statistics


def _fingerprint(spec: DataSpec, count: int, last_image: np.ndarray, extractor: FeatureExtractor) -> str:
    """What the statistics are of. Of the pixels only the last image's are looked at: all would take as long as the
    features.
    """
    pixels = hashlib.sha256(last_image.tobytes()).hexdigest()
    return repr((dataclasses.astuple(dataclasses.replace(spec, cache=None)), "train", count, pixels, extractor.name))


def _cache_folder() -> pathlib.Path:
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return caches / "nvae_tf" / "feature_statistics"
