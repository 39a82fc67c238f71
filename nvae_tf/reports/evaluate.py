"""Evaluates one checkpoint: what nvae-evaluate lists as metrics, in the run's evaluation file."""

import contextlib
import csv
import datetime
import functools
import importlib.util
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.data.pipeline import chosen_images, content_digest, images_alone
from nvae_tf.data.sources import ImageSource, load_split, place_of
from nvae_tf.data_sets import check_model_fits
from nvae_tf.evaluation.denoising import load_references, measure_noise
from nvae_tf.evaluation.fid import FidSettings, load_extractor, measure_fid
from nvae_tf.evaluation.likelihood import Likelihood, LikelihoodEvaluator
from nvae_tf.evaluation.outliers import ImageSet, load_image_sets, measure_outliers
from nvae_tf.evaluation.probe import load_probe, measure_probe
from nvae_tf.evaluation.table import ACTIVE_FROM, active_units, digits, table
from nvae_tf.evaluation.task import EvaluationTask, Workers
from nvae_tf.files import atomic_file, atomic_write
from nvae_tf.generation.sampling import rows_sharing_groups
from nvae_tf.latent_plan import LatentPlan
from nvae_tf.models.latents import active_channels
from nvae_tf.models.outlier_scores import outlier_parts
from nvae_tf.objective import bits_per_dimension
from nvae_tf.progress import StatusLine
from nvae_tf.reports.model_card import update_model_card
from nvae_tf.runs.checkpoints import checkpoint_sha256
from nvae_tf.runs.loading import load_run
from nvae_tf.runs.run_folder import RunFolder, check_class_names, read_run_config

# Metrics of an earlier evaluation are kept where all of these are the same.
_SAME = ("checkpoint_sha256", "data_sha256", "dataset", "split", "num_images", "seed")
_QUANTILE_95 = 1.959964  # the normal distribution's, for means over many images
_COLUMNS = 8
_OUTLIER_SCORES = ("mahalanobis", "mahalanobis_p_value", "kl", "kl_p_value")  # fields of `OutlierScores`
_MOST_WITH_ACTIVE_ONLY = 1000  # images of the second pass, which keeps a tenth of the channels


def evaluate_run(
    workdir: str | os.PathLike,
    metrics: Sequence[str] = ("elbo", "iw"),
    importance_samples: int = 1000,
    fid: FidSettings | None = None,
    checkpoint: str = "latest",
    split: str = "test",
    batch_size: int | None = None,
    seed: int = 0,
    data_path: str | None = None,
    outliers: Sequence[str] = (),
    scores: str | None = None,
    workers: Workers | None = None,
    command: str | None = None,
    references: str | None = None,
) -> None:
    """Measures a checkpoint and writes the evaluation file and its table into the run folder.

    The parameters are the flags of nvae-evaluate; `fid` holds the distances' flags. `workers` are the devices and the
    processes that share the images, by default TensorFlow's current strategy; the file notes `command`. Raises what
    `nvae_tf.load`, `load_split` and `load_extractor` raise, and ValueError where the model has diverged.
    """
    fid, workers, parts = fid or FidSettings(), workers or Workers(), []
    task = _load_task(RunFolder(pathlib.Path(workdir)), checkpoint, split, batch_size, seed, data_path, workers)
    if (scores or "outliers" in metrics) and isinstance(task.trained.model.outlier_calibration, str):
        raise ValueError(task.trained.model.outlier_calibration)
    if {*metrics} & {"elbo", "iw", "latents"}:  # one pass over the images measures these three
        parts.append(functools.partial(_measure_likelihood, task, metrics, importance_samples, scores))
    # Whatever may be missing is loaded before hours of work.
    if distance := next((name for name in ("fid", "frechet") if name in metrics), None):
        extractor = load_extractor(task, fid)
        parts.append(lambda: {distance: measure_fid(task, fid, extractor)})
    if "outliers" in metrics:
        parts.append(functools.partial(_measure_outliers, task, load_image_sets(task, outliers)))
    if "probe" in metrics:
        parts.append(functools.partial(_measure_probe, task, load_probe(task)))
    if "noise" in metrics:
        clean = load_references(task, references)
        parts.append(lambda: {"noise": measure_noise(task, clean)} if workers.is_chief else {})
    for measure in parts:
        measured = measure()
        if workers.is_chief:
            write_evaluation(task, measured, command)


