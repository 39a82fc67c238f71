"""Outlier scores (`NVAE.outlier_score`): their calibration with training images, and how well they find others.

The likelihood ratio of Havtorn et al. (2021, "Hierarchical VAEs know what they don't know", arXiv 2102.08248) is here
for comparison: it needs many passes, the other scores need one.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf import objective as objectives
from nvae_tf.config import DataSpec, check
from nvae_tf.data.picture_folder import picture_source
from nvae_tf.data.pipeline import chosen_images, content_digest, evaluation_batches, images_alone, iterate
from nvae_tf.data.sources import ArraySource, ImageSource, holds_out, load_split, source_at
from nvae_tf.data_sets import check_model_fits
from nvae_tf.evaluation.table import digits
from nvae_tf.evaluation.task import EvaluationTask, KeptBatches, kept_batches, share_work
from nvae_tf.latent_plan import LatentPlan
from nvae_tf.models import NVAE
from nvae_tf.models.latents import PriorSource, image_seeds, noise_of_samples
from nvae_tf.models.outlier_scores import (
    OutlierCalibration,
    OutlierParts,
    likeliest_class,
    mahalanobis_distance,
    outlier_parts,
    outlier_scores,
)
from nvae_tf.progress import ImageProgress, StatusLine
from nvae_tf.replicas import divided, joined
from nvae_tf.runs.companions import write_calibration
from nvae_tf.runs.loading import load_run, spec_to_read
from nvae_tf.runs.run_folder import RunFolder, read_run_config

FLAGGED_BELOW = 0.05  # the p-value of what counts as found
_FEWEST, _FEWEST_HELD_OUT = 50, 19
# In nats, of each group and the reconstruction: a group that is not used hardly varies, and may a little elsewhere.
_SMALLEST_DEVIATION = 0.01
_SHOWN = 6  # of the most outlying images of each set
_Scored = Mapping[str, np.ndarray]


def calibrate(model: NVAE, training: Any, held_out: Any, batch_size: int | None = None) -> OutlierCalibration:
    """Calibrates `model.outlier_score` with training images and held-out images.

    Both are images `[batch, height, width, channels]` in [0, 1]. ValueError for fewer than 50 training images, or 19
    others.
    """
    calibration, model.outlier_calibration = model.outlier_calibration, None
    try:
        parts = [model.outlier_score(images, batch_size=batch_size).parts for images in (training, held_out)]
        calibration = calibration_of(*parts)
    finally:
        model.outlier_calibration = calibration
    return calibration


def calibration_of(training: OutlierParts, held_out: OutlierParts) -> OutlierCalibration:
    """Of the parts of the scores of images; p-values are ranks among those that are held out.

    Those from training images would be too small: the model fits these better than images it has not seen.
    """
    count, others = len(training.kl), len(held_out.kl)
    check(count >= _FEWEST, f"{count} training images are too few to calibrate; give {_FEWEST} or more")
    no_rank = f"{others} held-out images are too few for a p-value of {FLAGGED_BELOW}; give {_FEWEST_HELD_OUT} or more"
    check(others >= _FEWEST_HELD_OUT, no_rank)
    values = np.concatenate([training.kl, np.expand_dims(training.reconstruction, 1)], axis=1).astype(np.float64)
    # Here, because importing scikit-learn takes a second that a model without calibration does not need.
    from sklearn.covariance import LedoitWolf

    # The shrinkage is toward equal variances, so each number is brought to its own unit before.
    units = np.maximum(values.std(axis=0), _SMALLEST_DEVIATION)
    finite = np.isfinite(units).all() and np.isfinite(held_out.kl).all() and np.isfinite(held_out.reconstruction).all()
    check(bool(finite), "the model has diverged, its scores are not finite")
    mean, covariance = values.mean(axis=0), LedoitWolf().fit(values / units).covariance_ * np.outer(units, units)
    covariance += _SMALLEST_DEVIATION**2 * np.eye(len(units))
    scores = outlier_scores(held_out, None).kl, mahalanobis_distance(held_out, mean, covariance)
    return OutlierCalibration(mean, covariance, *(np.sort(of_images.numpy()) for of_images in scores))


def calibrate_run(
    workdir: str | os.PathLike,
    checkpoint: str = "latest",
    images: int = 10_000,
    batch_size: int | None = None,
    data_path: str | None = None,
) -> OutlierCalibration:
    """Calibrates a checkpoint with so many images of the training and of the test part at most, see `calibrate`.

    They are spread over the part. Writes `outliers.npz` of the run, where `nvae_tf.load` finds it. Raises what
    `nvae_tf.load` and `load_split` raise.
    """
    folder, status = RunFolder(pathlib.Path(workdir)), StatusLine()
    # A shared run, which `load_run` finds too, has no folder to write into.
    read_run_config(folder)
    trained = load_run(workdir, checkpoint)
    spec = spec_to_read(trained.config, data_path)
    check_model_fits(trained.config.model, spec)
    spec = images_alone(spec)
    sources = [load_split(spec, split, status.report()) for split in ("train", "test")]
    of_model = functools.partial(outlier_parts, trained.model)
    score = tf.function(of_model, autograph=False).get_concrete_function(tf.TensorSpec([None, *spec.image_shape]))
    size = batch_size or trained.config.train.batch_size
    calibration = calibration_of(*(_parts_of(source, spec, score, size, images, status) for source in sources))
    write_calibration(folder.outliers_file, trained.model, trained.step, calibration)
    return calibration


def _parts_of(
    source: ImageSource, spec: DataSpec, score: Callable, size: int, images: int, status: StatusLine
) -> OutlierParts:
    """Of so many images at most, in batches spread evenly over a source; without the maps, as large as the images."""
    # The last batch, which may be smaller, is of all images alone.
    batches = max(1, source.count // size) if images < source.count else -(-source.count // size)
    numbers = np.unique(np.linspace(0, batches - 1, min(batches, -(-images // size))).astype(int))
    progress, found = ImageProgress(status.show_if_due, min(len(numbers) * size, source.count)), []
    for batch in iterate(evaluation_batches(source, spec, size, 0, numbers), source):
        found.append(score(batch)[:2])
        progress.add(len(found[-1][0]))
        progress.show(0)
    return OutlierParts(*(np.concatenate(parts)[:images] for parts in zip(*found, strict=True)), None)


@tf.autograph.experimental.do_not_convert
def likelihood_ratio(
    model: NVAE, images: tf.Tensor, seeds: tf.Tensor, groups: int, samples: int, labels: tf.Tensor | None = None
) -> tf.Tensor:
    """LLR>k of images `[batch, height, width, channels]`, in nats `[batch]`, for one seed an image `[batch, 2]`.

    The importance-weighted bound on log p(x) with all latents from the posterior, minus that where the k = `groups`
    groups nearest to the image are from the prior (Havtorn et al. 2021): high where details fit that the upper groups
    do not explain. The upper groups have the same draws in both.
    """
    features, shapes = model._features(images), model.plan.latent_shapes()
    count, forward = tf.shape(images)[0], model._inference_forward(labels)

    def bound(from_prior: int) -> tf.Tensor:
        kept = model.plan.num_groups - from_prior

        def log_weights(indices: tf.Tensor) -> tf.Tensor:
            noise = noise_of_samples(shapes, seeds, indices[0], 1)
            sources = model._posterior_sources(features, noise)[:kept]
            decoded = model._top_down_pass([*sources, *map(PriorSource, noise[kept:])], count, forward)
            log_q, log_p = objectives.log_posterior_and_prior(decoded.latents[:kept])
            return (decoded.likelihood.log_prob(images) + log_p - log_q)[:, tf.newaxis]

        begun = objectives.ImportanceWeighting.begun(count, num_numbers=1)
        return -objectives.add_samples(log_weights, begun, (samples,), 0, samples).bounds[:, 0]

    return bound(0) - bound(groups)


@dataclasses.dataclass(frozen=True)
class OutlierSettings:
    """What images are looked for among those of the part that is evaluated, and with which scores."""

    places: Sequence[str] = ()  # folders of pictures, or what else `data.path` may name
    llr_samples: int = 0  # of the likelihood ratio, which takes twice as many passes; 0 for none
    llr_groups: int | None = None  # its k; None: the groups of the largest scale


class ImageSet(NamedTuple):
    """Images of one kind, as the model sees them."""

    name: str
    source: ImageSource
    spec: DataSpec


def load_outliers(task: EvaluationTask, settings: OutlierSettings) -> list[ImageSet]:
    """The sets of a user's outliers; raises for what can't be used before the work begins."""
    calibration = task.trained.model.outlier_calibration
    check(not isinstance(calibration, str), calibration)
    if settings.llr_samples:
        ratio_groups(task.trained.model.plan, settings.llr_groups)
    check(bool(settings.places), "metric outliers: give folders of pictures of another kind, --outliers=FOLDER,FOLDER")
    places = [os.path.abspath(os.path.expanduser(place)) for place in settings.places]
    names = [os.path.basename(place) for place in places]
    check(len({*names}) == len(names), f"--outliers={','.join(settings.places)}: two have the same name; rename one")
    # Whatever they are, they are brought to what the model takes.
    reading = {"convert": True, "crop_box": None, "resize": "crop", "stacked_images": 1, "cache": None}
    spec, sets = dataclasses.replace(images_alone(task.spec), source="folder", **reading), []
    for given, name, place in zip(settings.places, names, places, strict=True):
        if not os.path.exists(place):
            raise FileNotFoundError(f"--outliers={given}: no such file or folder")
        of_place = dataclasses.replace(spec, name=name, source=source_at(place), path=place)
        if of_place.source == "folder":
            source = picture_source(place, of_place)[0]
        else:
            # All images of a file that has no test part of its own.
            parts = [load_split(of_place, part) for part in (["train", "test"] if holds_out(of_place) else ["test"])]
            source = ArraySource(np.concatenate([part.reader()(tf.range(part.count)).numpy() for part in parts]))
        sets.append(ImageSet(name, source, of_place))
    return sets


def ratio_groups(plan: LatentPlan, groups: int | None) -> int:
    """The k of LLR>k: as given, or the groups of the largest scale, or half of all where there is one scale."""
    if groups is None:
        groups = len(plan.scales[-1].groups) if len(plan.scales) > 1 else plan.num_groups // 2
    check(plan.num_groups > 1, "LLR>k needs a model with two or more latent groups")
    rule = f"must be from 1 to {plan.num_groups - 1}, all latent groups of this model but the top one"
    check(1 <= groups < plan.num_groups, f"LLR>k with k = {groups}: {rule}")
    return groups


def measure_outliers(task: EvaluationTask, settings: OutlierSettings, outliers: list[ImageSet]) -> dict | None:
    """The entry `outliers` of the evaluation file: how well each score tells each set from the part's own images.

    None where `share_work` gives None.
    """
    sets = [ImageSet(f"{task.split} images", task.source, images_alone(task.spec)), *outliers]
    compute, all_kept, scored = _scorer(task, settings), [], []
    for one in sets:
        what = f"outliers {content_digest(one.source, one.spec)} {settings.llr_samples} {settings.llr_groups}"
        all_kept.append(kept_batches(task, what, one.source.count, task.batch_size))
        task.status.keep(f"{one.name}: {one.source.count:,}")
        scored.append(_scored(task, one, all_kept[-1], compute))
    if any(of_set is None for of_set in scored):
        return None
    model = task.trained.model
    task.check_finite(values for of_set in scored for values in of_set.values())
    calibration = model.outlier_calibration
    with_scores = [scores_of(of_set, calibration) for of_set in scored]
    own, *others = with_scores
    entry = {
        "calibrated": calibration is not None,
        "flagged_below": FLAGGED_BELOW,
        "sets": {
            one.name: {"num_images": one.source.count, "auroc": aurocs(own, scores), "flagged": flagged(scores)}
            for one, scores in zip(outliers, others, strict=True)
        },
        "pictures": _figures(task, sets, with_scores),
    }
    if settings.llr_samples:
        groups = ratio_groups(model.plan, settings.llr_groups)
        entry |= {"llr_groups": groups, "llr_samples": settings.llr_samples}
    for kept in all_kept:
        kept.remove()
    return entry


def _scorer(task: EvaluationTask, settings: OutlierSettings) -> Callable[..., dict[str, np.ndarray]]:
    """What computes the arrays of a batch, for `share_work`."""
    model, strategy = task.trained.model, task.strategy

    def score(images: tf.Tensor, seeds: tf.Tensor) -> list[tf.Tensor]:
        labels = likeliest_class(model, images)
        reconstruction, kl, _ = outlier_parts(model, images, labels)
        if not settings.llr_samples:
            return [reconstruction, kl]
        groups = ratio_groups(model.plan, settings.llr_groups)
        return [reconstruction, kl, likelihood_ratio(model, images, seeds, groups, settings.llr_samples, labels)]

    on_replicas = tf.function(lambda *rows: strategy.run(score, rows), autograph=False)

    names = ["reconstruction", "kl", *(["llr"] if settings.llr_samples else [])]

    def compute(images: tf.Tensor, first: int, progress: Callable[[int], None]) -> dict[str, np.ndarray]:
        size = len(images)
        padded = tf.pad(images, [(0, task.batch_size - size), (0, 0), (0, 0), (0, 0)])
        rows = divided(strategy, [padded, image_seeds(task.seed, task.batch_size, first)])
        values = joined(strategy, on_replicas(*rows))
        progress(size)
        return {name: value.numpy()[:size] for name, value in zip(names, values, strict=True)}

    return compute


def _scored(task: EvaluationTask, one: ImageSet, kept: KeptBatches, compute: Callable) -> _Scored | None:
    def inputs(numbers: list[int]) -> Any:
        return iterate(evaluation_batches(one.source, one.spec, task.batch_size, task.seed, numbers), one.source)

    def combine(batches: Any) -> _Scored:
        batches = list(batches)
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}

    return share_work(task, kept, inputs, compute, combine)


def scores_of(parts: _Scored, calibration: OutlierCalibration | None) -> dict[str, np.ndarray]:
    """Scores of images by their names, `[images]`; p-values as `p_mahalanobis` and `p_kl`.

    `parts` are arrays `reconstruction` `[images]`, `kl` `[images, groups]` and, where it was measured, `llr`.
    """
    found = outlier_scores(OutlierParts(parts["reconstruction"], parts["kl"], None), calibration)
    scores = {"mahalanobis": found.mahalanobis, "kl": found.kl, "nelbo_at_mean": found.nelbo_at_mean}
    scores |= {"p_mahalanobis": found.mahalanobis_p_value, "p_kl": found.kl_p_value}
    scores = {name: np.asarray(values) for name, values in scores.items() if values is not None}
    return scores | ({"llr": parts["llr"]} if "llr" in parts else {})


def aurocs(inside: _Scored, outside: _Scored) -> dict[str, float]:
    """Of each score the area under the ROC curve: how often an outlier has a higher one than another image."""
    from sklearn.metrics import roc_auc_score

    areas = {}
    for name in (name for name in inside if not name.startswith("p_")):
        is_outlier = np.repeat([0, 1], [len(inside[name]), len(outside[name])])
        areas[name] = float(roc_auc_score(is_outlier, np.concatenate([inside[name], outside[name]])))
    return areas


def flagged(scores: _Scored) -> dict[str, float]:
    """The share of images whose p-value is at most 0.05, by the score."""
    names = [name for name in scores if name.startswith("p_")]
    return {name.removeprefix("p_"): float((scores[name] <= FLAGGED_BELOW).mean()) for name in names}


def _figures(task: EvaluationTask, sets: Sequence[ImageSet], scores: Sequence[_Scored]) -> list[str]:
    """Writes figures into the run's `evaluation/`; their names in the run folder."""
    if not task.can_draw():
        return []
    from nvae_tf.reports import figures, task_figures

    run, folder, split = task.folder.path.absolute().name, task.folder.evaluation, task.split
    about = figures.Provenance(run, task.trained.step, None, task.seed, task.checkpoint_sha256)
    by_name = {one.name: of_set for one, of_set in zip(sets, scores, strict=True)}
    by = next(iter(scores[0]))
    shown = {
        f"{name}, by {by}": _most_outlying(task, one, by_name[name]) for name, one in zip(by_name, sets, strict=True)
    }
    drawn = {
        folder / f"outlier_scores-{split}.png": task_figures.histograms(by_name, about),
        folder / f"outlier_roc-{split}.png": task_figures.roc_curves(by_name, about),
        folder / f"outlier_maps-{split}.png": task_figures.maps(shown, about),
    }
    for file, figure in drawn.items():
        figures.save_figure(figure, file)
        task.status.keep(f"figure: {file}")
    return [str(file.relative_to(task.folder.path)) for file in drawn]


def _most_outlying(task: EvaluationTask, one: ImageSet, scores: _Scored) -> tuple[Any, np.ndarray, list[str]]:
    """Images of a set with the highest first score, their maps, and what is written below each."""
    name = next(iter(scores))
    numbers = np.argsort(-scores[name], kind="stable")[:_SHOWN]
    images, *_ = chosen_images(one.source, one.spec, task.split, numbers.tolist(), seed=task.seed)
    maps = outlier_parts(task.trained.model, tf.constant(images)).kl_map.numpy()
    notes = [digits(scores[name][number], 3) for number in numbers]
    return images, maps, notes
