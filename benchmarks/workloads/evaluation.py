"""Bounds on the likelihood of a batch of random images, as `train.evaluate` measures them."""

import pathlib

from benchmarks.train_step_worker import random_images
from benchmarks.workloads import IMPORTANCE_SAMPLES
from benchmarks.workloads.untrained import untrained_model
from nvae_tf.evaluation.likelihood import LikelihoodEvaluator


class Nelbo:
    """The negative evidence lower bound, metric `elbo`."""

    importance_samples = 0

    def __init__(self, preset: str, batch_size: int, folder: pathlib.Path):
        model = untrained_model(preset)
        self._images = random_images(model.config, batch_size)
        self._evaluator = LikelihoodEvaluator(model, batch_size, self.importance_samples)
        self.run()

    def run(self) -> None:
        """Evaluates the batch."""
        self._evaluator.evaluate_batch(self._images, seed=0, first=0)


class ImportanceWeighted(Nelbo):
    """The importance-weighted bound, metric `iw`."""

    importance_samples = IMPORTANCE_SAMPLES