def _load_task(folder: RunFolder, checkpoint, split, batch_size, seed, data_path, workers: Workers) -> EvaluationTask:
    """Loads the checkpoint and the images; `evaluate_run` describes the arguments."""
    read_run_config(folder)  # a shared run, which `load_run` loads too, has no folder to write into
    strategy, status = workers.local_strategy(), StatusLine()
    with strategy.scope():
        trained = load_run(folder.path, checkpoint)
    sha256, spec = checkpoint_sha256(trained.checkpoint), trained.config.data_at(data_path)
    check_model_fits(trained.config.model, spec)
    source = load_split(spec, split, status.report())
    if spec.labels:
        check_class_names(folder.images_file, source.class_names, place_of(spec))
    replicas = strategy.num_replicas_in_sync
    size = replicas * min(batch_size or trained.config.train.batch_size, math.ceil(source.count / replicas))
    digest = content_digest(source, spec)
    return EvaluationTask(folder, trained, sha256, spec, split, source, digest, size, seed, strategy, workers, status)


def _measure_likelihood(task: EvaluationTask, metrics: Sequence[str], importance_samples: int, scores) -> dict:
    """The bounds of all images, and the use of the latents, for which only the chief works on."""
    importance_samples = importance_samples if "iw" in metrics else 0
    evaluator = LikelihoodEvaluator(task.trained.model, task.batch_size, importance_samples, task.strategy)
    compute = functools.partial(evaluator.evaluate_batch, seed=task.seed)
    inputs = functools.partial(task.batches, task.source, task.spec)
    work = f"{task.data_sha256} {task.split} {importance_samples}"
    batches = task.shared_batches(work, task.source.count, task.batch_size, inputs, compute)
    likelihood = Likelihood.joined(batches, evaluator.numbers_of_samples)
    task.check_finite(likelihood)
    if not task.workers.is_chief:
        return {}
    if scores:
        _write_scores(task, likelihood, pathlib.Path(scores))
    measured = likelihood_metrics(likelihood, task.trained.model.plan, math.prod(task.spec.image_shape))
    if not task.trained.config.model.has_masses:
        name = task.trained.config.model.likelihood
        task.status.print(f"no bits/dim: the likelihood {name} is a density, without `exact_masses = True`")
        in_bits = "num_values", "bits_per_dim", "importance_weighted_bits_per_dim"
        measured = {name: value for name, value in measured.items() if name not in in_bits}
    return measured | ({"latents": _latents_metrics(task, likelihood)} if "latents" in metrics else {})


def _measure_outliers(task: EvaluationTask, sets: Sequence[ImageSet]) -> dict[str, Any]:
    """How well the scores tell outliers; the chief also draws the scores, and the most outlying images."""
    metrics, by_set = measure_outliers(task, sets)
    metrics["pictures"] = []
    if task.workers.is_chief and _can_draw(task.status):
        shown, score = {}, "mahalanobis" if metrics["calibrated"] else "kl"
        for images, (name, scores) in zip(sets, by_set.items(), strict=True):
            highest = np.argsort(-scores[score], kind="stable")[:6]
            chosen, *_ = chosen_images(*images, task.split, highest.tolist(), seed=task.seed)
            maps = outlier_parts(task.trained.model, tf.constant(chosen)).kl_map.numpy()
            shown[f"{name}, by {score}"] = chosen, maps, [digits(value, 3) for value in scores[score][highest]]
        drawn = {"scores": ("histograms", by_set), "roc": ("roc_curves", by_set), "maps": ("maps", shown)}
        files = {f"outlier_{name}-{task.split}.png": figure for name, figure in drawn.items()}
        metrics["pictures"] = _save_figures(task, files)
    return {"outliers": metrics}


def _measure_probe(task: EvaluationTask, sources: Sequence[ImageSource]) -> dict[str, Any]:
    """How well features tell classes, for which only the chief works, and the figure of it."""
    if not task.workers.is_chief:
        return {}
    measured = measure_probe(task, sources)
    drawn = {"probe.png": ("probe_curves", measured["labels"], measured["accuracy"])}
    measured["pictures"] = _save_figures(task, drawn, data="test images") if _can_draw(task.status) else []
    return {"probe": measured}


