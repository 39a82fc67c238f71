"""The bounds on the likelihood: `elbo` and `iw`."""

import contextlib
import hashlib
import json
import math
import pathlib
from typing import Any

import numpy as np

from nvae_tf.checkpoints.checkpoint_files import checkpoint_sha256
from nvae_tf.data.pipeline import evaluation_batches, iterate
from nvae_tf.evaluation import Likelihood, LikelihoodEvaluator
from nvae_tf.latent_plan import LatentPlan
from nvae_tf.objective import bits_per_dimension
from train.evaluation.kept_batches import KeptBatches
from train.evaluation.progress import ImageProgress
from train.evaluation.task import EvaluationTask

# Of the normal distribution, for means over many images.
_QUANTILE_95 = 1.959964


def measure_likelihood(task: EvaluationTask, importance_samples: int) -> Likelihood | None:
    """Evaluates what no process has evaluated yet, and puts all together.

    Args:
      task: what to evaluate.
      importance_samples: K; 0 for the evidence lower bound alone.

    Returns:
      None in a process that is not the chief of several.
    """
    count = math.ceil(task.source.count / task.batch_size)
    kept = KeptBatches(_folder(task, importance_samples), count)
    if kept.is_begun(task.share):
        _do_missing(task, importance_samples, kept, count)
    if task.share.index:
        return None
    likelihood = kept.read()
    kept.remove()
    return likelihood


def _do_missing(task: EvaluationTask, importance_samples: int, kept: KeptBatches, count: int) -> None:
    missing = kept.missing(task.share)
    if not missing:
        return
    if len(missing) < count:
        task.status.keep(f"{count - len(missing):,} of {count:,} batches are there already")
    evaluator = LikelihoodEvaluator(task.trained.model, task.batch_size, importance_samples, task.strategy)
    progress = ImageProgress(task.status, task.source.count, task.source.count - _images_of(task, missing))
    batches = iterate(evaluation_batches(task.source, task.spec, task.batch_size, task.seed, missing), task.source)
    with contextlib.closing(batches):
        for number, images in zip(missing, batches, strict=True):
            if kept.has(number):
                # Another process has been here meanwhile.
                progress.count_other(len(images))
                continue
            first = number * task.batch_size
            part = evaluator.evaluate_batch(images, task.seed, first, progress.of_batch(first))
            if kept.is_over:
                return
            kept.write(number, part)


def _images_of(task: EvaluationTask, batches: list[int]) -> int:
    return sum(min(task.batch_size, task.source.count - number * task.batch_size) for number in batches)


def _folder(task: EvaluationTask, importance_samples: int) -> pathlib.Path:
    """A folder for this evaluation: of the same checkpoint, the same images and the same draws."""
    what = [checkpoint_sha256(task.trained.checkpoint), task.spec.name, task.place, task.split, task.source.count]
    what += [task.seed, task.batch_size, importance_samples]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    return task.folder.evaluation / f"unfinished-{digest}"


def likelihood_figures(likelihood: Likelihood, plan: LatentPlan, num_values: int) -> dict[str, Any]:
    """The measured bounds under the names of the evaluation file.

    Means over images, in nats an image or bits a real value.

    Args:
      likelihood: of all images.
      plan: of the model.
      num_values: height * width * channels of an image.
    """
    per_group = likelihood.kl_per_group_nats
    figures = {
        "nelbo_nats": likelihood.nelbo_nats,
        "bits_per_dim": bits_per_dimension(likelihood.nelbo_nats, num_values),
        "reconstruction_nats": likelihood.reconstruction_nats,
        "kl_nats": likelihood.kl_nats,
        "kl_per_group_nats": per_group.tolist(),
        "kl_per_scale_nats": [float(per_group[list(scale.groups)].sum()) for scale in plan.scales],
        "scales": [
            {"height": scale.height, "width": scale.width, "groups": list(scale.groups)} for scale in plan.scales
        ],
        "num_values": num_values,
        "half_widths_95": {
            "nelbo_nats": half_width_95(likelihood.nelbo),
            "reconstruction_nats": half_width_95(likelihood.reconstruction),
            "kl_nats": half_width_95(likelihood.kl.sum(axis=(1, 2))),
        },
    }
    if likelihood.numbers_of_samples:
        figures |= _importance_weighted_figures(likelihood, num_values)
        figures["half_widths_95"]["importance_weighted_nats"] = half_width_95(likelihood.importance_weighted[:, -1])
    return figures


def _importance_weighted_figures(likelihood: Likelihood, num_values: int) -> dict[str, Any]:
    means = likelihood.importance_weighted.mean(axis=0, dtype=np.float64)
    effective = likelihood.effective_samples
    return {
        "importance_samples": likelihood.numbers_of_samples[-1],
        "importance_weighted_nats": float(means[-1]),
        "importance_weighted_bits_per_dim": bits_per_dimension(float(means[-1]), num_values),
        "importance_weighted_nats_by_samples": {
            str(number): float(mean) for number, mean in zip(likelihood.numbers_of_samples, means, strict=True)
        },
        "effective_samples": {
            "mean": float(effective.mean()),
            "median": float(np.median(effective)),
            "smallest": float(effective.min()),
        },
    }


def half_width_95(values: np.ndarray) -> float | None:
    """Half the width of the 95% confidence interval of the mean of independent values; None for a single one."""
    if len(values) < 2:
        return None
    return float(_QUANTILE_95 * values.std(ddof=1, dtype=np.float64) / math.sqrt(len(values)))
