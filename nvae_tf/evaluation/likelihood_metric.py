"""The bounds on the likelihood: `elbo` and `iw`."""

import contextlib
import hashlib
import json
import math
from typing import Any

import numpy as np

from nvae_tf.data.pipeline import evaluation_batches, iterate
from nvae_tf.evaluation.kept_batches import KeptBatches
from nvae_tf.evaluation.likelihood import Likelihood
from nvae_tf.evaluation.likelihood_evaluator import LikelihoodEvaluator
from nvae_tf.evaluation.progress import ImageProgress
from nvae_tf.evaluation.task import EvaluationTask
from nvae_tf.latent_plan import LatentPlan
from nvae_tf.objective import bits_per_dimension

# Of the normal distribution, for means over many images.
_QUANTILE_95 = 1.959964


def measure_likelihood(task: EvaluationTask, importance_samples: int) -> Likelihood | None:
    """Evaluates what no process has evaluated yet, and puts all together.

    Args:
      task: what to evaluate.
      importance_samples: K; 0 for the evidence lower bound alone.

    Returns:
      None in a process that is not the chief of several, or where another one has been faster.

    Raises:
      ValueError: the model has diverged.
    """
    kept = batches_of(task, importance_samples)
    if not kept.is_begun(task.share):
        task.status.keep(
            f"worker {task.share.index}: nothing to do; worker 0 is through, has not begun, or evaluates another "
            "checkpoint or with another number of images at a time"
        )
        return None
    _do_missing(task, importance_samples, kept)
    if task.share.index:
        task.status.keep(f"worker {task.share.index}: done; worker 0 puts the figures together")
        return None
    parts: list[Likelihood] = []
    try:
        kept.for_each(lambda arrays: parts.append(_likelihood(arrays)))
    except FileNotFoundError:
        file = task.folder.evaluation_file(task.split)
        task.status.keep(f"another train.evaluate has put the batches together meanwhile; the figures are in {file}")
        return None
    likelihood = Likelihood.joined(parts)
    if not likelihood.is_finite():
        kept.remove()
        raise ValueError(f"{task.trained.checkpoint}: the model has diverged, its scores are not finite")
    return likelihood


def batches_of(task: EvaluationTask, importance_samples: int) -> KeptBatches:
    """The batches of an evaluation: of the same checkpoint, the same images and the same draws."""
    what = [task.checkpoint_sha256, task.data_sha256, task.spec.name, task.split]
    what += [task.seed, task.batch_size, importance_samples]
    digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]
    return KeptBatches(task.folder.evaluation / f"unfinished-{digest}", math.ceil(task.source.count / task.batch_size))


def _do_missing(task: EvaluationTask, importance_samples: int, kept: KeptBatches) -> None:
    missing = kept.missing(task.share)
    if not missing:
        return
    if len(missing) < kept.count:
        task.status.keep(f"{kept.count - len(missing):,} of {kept.count:,} batches are there already")
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
            if not kept.write(number, _arrays(part)):
                return


def _arrays(part: Likelihood) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in part._asdict().items()}


def _likelihood(arrays: dict[str, np.ndarray]) -> Likelihood:
    numbers = tuple(int(number) for number in arrays.pop("numbers_of_samples"))
    return Likelihood(numbers_of_samples=numbers, **arrays)


def _images_of(task: EvaluationTask, batches: list[int]) -> int:
    return sum(min(task.batch_size, task.source.count - number * task.batch_size) for number in batches)


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