def _write_scores(task: EvaluationTask, likelihood: Likelihood, file: pathlib.Path) -> None:
    """Writes a CSV file with a line for each image."""
    columns = {"image": task.source.names(), "nelbo_nats": likelihood.nelbo}
    if task.trained.config.model.has_masses:
        columns["bits_per_dim"] = bits_per_dimension(likelihood.nelbo, math.prod(task.spec.image_shape))
    if task.trained.model.outlier_calibration is not None:
        score, batches = task.trained.model.outlier_score, task.batches(task.source, images_alone(task.spec))
        scored = [score(batch)._replace(parts=None) for batch in batches]  # the parts are as large as the images
        columns |= {name: np.concatenate([getattr(part, name) for part in scored]) for name in _OUTLIER_SCORES}
    # The name of a file need not be Unicode.
    with atomic_file(file) as partial, partial.open("w", newline="", errors="surrogateescape") as lines:
        csv.writer(lines).writerows([columns, *zip(*columns.values(), strict=True)])
    task.status.print(f"scores of every image: {file}")


def likelihood_metrics(likelihood: Likelihood, plan: LatentPlan, num_values: int) -> dict[str, Any]:
    """The bounds as the evaluation file has them: means over images, which have `num_values` numbers each."""
    per_group = likelihood.kl_per_group_nats
    per_image = {"nelbo_nats": likelihood.nelbo, "reconstruction_nats": likelihood.reconstruction}
    per_image["kl_nats"] = likelihood.kl.sum(axis=(1, 2))
    if likelihood.numbers_of_samples:
        per_image["importance_weighted_nats"] = likelihood.importance_weighted[:, -1]
    metrics = {
        "nelbo_nats": likelihood.nelbo_nats,
        "bits_per_dim": bits_per_dimension(likelihood.nelbo_nats, num_values),
        "reconstruction_nats": likelihood.reconstruction_nats,
        "kl_nats": likelihood.kl_nats,
        "kl_per_group_nats": per_group.tolist(),
        "kl_per_scale_nats": [float(per_group[list(scale.groups)].sum()) for scale in plan.scales],
        "scales": [{"height": scale.height, "width": scale.width, "groups": [*scale.groups]} for scale in plan.scales],
        "num_values": num_values,
        "half_widths_95": {name: half_width_95(values) for name, values in per_image.items()},
    }
    if not likelihood.numbers_of_samples:
        return metrics
    means = likelihood.importance_weighted.mean(axis=0, dtype=np.float64).tolist()
    effective = likelihood.effective_samples
    statistics = {"mean": effective.mean(), "median": np.median(effective), "smallest": effective.min()}
    return metrics | {
        "importance_samples": likelihood.numbers_of_samples[-1],
        "importance_weighted_nats": means[-1],
        "importance_weighted_bits_per_dim": bits_per_dimension(means[-1], num_values),
        "importance_weighted_nats_by_samples": dict(zip(map(str, likelihood.numbers_of_samples), means, strict=True)),
        "effective_samples": {name: float(value) for name, value in statistics.items()},
    }


def half_width_95(values: np.ndarray) -> float | None:
    """Half the width of the 95% confidence interval of the mean of independent values; None for a single one."""
    if len(values) < 2:
        return None
    return float(_QUANTILE_95 * values.std(ddof=1, dtype=np.float64) / math.sqrt(len(values)))


def _latents_metrics(task: EvaluationTask, likelihood: Likelihood) -> dict[str, Any]:
    """Active units, the KL of every channel, the figures of both, and the reconstruction with a tenth of the channels.

    That is the mean with the channels of the largest KL alone, beside the mean of the same images and draws with all.
    """
    model, per_channel, split = task.trained.model, likelihood.kl_per_channel_nats, task.split
    shapes, kept = model.plan.latent_shapes(), active_channels(per_channel)
    active, pictures = active_units(per_channel, shapes), []
    if _can_draw(task.status):
        bars = {
            f"kl_per_group-{split}.png": ("kl_per_group", likelihood.kl_per_group_nats, shapes),
            f"kl_per_channel-{split}.png": ("kl_per_channel", per_channel, shapes),
        }
        shared, samples = rows_sharing_groups(model, _COLUMNS, task.seed)
        rows = {"samples_with_shared_groups.png": ("group_decisions", samples, shared, model.plan.num_groups)}
        pictures = _save_figures(task, bars, data=f"{split} images") + _save_figures(task, rows, temperature=1.0)
    evaluator = LikelihoodEvaluator(model, task.batch_size, strategy=task.strategy, kept_channels=kept)
    count = math.ceil(min(task.source.count, _MOST_WITH_ACTIVE_ONLY) / task.batch_size)
    reconstruction = evaluator.evaluate(task.batches(task.source, task.spec, range(count)), task.seed).reconstruction
    return {
        "active_units_per_group": active.tolist(),
        "active_units": int(active.sum()),
        "active_from_nats": ACTIVE_FROM,
        "latent_channels": model.plan.num_latent_per_group,
        "kl_per_channel_nats": per_channel.tolist(),
        "active_only": {
            "channels": int(np.sum(kept)),
            "num_images": len(reconstruction),
            "reconstruction_nats": float(reconstruction.mean(dtype=np.float64)),
            "reconstruction_nats_of_all_channels": float(likelihood.reconstruction[: len(reconstruction)].mean()),
        },
        "pictures": pictures,
    }


