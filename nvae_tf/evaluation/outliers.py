"""Outlier scores (`NVAE.outlier_score`): their calibration with training images, and how well they tell outliers."""

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.config import DataSpec, check
from nvae_tf.data.picture_folder import picture_source
from nvae_tf.data.pictures import TIFF, list_pictures
from nvae_tf.data.pipeline import content_digest, evaluation_batches, images_alone, iterate
from nvae_tf.data.sources import ArraySource, ImageSource, holds_out, load_split, source_at, spread_numbers
from nvae_tf.data_sets import check_model_fits
from nvae_tf.evaluation.task import EvaluationTask
from nvae_tf.models import NVAE
from nvae_tf.models.outlier_scores import (
    OutlierCalibration,
    OutlierParts,
    mahalanobis_distance,
    outlier_parts,
    outlier_scores,
)
from nvae_tf.progress import ImageProgress, StatusLine
from nvae_tf.replicas import divided, joined
from nvae_tf.runs.companions import write_calibration
from nvae_tf.runs.loading import load_run
from nvae_tf.runs.run_folder import RunFolder, read_run_config

FLAGGED_BELOW = 0.05  # images with a p-value up to this are flagged
# In nats, of each group and the reconstruction: a group that is not used hardly varies, and may a little elsewhere.
_SMALLEST_DEVIATION = 0.01
Scores = Mapping[str, np.ndarray]
ImageSet = tuple[ImageSource, DataSpec]  # images of one kind, as the model sees them; the spec has their name


def calibrate(model: NVAE, training: Any, held_out: Any, batch_size: int | None = None) -> OutlierCalibration:
    """Calibrates `model.outlier_score` with `[batch, height, width, channels]`; ValueError for fewer than 50 and 19."""
    # A calibration of other weights would be refused.
    before, model.outlier_calibration = model.outlier_calibration, None
    try:
        parts = [model.outlier_score(images, batch_size=batch_size).parts for images in (training, held_out)]
    finally:
        model.outlier_calibration = before
    model.outlier_calibration = calibration_of(*parts)
    return model.outlier_calibration


def calibration_of(training: OutlierParts, held_out: OutlierParts) -> OutlierCalibration:
    """The calibration by the scores of training and of held-out images; ValueError for too few, or NaN."""
    # Here, because importing scikit-learn takes a second that other metrics do not need.
    from sklearn.covariance import LedoitWolf

    for parts, fewest, name in ((training, 50, "training"), (held_out, 19, "held-out")):
        check(len(parts.kl) >= fewest, f"{len(parts.kl)} {name} images are too few to calibrate; give {fewest} or more")
    values = np.concatenate([training.kl, np.expand_dims(training.reconstruction, 1)], axis=1).astype(np.float64)
    # The shrinkage is toward equal variances, so each number is brought to its own unit before.
    units = np.maximum(values.std(axis=0), _SMALLEST_DEVIATION)
    if not all(np.isfinite(numbers).all() for numbers in (units, held_out.kl, held_out.reconstruction)):
        raise ValueError("the model has diverged, its scores are not finite")
    mean, covariance = values.mean(axis=0), LedoitWolf().fit(values / units).covariance_ * np.outer(units, units)
    covariance += _SMALLEST_DEVIATION**2 * np.eye(len(units))
    kl, mahalanobis = outlier_scores(held_out, None).kl, mahalanobis_distance(held_out, mean, covariance)
    return OutlierCalibration(mean, covariance, np.sort(kl.numpy()), np.sort(mahalanobis.numpy()))


