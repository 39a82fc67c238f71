"""The training loop."""

import math
import os
import pathlib

import tensorflow as tf

from nvae_tf.checkpoints.run_folder import open_for_training
from nvae_tf.checkpoints.training_state import TrainingState
from nvae_tf.config import ExperimentConfig
from nvae_tf.data.pipeline import training_batches
from nvae_tf.models import NVAE
from train.outputs import RunOutputs
from train.preparation import Images, RunLength, compiled_model, load_images, run_length, with_length
from train.progress import duration
from train.stopping import StopRequest, StopRequested, TrainingInterrupted


def train_and_evaluate(config: ExperimentConfig, workdir: str | os.PathLike) -> None:
    """Trains a model in a run folder, from its latest checkpoint on if it has one.

    The weights after step n are a function of the settings alone: interrupted and continued runs end with the
    same.

    Args:
      config: the settings.
      workdir: a new or empty folder, or that of the same run.

    Raises:
      ValueError: the settings do not fit each other or the data, the folder holds something else, a
        checkpoint is damaged, or the loss has become infinite.
      ConnectionError: the data must be downloaded and can't be.
      TrainingInterrupted: SIGINT or SIGTERM came; a checkpoint was saved.
    """
    images = load_images(config)
    length = run_length(config, images.train.count)
    config = with_length(config, length)
    folder = open_for_training(workdir, config)
    model = compiled_model(config, length)
    state = TrainingState(folder.checkpoints, model, model.optimizer, config.train.keep_checkpoints)
    step = state.restore()
    with StopRequest() as stop:
        outputs = RunOutputs(folder, config, length, images, model, stop)
        outputs.continue_from(step)
        loop = TrainingLoop(config, length, images, model, state, outputs, stop)
        outputs.status.keep(_first_words(folder.path, config, length, images, model, step))
        loop.run(step)
    outputs.status.keep(f"Done: {length.total_steps:,} steps in {folder.path}")


class TrainingLoop:
    """Steps, with all that happens between them."""

    def __init__(
        self,
        config: ExperimentConfig,
        length: RunLength,
        images: Images,
        model: NVAE,
        state: TrainingState,
        outputs: RunOutputs,
        stop: StopRequest,
    ):
        self._settings = config.train
        self._seed = config.train.seed
        self._length, self._images, self._model = length, images, model
        self._state, self._outputs, self._stop = state, outputs, stop
        self._in_bits = config.model.likelihood != "bernoulli"
        shape = (self._settings.batch_size, *images.spec.image_shape)
        # No autograph: the model is written in TensorFlow's own control flow, and traces faster without.
        self._train_step = tf.function(
            model.train_step, input_signature=[tf.TensorSpec(shape)], autograph=False
        )

    def run(self, step: int) -> None:
        """Goes on from a step to the end.

        Raises:
          ValueError, TrainingInterrupted: see `train_and_evaluate`.
        """
        saved = step
        batches = iter(
            training_batches(
                self._images.train, self._images.spec, self._settings.batch_size, self._seed, step
            )
        )
        try:
            while True:
                self._outputs.write_due(step, self._running_means())
                if step >= self._length.total_steps:
                    break
                self._stop.check()
                self._start_window(step)
                self._train_step(next(batches))
                step += 1
                self._show_progress(step)
                if step % self._settings.checkpoint_every_steps == 0 or step >= self._length.total_steps:
                    self._save(step)
                    saved = step
        except StopRequested:
            if saved != step:
                self._save(step)
            raise TrainingInterrupted(step, self._stop.signal_number) from None

    def _start_window(self, step: int) -> None:
        """Running means start anew at fixed steps and are in checkpoints, so an interruption does not show."""
        if step % self._settings.log_every_steps == 0:
            for metric in self._model.metrics:
                metric.reset_state()

    def _running_means(self) -> dict[str, float]:
        return {metric.name: float(metric.result()) for metric in self._model.metrics}

    def _save(self, step: int) -> None:
        means = self._running_means()
        if not math.isfinite(means["loss"]):
            raise ValueError(
                f"the loss is {means['loss']} at step {step}: training has diverged. No checkpoint of it is kept; try a "
                "lower optimizer.learning_rate, longer optimizer.warmup_epochs or a higher objective.regularisation"
            )
        self._state.save(step)

    def _show_progress(self, step: int) -> None:
        speed, status = self._outputs.speed, self._outputs.status
        speed.count_step()
        if status.is_due or step == self._length.total_steps:
            status.show(self._progress_line(step))

    def _progress_line(self, step: int) -> str:
        means, schedules = self._running_means(), self._outputs.schedules(step)
        nelbo = means["reconstruction"] + means["kl"]
        bound = (
            f"{self._outputs.bits_per_dimension(nelbo):.4f} bits/dim"
            if self._in_bits
            else f"{nelbo:.2f} nats"
        )
        line = (
            f"step {step:,}/{self._length.total_steps:,}  loss {means['loss']:.2f}  NELBO {bound}  KL {means['kl']:.2f}  "
            f"rate {schedules['learning_rate']:.2g}  beta {schedules['kl_weight']:.2f}"
        )
        steps_per_second = self._outputs.speed.steps_per_second
        if steps_per_second:
            left = duration((self._length.total_steps - step) / steps_per_second)
            line += f"  {steps_per_second * self._settings.batch_size:,.0f} images/s  {left} left"
        return line


def _first_words(
    path: pathlib.Path, config: ExperimentConfig, length: RunLength, images: Images, model: NVAE, step: int
) -> str:
    weights = sum(math.prod(weight.shape) for weight in model.trainable_variables)
    if step >= length.total_steps:
        return f"{path} has all its {length.total_steps:,} steps."
    return (
        f"{images.spec.name}: {images.train.count:,} training and {images.test.count:,} test images; "
        f"{model.plan.num_groups} latent groups, {weights:,} weights.\n"
        f"{length.total_steps:,} steps of {config.train.batch_size} images, {length.steps_per_epoch} an epoch, into {path}"
        + (f", from step {step:,} on" if step else "")
        + ". The first step takes longer: TensorFlow builds its graph."
    )
