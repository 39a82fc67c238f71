"""All that is asked for of one checkpoint, in the run folder's evaluation file and as a table."""

import datetime
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from nvae_tf.checkpoints.checkpoint_files import checkpoint_sha256
from nvae_tf.whole_files import write_whole
from train.evaluation.fid_metric import FidSettings, fid_figures
from train.evaluation.latents_metric import latents_figures
from train.evaluation.likelihood_metric import likelihood_figures, measure_likelihood
from train.evaluation.table import table
from train.evaluation.task import EvaluationTask

# Of one pass over the images.
_LIKELIHOOD_METRICS = ("elbo", "iw", "latents")
# Figures of another evaluation are kept where all of these are the same.
_SAME = ("checkpoint_sha256", "dataset", "data", "split", "num_images", "seed")


def evaluate_run(
    task: EvaluationTask, metrics: Sequence[str], importance_samples: int, fid: FidSettings
) -> dict[str, Any] | None:
    """Measures, prints a table, and writes the evaluation file and the table into the run folder.

    Figures that are in the file already stay there, if they are of the same checkpoint, images and seed. Several
    processes share what is measured of the likelihood; the chief alone does the rest.

    Returns:
      What was written; None in a process that is not the chief of several.
    """
    checkpoint = task.trained.checkpoint
    figures: dict[str, Any] = {}
    likelihood = None
    if set(metrics) & set(_LIKELIHOOD_METRICS):
        likelihood = measure_likelihood(task, importance_samples if "iw" in metrics else 0)
    if task.share.index:
        task.status.keep(f"worker {task.share.index}: done; worker 0 puts the figures together")
        return None
    if likelihood is not None:
        plan = task.trained.model.plan
        figures |= likelihood_figures(likelihood, plan, math.prod(task.spec.image_shape))
        if "latents" in metrics:
            figures["latents"] = latents_figures(task, likelihood)
    if "fid" in metrics:
        figures["fid"] = fid_figures(task, fid)
    file = task.folder.evaluation_file(task.split)
    provenance = _provenance(task, checkpoint)
    figures = _joined(_earlier(file, provenance), provenance | figures)
    text = table(figures)
    write_whole(file, json.dumps(figures, indent=2) + "\n")
    write_whole(file.with_suffix(".txt"), f"{text}\n")
    task.status.keep(f"{text}\n\nwritten to {file} and {file.with_suffix('.txt').name}")
    return figures


def _provenance(task: EvaluationTask, checkpoint: str) -> dict[str, Any]:
    """What was evaluated, when and with what."""
    return {
        "dataset": task.spec.name,
        "data": task.place,
        "split": task.split,
        "num_images": task.source.count,
        "seed": task.seed,
        "batch_size": task.batch_size,
        "checkpoint": "best" if pathlib.Path(checkpoint).parent.name == "best" else "latest",
        "step": task.trained.step,
        "checkpoint_sha256": checkpoint_sha256(checkpoint),
        "weights": "running means of the weights" if task.trained.has_running_means else "weights as trained",
        "precision": task.trained.model.dtype_policy.name,
        "tensorflow": tf.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _joined(earlier: dict[str, Any], figures: dict[str, Any]) -> dict[str, Any]:
    half_widths = earlier.get("half_widths_95", {}) | figures.get("half_widths_95", {})
    return earlier | figures | ({"half_widths_95": half_widths} if half_widths else {})


def _earlier(file: pathlib.Path, provenance: dict[str, Any]) -> dict[str, Any]:
    """What the file has already, if it is of the same checkpoint and images."""
    try:
        earlier = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    same = isinstance(earlier, dict) and all(earlier.get(name) == provenance[name] for name in _SAME)
    return earlier if same else {}