def calibrate_run(workdir, checkpoint="latest", images=10_000, batch_size=None, data_path=None) -> OutlierCalibration:
    """Calibrates a checkpoint with up to `images` images of each part, and writes `outliers.npz` of the run."""
    folder, status = RunFolder(workdir), StatusLine()
    read_run_config(folder)  # a shared run, which `load_run` loads too, has no folder to write into
    trained = load_run(workdir, checkpoint)
    spec = trained.config.data_at(data_path)
    check_model_fits(trained.config.model, spec)
    spec, parts = images_alone(spec), []
    signature = [tf.TensorSpec([None, *spec.image_shape])]
    score = tf.function(functools.partial(outlier_parts, trained.model), input_signature=signature, autograph=False)
    for source in [load_split(spec, split, status.report()) for split in ("train", "test")]:
        # The last batch, which may be smaller, is used only where all images are.
        size = batch_size or trained.config.train.batch_size
        batches = max(1, source.count // size) if images < source.count else -(-source.count // size)
        numbers = spread_numbers(batches, -(-images // size))
        progress, scored = ImageProgress(status.show_if_due, min(len(numbers) * size, source.count)), []
        for batch in iterate(evaluation_batches(source, spec, size, 0, numbers), source):
            scored.append(score(batch)[:2])  # without the maps, which are as large as the images
            progress.add(len(batch))
        parts.append(OutlierParts(*(np.concatenate(part)[:images] for part in zip(*scored, strict=True)), None))
    calibration = calibration_of(*parts)
    write_calibration(folder.outliers_file, trained.model, trained.step, calibration)
    return calibration


def load_image_sets(task: EvaluationTask, places: Sequence[str]) -> list[ImageSet]:
    """Loads the part's own images, and a user's outliers from folders of pictures or what else `data.path` may name."""
    paths = [os.path.abspath(os.path.expanduser(place)) for place in places]
    own = dataclasses.replace(images_alone(task.spec), name=f"{task.split} images")
    names = [own.name, *map(os.path.basename, paths)]
    if not places or len({*names}) < len(names):
        fix = f"give folders of pictures of another kind, of different names, none of them '{own.name}'"
        raise ValueError(f"--outliers={','.join(places)}: {fix}")
    # In the form that the model takes.
    form = {"convert": True, "crop_box": None, "resize": "crop", "stacked_images": 1, "cache": None}
    sets = [(task.source, own)]
    for path in paths:
        if not os.path.exists(path):
            raise FileNotFoundError(f"--outliers: {path}: no such file or folder")
        place = {"name": os.path.basename(path), "source": source_at(path), "path": path, "crop": "none"}
        names = list_pictures(path) if os.path.isdir(path) else [path]
        if task.spec.source == "tiff" and all(name.lower().endswith(TIFF) for name in names):
            # Where the model has crops, so have the outliers: scaled down they would be other images for that alone.
            place |= {"source": "tiff"} | ({"crop": "random", "resize": "none"} if task.spec.crop == "random" else {})
        spec = dataclasses.replace(own, **form | place)
        if spec.source in ("folder", "tiff"):
            source = picture_source(path, spec)[0]
        else:
            # All images of a file that has no test part of its own.
            parts = [load_split(spec, part) for part in (["train", "test"] if holds_out(spec) else ["test"])]
            source = ArraySource(np.concatenate([part.reader()(tf.range(part.count)).numpy() for part in parts]))
        sets.append((source, spec))
    return sets


def measure_outliers(task: EvaluationTask, sets: Sequence[ImageSet]) -> tuple[dict[str, Any], dict[str, Scores]]:
    """Measures how well each score separates each set of outliers from the first set, on all workers.

    Returns the entry `outliers` of the evaluation file, and `scores_by_name` of each set by its name.
    """
    strategy, model, scores = task.strategy, task.trained.model, {}

    @functools.partial(tf.function, autograph=False)
    def score(images: tf.Tensor) -> list[tf.Tensor]:
        return strategy.run(lambda part: outlier_parts(model, part)[:2], [images])

    def compute(images: tf.Tensor, *_: Any) -> dict[str, np.ndarray]:
        padded = tf.pad(images, [(0, task.batch_size - len(images)), (0, 0), (0, 0), (0, 0)])
        reconstruction, kl = joined(strategy, score(divided(strategy, padded)))
        return {"reconstruction": reconstruction.numpy(), "kl": kl.numpy()}

    for source, spec in sets:
        task.status.print(f"{spec.name}: {source.count:,}")
        work, inputs = f"outliers {content_digest(source, spec)}", functools.partial(task.batches, source, spec)
        batches = [*task.shared_batches(work, source.count, task.batch_size, inputs, compute)]
        columns = [np.concatenate([batch[part] for batch in batches]) for part in ("reconstruction", "kl")]
        task.check_finite(columns)
        scores[spec.name] = scores_by_name(OutlierParts(*columns, kl_map=None), model.outlier_calibration)
    (_, own), *others = scores.items()
    result = {
        name: {"num_images": len(other["kl"]), "auroc": aurocs(own, other), "flagged": flagged(other)}
        for name, other in others
    }
    return {"calibrated": model.outlier_calibration is not None, "flagged_below": FLAGGED_BELOW, "sets": result}, scores


def scores_by_name(parts: OutlierParts, calibration: OutlierCalibration | None) -> dict[str, np.ndarray]:
    """The scores of images by name, `[images]`; only with a calibration `mahalanobis`, `p_mahalanobis` and `p_kl`."""
    result = outlier_scores(parts, calibration)
    scores = {"mahalanobis": result.mahalanobis, "kl": result.kl, "nelbo_at_mean": result.nelbo_at_mean}
    scores |= {"p_mahalanobis": result.mahalanobis_p_value, "p_kl": result.kl_p_value}
    return {name: np.asarray(values) for name, values in scores.items() if values is not None}


def aurocs(inside: Scores, outside: Scores) -> dict[str, float]:
    """The area under the ROC curve of each score: how often an outlier has a higher score than another image."""
    from sklearn.metrics import roc_auc_score

    both = {name: (inside[name], outside[name]) for name in inside if not name.startswith("p_")}
    truth = {name: np.repeat([0, 1], list(map(len, parts))) for name, parts in both.items()}
    return {name: float(roc_auc_score(truth[name], np.concatenate(parts))) for name, parts in both.items()}


def flagged(scores: Scores) -> dict[str, float]:
    """The share of images whose p-value is at most 0.05, by the score."""
    p_values = {name.removeprefix("p_"): values for name, values in scores.items() if name.startswith("p_")}
    return {name: float((values <= FLAGGED_BELOW).mean()) for name, values in p_values.items()}
