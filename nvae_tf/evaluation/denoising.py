"""How well a model of noisy images (`data.noise`) tells signal and noise."""

import functools
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.evaluation.task import EvaluationTask
from nvae_tf.models.denoising import passing_noise
from nvae_tf.models.latents import image_seeds
from nvae_tf.progress import ImageProgress


def measure_noise(task: EvaluationTask) -> dict[str, Any]:
    """How much of the noise of images is in the signal at the posterior's means."""
    model, spec, passing = task.trained.model, task.spec, []
    specs = [tf.TensorSpec([None, *spec.image_shape]), tf.TensorSpec([None, 2], tf.int32)]
    specs += [tf.TensorSpec([None], tf.int32)] * spec.labels
    measure = tf.function(functools.partial(passing_noise, model), specs, autograph=False)
    progress, first = ImageProgress(task.status.show_if_due, task.source.count), 0
    for batch in task.batches(task.source, spec):
        images, *labels = batch if isinstance(batch, tuple) else (batch,)
        _, part = measure(images, image_seeds(task.seed, len(images), first), *labels)
        passing.append(part)
        first += len(images)
        progress.show(first)
    passing = np.concatenate(passing)
    task.check_finite([passing])
    return {"passes": float(passing.mean(dtype=np.float64)), "num_images": len(passing)}
