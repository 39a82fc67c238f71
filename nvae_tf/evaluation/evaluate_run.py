"""All that is asked for of one checkpoint, in the run folder's evaluation file and as a table."""

import datetime
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from nvae_tf.evaluation.fid_metric import FidSettings, load_extractor, measure_fid, samples_of
from nvae_tf.evaluation.latents_metric import latents_figures
from nvae_tf.evaluation.likelihood_metric import batches_of, likelihood_figures, measure_likelihood
from nvae_tf.evaluation.table import table
from nvae_tf.evaluation.task import EvaluationTask
from nvae_tf.files import atomic_write
from nvae_tf.reports.keep_model_card import keep_model_card

# Of one pass over the images.
_LIKELIHOOD_METRICS = ("elbo", "iw", "latents")
# Figures of another evaluation are kept where all of these are the same.
_SAME = ("checkpoint_sha256", "data_sha256", "dataset", "split", "num_images", "seed")


def evaluate_run(
    task: EvaluationTask, metrics: Sequence[str], importance_samples: int, fid: FidSettings
) -> dict[str, Any] | None:
    """Measures, writes the evaluation file and the table into the run folder, and prints the table.

    Figures that are in the file already stay there, if they are of the same checkpoint, images and seed. Several
    processes share the work.

    Returns:
      What was written; None in a process that is not the chief of several.
    """
    # Before hours of work: the file may be missing, or the network.
    extractor = load_extractor(task, fid) if "fid" in metrics else None
    figures = None
    if set(metrics) & set(_LIKELIHOOD_METRICS):
        samples = importance_samples if "iw" in metrics else 0
        likelihood = measure_likelihood(task, samples)
        if likelihood is not None:
            plan = task.trained.model.plan
            measured = likelihood_figures(likelihood, plan, math.prod(task.spec.image_shape))
            if "latents" in metrics:
                measured["latents"] = latents_figures(task, likelihood)
            figures = _write(task, measured)
            batches_of(task, samples).remove()
    if extractor is not None:
        distance = measure_fid(task, fid, extractor)
        if distance is not None:
            figures = _write(task, {"fid": distance})
            samples_of(task, fid, extractor).remove()
    if figures is not None:
        file = task.folder.evaluation_file(task.split)
        task.status.keep(f"{table(figures)}\n\nwritten to {file} and {file.with_suffix('.txt').name}")
    return figures


def _write(task: EvaluationTask, measured: dict[str, Any]) -> dict[str, Any]:
    """Adds to the evaluation file and tells it on the model card; returns all that the file has then."""
    file = task.folder.evaluation_file(task.split)
    provenance = _provenance(task)
    earlier = _earlier(task, file, provenance)
    figures = earlier | provenance | measured
    half_widths = earlier.get("half_widths_95", {}) | measured.get("half_widths_95", {})
    if half_widths:
        figures["half_widths_95"] = half_widths
    atomic_write(file, json.dumps(figures, indent=2, allow_nan=False) + "\n")
    atomic_write(file.with_suffix(".txt"), f"{table(figures)}\n")
    keep_model_card(task.folder, task.trained.model, task.status.keep)
    return figures


def _provenance(task: EvaluationTask) -> dict[str, Any]:
    """What was evaluated, when and with what."""
    checkpoint = pathlib.Path(task.trained.checkpoint)
    return {
        "dataset": task.spec.name,
        "data": task.place,
        "data_sha256": task.data_sha256,
        "split": task.split,
        "num_images": task.source.count,
        "seed": task.seed,
        "batch_size": task.batch_size,
        "checkpoint": "best" if checkpoint.parent.name == "best" else "latest",
        "step": task.trained.step,
        "checkpoint_sha256": task.checkpoint_sha256,
        "weights": "running means of the weights" if task.trained.has_running_means else "weights as trained",
        "tensorflow": tf.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _earlier(task: EvaluationTask, file: pathlib.Path, provenance: dict[str, Any]) -> dict[str, Any]:
    """What the file has already, if it is of the same checkpoint and images; if not, it is put aside."""
    if not file.exists():
        return {}
    try:
        earlier = json.loads(file.read_text())
        if all(earlier.get(name) == provenance[name] for name in _SAME):
            return earlier
        aside = f"{file.stem}-step-{earlier['step']}-seed-{earlier['seed']}-{earlier['checkpoint_sha256'][:8]}.json"
        what = "is of another checkpoint, other images or another seed"
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        aside, what = f"{file.stem}-damaged.json", "can't be read"
    task.folder.evaluation.mkdir(exist_ok=True)
    file.replace(task.folder.evaluation / aside)
    task.status.keep(f"{file}: {what}; it is kept as {task.folder.evaluation / aside}")
    return {}
