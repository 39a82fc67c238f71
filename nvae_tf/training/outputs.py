"""What a run writes on its way besides checkpoints: figures of training and test part, and pictures."""

import math

import numpy as np
import tensorflow as tf

from nvae_tf.data.pipeline import evaluation_batches, iterate
from nvae_tf.evaluation.latent_usage import active_units
from nvae_tf.evaluation.likelihood import Likelihood, LikelihoodEvaluator
from nvae_tf.models.metrics import RecentSteps
from nvae_tf.objective import bits_per_dimension, kl_weight, regularization_weight
from nvae_tf.optimization import averaged_weights
from nvae_tf.progress import Speed, StatusLine
from nvae_tf.training.pictures import FIXED_SEED, Pictures
from nvae_tf.training.records import MetricsFile, TensorBoardWriter
from nvae_tf.training.run import Run
from nvae_tf.training.run_folder import RunFolder
from nvae_tf.training.stopping import StopRequest


class RunOutputs:
    """Writes what is due at a step, and not again what is there already, so a run can go on at any step."""

    def __init__(self, folder: RunFolder, run: Run, stop: StopRequest):
        self.status = StatusLine()
        self.speed = Speed()
        self._folder, self._run, self._stop = folder, run, stop
        self._metrics = MetricsFile(folder.metrics_file)
        self._tensorboard = TensorBoardWriter(folder.tensorboard)
        self._batch_size = min(run.config.train.batch_size, run.images.test.count)
        self._evaluator = LikelihoodEvaluator(run.model, self._batch_size)
        self._pictures = Pictures(run, self._tensorboard, stop)

    def continue_from(self, step: int) -> None:
        """Forgets the figures of steps that will be made again, and what is damaged."""
        damaged = self._metrics.keep_until(step)
        if damaged:
            self.status.keep(f"{self._folder.metrics_file}: lines that are damaged or there twice: {damaged}, dropped.")

    def write_training_curves(self, step: int) -> None:
        """Writes the points of TensorBoard's training curves, if it is the step's turn."""
        if self._is_due(step, self._run.config.train.log_every_steps):
            values = {f"train/{name}": value for name, value in self.running_means().items()}
            values |= {f"schedule/{name}": value for name, value in self.schedules().items()}
            values |= _latest_figures(self._run.model.recent.read())
            self._tensorboard.scalars(step, values | {"speed/images_per_second": self._images_per_second()})

    def write_due(self, step: int) -> None:
        """Writes what is measured and drawn after a step, if it is its turn and not there yet.

        Raises:
          StopRequested: the process was told to stop.
          ValueError: the model has diverged.
        """
        settings = self._run.config.train
        if step == 0:
            return
        evaluates = self.is_evaluated(step) and not self._metrics.has(step)
        picture = self._folder.samples / f"step-{step:08d}.png"
        draws = self._is_due(step, settings.sample_every_steps) and not picture.exists()
        if not evaluates and not draws:
            return
        self.speed.pause()
        with averaged_weights(self._run.model):
            if evaluates:
                self._write_evaluation(step)
            if draws:
                self._pictures.write(step, picture)

    def is_evaluated(self, step: int) -> bool:
        """Whether the test images are scored after a step."""
        return step > 0 and self._is_due(step, self._run.config.train.evaluate_every_steps)

    def test_score(self, step: int) -> float:
        """The test images' negative bound in nats after a step at which they were scored."""
        return self._metrics.value(step, "test_nelbo_nats")

    def running_means(self) -> dict[str, float]:
        """Loss, reconstruction and KL of training, in nats per image, since the means were last reset."""
        return {metric.name: float(metric.result()) for metric in self._run.model.metrics}

    def schedules(self) -> dict[str, float]:
        """Learning rate, KL weight beta and regularisation weight lambda of the next step, refused ones not counted."""
        objective, taken = self._run.config.objective, int(self._run.model.optimizer.iterations.numpy())
        beta = kl_weight(tf.constant(taken), objective)
        return {
            "learning_rate": float(self._run.schedule(taken)),
            "kl_weight": float(beta),
            "regularization_weight": float(regularization_weight(beta, objective)),
        }

    def bits_per_dimension(self, nats: float) -> float:
        """Nats of an image as bits a real value."""
        return bits_per_dimension(nats, math.prod(self._run.images.spec.image_shape))

    def _is_due(self, step: int, interval: int) -> bool:
        return step % interval == 0 or step == self._run.length.total_steps

    def _images_per_second(self) -> float:
        return (self.speed.steps_per_second or 0.0) * self._run.images_a_step

    def _write_evaluation(self, step: int) -> None:
        images = self._run.images
        batches = evaluation_batches(images.test, images.spec, self._batch_size, FIXED_SEED)
        test = self._evaluator.evaluate(iterate(batches, images.test), FIXED_SEED, self._show_evaluation)
        bits = self.bits_per_dimension(test.nelbo_nats)
        active = active_units(test.kl_per_channel_nats, self._run.model.plan.latent_shapes())
        self._tensorboard.scalars(step, _test_scalars(test, active) | {"test/bits_per_dim": bits})
        training, schedules = self.running_means(), self.schedules()
        self._metrics.append(
            {
                "step": step,
                "epoch": step / self._run.length.steps_per_epoch,
                "learning_rate": schedules["learning_rate"],
                "kl_weight": schedules["kl_weight"],
                "train_loss": training["loss"],
                "train_nelbo_nats": training["reconstruction"] + training["kl"],
                "train_reconstruction_nats": training["reconstruction"],
                "train_kl_nats": training["kl"],
                "test_nelbo_nats": test.nelbo_nats,
                "test_reconstruction_nats": test.reconstruction_nats,
                "test_kl_nats": test.kl_nats,
                "test_bits_per_dim": bits,
                "images_per_second": self._images_per_second(),
                "active_units": int(active.sum()),
            }
        )

    def _show_evaluation(self, done: int) -> None:
        self._stop.check()
        if self.status.is_due:
            self.status.show(f"evaluating: {done:,} of {self._run.images.test.count:,} test images")


def _latest_figures(recent: RecentSteps) -> dict[str, float]:
    """Those of the latest step."""
    kl, norms = recent.kl_per_group[-1], recent.spectral_norms[-1]
    scalars = {f"train_kl_per_group/{index:02d}": value for index, value in enumerate(kl)}
    return scalars | {"spectral_norm/largest": norms.max(), "spectral_norm/sum": norms.sum()}


def _test_scalars(test: Likelihood, active: np.ndarray) -> dict[str, float]:
    parts = {"nelbo": test.nelbo_nats, "reconstruction": test.reconstruction_nats, "kl": test.kl_nats}
    scalars = {f"test/{name}_nats": value for name, value in parts.items()} | {"test/active_units": active.sum()}
    scalars |= {f"kl_per_group/{index:02d}": value for index, value in enumerate(test.kl_per_group_nats)}
    return scalars | {f"active_units/{index:02d}": value for index, value in enumerate(active)}