@functools.cache
def _can_draw(status: StatusLine) -> bool:
    """Whether matplotlib, an extra, is installed; where it is not, the line says so once."""
    is_installed = importlib.util.find_spec("matplotlib") is not None
    if not is_installed:
        status.print('no figures, matplotlib is not installed: pip install "nvae_tf[reports]"')
    return is_installed


def _save_figures(task: EvaluationTask, drawn: Mapping[str, tuple[Any, ...]], **about: Any) -> list[str]:
    """Writes figures into the run's `evaluation/`; returns the files' names in the run.

    `drawn` has for every file a function of `figures` and its first arguments; `about` are fields of `Provenance`.
    """
    from nvae_tf.reports import figures

    origin = {"step": task.trained.step, "seed": task.seed, "checkpoint_sha256": task.checkpoint_sha256} | about
    origin["channels"] = task.trained.config.data.display_channels
    provenance = figures.Provenance(task.folder.path.absolute().name, **origin)
    for name, (function, *data) in drawn.items():
        figures.save_figure(getattr(figures, function)(*data, about=provenance), task.folder.evaluation / name)
        task.status.print(f"figure: {task.folder.evaluation / name}")
    return [f"{task.folder.evaluation.name}/{name}" for name in drawn]


def write_evaluation(task: EvaluationTask, measured: dict[str, Any], command: str | None = None) -> None:
    """Prints metrics, and adds them to the evaluation file, its table and the model card.

    The file has the command lines of all its metrics, one a line, the latest last.
    """
    file, checkpoint = task.folder.evaluation_file(task.split), pathlib.Path(task.trained.checkpoint)
    provenance = {
        "dataset": task.spec.name,
        "data": place_of(task.spec),
        "data_sha256": task.data_sha256,
        "split": task.split,
        "num_images": task.source.count,
        "seed": task.seed,
        "batch_size": task.batch_size,
        "checkpoint": "best" if checkpoint.parent.name == "best" else "latest",
        "step": task.trained.step,
        "checkpoint_sha256": task.checkpoint_sha256,
        "weights": "exponential moving averages (EMA) of the weights" if task.trained.has_ema else "weights as trained",
        "tensorflow": tf.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    earlier = _earlier(task, file, provenance)
    metrics = earlier | provenance | measured
    if half_widths := earlier.get("half_widths_95", {}) | measured.get("half_widths_95", {}):
        metrics["half_widths_95"] = half_widths
    if command:
        before = [line for line in str(earlier.get("command", "")).splitlines() if line != command]
        metrics["command"] = "\n".join([*before, command])
    atomic_write(file, json.dumps(metrics, indent=2, allow_nan=False) + "\n")
    atomic_write(file.with_suffix(".txt"), f"{table(metrics)}\n")
    task.status.print(f"{table(provenance | measured)}\n")
    update_model_card(task.folder, task.trained.model, task.status.print)


def _earlier(task: EvaluationTask, file: pathlib.Path, provenance: dict[str, Any]) -> dict[str, Any]:
    """The metrics that the file has of the same checkpoint, images and seed; any other file is put aside."""
    if not file.exists():
        return {}
    what, aside = "can't be read", f"{file.stem}-damaged.json"
    with contextlib.suppress(AttributeError, KeyError, RecursionError, TypeError, ValueError):
        earlier = json.loads(file.read_text())
        if all(earlier.get(name) == provenance[name] for name in _SAME):
            return earlier
        aside = f"{file.stem}-step-{earlier['step']}-seed-{earlier['seed']}-{earlier['checkpoint_sha256'][:8]}.json"
        what = "is of another checkpoint, other images or another seed"
    task.folder.evaluation.mkdir(exist_ok=True)
    file.replace(task.folder.evaluation / aside)
    task.status.print(f"{file}: {what}; it is kept as {task.folder.evaluation / aside}")
    return {}
