"""The training loop."""

import contextlib
import math
import os
import pathlib
import time
from collections.abc import Iterator

import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from nvae_tf.data.pictures import BadPicture
from nvae_tf.data.pipeline import iterate, training_batches
from nvae_tf.progress import StatusLine, duration
from nvae_tf.reports.model_card import keep_model_card
from nvae_tf.setting_checks import check
from nvae_tf.training.compilation import compiles_whole_step, step_function
from nvae_tf.training.devices import configure_runtime
from nvae_tf.training.image_record import check_images_a_step, note_images
from nvae_tf.training.kept_checkpoints import latest_checkpoint, step_of
from nvae_tf.training.outputs import RunOutputs
from nvae_tf.training.profiling import StepProfiler
from nvae_tf.training.recovery import Recovery
from nvae_tf.training.run import Run, length_warnings, load_images, new_run, run_length, with_length
from nvae_tf.training.run_folder import RunFolder, open_for_training
from nvae_tf.training.run_lock import lock_for_training
from nvae_tf.training.stopping import StopRequest, StopRequested, TrainingInterrupted
from nvae_tf.training.strategy import Replicas, chosen_replicas
from nvae_tf.training.training_state import TrainingState

# Several processes ask each other whether to stop; not at each step, that would hold up accelerators.
_AGREE_EVERY_STEPS = 10


def train_and_evaluate(config: ExperimentConfig, workdir: str | os.PathLike) -> None:
    """Trains a model in a run folder, from its latest checkpoint on if it has one.

    The weights after step n are a function of the settings alone: interrupted and continued runs end with the
    same. Several processes call this with the same arguments; the first of them, the chief, writes.

    Args:
      config: the settings.
      workdir: a new or empty folder, or that of the same run.

    Raises:
      ValueError: the settings do not fit each other, the devices or the data, the folder holds something else, another
        process trains in it, all its checkpoints are damaged, or training has diverged.
      OSError: the folder can't be written to; CheckpointNotWritten where that is noticed, or the disk is full, later.
      ConnectionError: the data must be downloaded and can't be.
      TrainingInterrupted: SIGINT, SIGTERM or SIGHUP came; a checkpoint was saved.
      WorkerLost: another of several processes has ended.
    """
    replicas = chosen_replicas(config.train)
    folder = RunFolder(pathlib.Path(workdir))
    lock = lock_for_training(folder, StatusLine().keep) if replicas.is_chief else contextlib.nullcontext()
    with replicas.raising_worker_lost(), lock:
        _train_on(replicas, config, workdir)


def _train_on(replicas: Replicas, config: ExperimentConfig, workdir: str | os.PathLike) -> None:
    configure_runtime()
    compiled = compiles_whole_step(config.train.xla, replicas.count)
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    images = load_images(config)
    length = run_length(config, images.train.count, replicas.count)
    config = with_length(config, length, workdir)
    # Before anything is written: settings that make no model leave no folder behind.
    run = new_run(config, length, images, workdir, replicas)
    check_images_a_step(RunFolder(pathlib.Path(workdir)).images_file, run)
    folder = _open_together(workdir, config, replicas)
    kept = config.train.keep_checkpoints, config.train.keep_checkpoint_every_hours
    recovery = Recovery(run)
    state = TrainingState(folder.checkpoints, run.model, run.model.optimizer, *kept, recovery.variables)
    step = state.restore(StatusLine().keep, tidies=replicas.is_chief)
    replicas.check_same_step(step, folder.path)
    with StopRequest() as stop:
        # Several processes stop together, after a step.
        outputs = RunOutputs(folder, run, stop if replicas.share.count == 1 else StopRequest())
        outputs.status.keep(_first_words(folder, run, step))
        if replicas.is_chief:
            outputs.continue_from(step)
            note_images(folder.images_file, run, outputs.status.keep)
            keep_model_card(folder, run.model, outputs.status.keep)
        profiled = config.train.profile_steps if replicas.is_chief else ()
        with StepProfiler(profiled, folder.tensorboard, outputs.status.keep) as profiler:
            profiler.note_steps(step + 1, length.total_steps)
            try:
                TrainingLoop(run, state, recovery, outputs, stop, profiler, compiled).go_on_from(step)
            finally:
                if replicas.is_chief:
                    keep_model_card(folder, run.model, outputs.status.keep)
        replicas.leave()
    outputs.status.keep(f"{folder.path} has all its {length.total_steps:,} steps.")


def _open_together(workdir: str | os.PathLike, config: ExperimentConfig, replicas: Replicas) -> RunFolder:
    """Opens the run folder, the chief first: it may have to be made."""
    if not replicas.is_chief:
        replicas.wait_for_all()
    folder = open_for_training(workdir, config)
    if replicas.is_chief:
        replicas.wait_for_all()
    return folder


class TrainingLoop:
    """Steps, with all that happens between them."""

    def __init__(
        self,
        run: Run,
        state: TrainingState,
        recovery: Recovery,
        outputs: RunOutputs,
        stop: StopRequest,
        profiler: StepProfiler,
        compiled: bool,
    ):
        self._run, self._state, self._recovery, self._outputs, self._stop = run, state, recovery, outputs, stop
        self._profiler = profiler
        self._settings = run.config.train
        self._saved_at = time.monotonic()
        self._train_step = step_function(run.replicas.strategy, run.model, compiled)

    def go_on_from(self, step: int) -> None:
        """Goes on from a step to the end.

        Raises:
          ValueError, CheckpointNotWritten, TrainingInterrupted: see `train_and_evaluate`.
        """
        if self._state.whole_step is None:
            # What the run goes back to if it diverges before the next.
            self._save(step)
        while step is not None:
            step = self._go_on_until_refused(step)

    def _go_on_until_refused(self, step: int) -> int | None:
        """Goes on to the end, or until it has to go back: to the step that is returned."""
        total = self._run.length.total_steps
        batches = self._batches(step)
        try:
            while True:
                self._write_due(step)
                if step >= total:
                    break
                self._stop_if_agreed(step)
                self._start_window(step)
                with self._profiler.step(step + 1):
                    self._train_step(self._run.replicas.divided(next(batches)))
                step += 1
                if self._recovery.must_go_back(step):
                    return self._go_back()
                self._show_progress(step)
                if self._run.replicas.is_chief:
                    self._outputs.write_training_curves(step)
                if self._is_checkpoint_due(step):
                    self._save(step)
        except (StopRequested, BadPicture) as reason:
            # After a bad picture the run can go on once the file is mended.
            if self._state.whole_step != step:
                self._save(step)
            if isinstance(reason, BadPicture):
                raise
            self._run.replicas.leave()
            raise TrainingInterrupted(step, self._stop.signal_number) from None
        finally:
            batches.close()
        return None

    def _batches(self, step: int) -> Iterator[tf.Tensor]:
        """This process's part of the batches from a step on."""
        run, images = self._run, self._run.images
        share = run.replicas.share
        batches = training_batches(images.train, images.spec, run.images_a_step, self._settings.seed, step, share)
        return iterate(batches, images.train)

    def _go_back(self) -> int:
        """To the latest checkpoint.

        Raises:
          ValueError: the run has gone back as often as it may, or its checkpoints are gone or damaged.
        """
        is_chief = self._run.replicas.is_chief
        tell = self._outputs.status.keep
        trouble = self._recovery.trouble(step_of(latest_checkpoint(self._state.folder) or "step-0"))
        reached = self._state.restore(tell, tidies=is_chief)
        check(
            self._state.whole_step is not None,
            f"{trouble.reason}, and there is nothing to go back to: somebody has deleted the checkpoints in "
            f"{self._state.folder}",
        )
        self._recovery.lower_rate(trouble)
        tell(f"{trouble.reason}. Back to step {reached:,}, with {trouble.rate_factor:g} of the learning rate.")
        self._run.replicas.check_same_step(reached, self._state.folder)
        if is_chief:
            self._outputs.continue_from(reached)
        return reached

    def _stop_if_agreed(self, step: int) -> None:
        """Stops all processes at the same step if one of them was told to stop."""
        if self._run.replicas.share.count > 1 and step % _AGREE_EVERY_STEPS:
            return
        number = self._run.replicas.agreed_signal(self._stop.signal_number)
        if number is not None:
            # Not otherwise: one that has come while the others were asked is for the next step.
            self._stop.signal_number = number
            raise StopRequested

    def _write_due(self, step: int) -> None:
        if not self._run.replicas.is_chief:
            return
        self._outputs.write_due(step)
        if self._settings.keep_best and self._outputs.is_evaluated(step):
            self._state.save_if_best(step, self._outputs.test_score(step))

    def _start_window(self, step: int) -> None:
        """Running means start anew at fixed steps and are in checkpoints: an interruption does not show."""
        if step % self._settings.log_every_steps == 0:
            for metric in self._run.model.metrics:
                metric.reset_state()

    def _is_checkpoint_due(self, step: int) -> bool:
        minutes = (time.monotonic() - self._saved_at) / 60.0
        by_time = 0.0 < self._settings.checkpoint_every_minutes <= minutes
        by_step = step % self._settings.checkpoint_every_steps == 0
        # Not in the middle of trouble: it is to be gone back to.
        return step >= self._run.length.total_steps or ((by_time or by_step) and self._recovery.is_sound)

    def _save(self, step: int) -> None:
        if self._run.replicas.is_chief:
            self._state.save(step)
        self._saved_at = time.monotonic()

    def _show_progress(self, step: int) -> None:
        self._outputs.speed.count_step()
        if self._outputs.status.is_due or step == self._run.length.total_steps:
            self._outputs.status.show(self._progress_line(step))

    def _progress_line(self, step: int) -> str:
        means, schedules = self._outputs.running_means(), self._outputs.schedules()
        nelbo = means["reconstruction"] + means["kl"]
        in_bits = self._run.config.model.likelihood != "bernoulli"
        bound = f"{self._outputs.bits_per_dimension(nelbo):.4f} bits/dim" if in_bits else f"{nelbo:.2f} nats"
        line = (
            f"step {step:,}/{self._run.length.total_steps:,}  loss {means['loss']:.2f}  NELBO {bound}  "
            f"KL {means['kl']:.2f}  rate {schedules['learning_rate']:.2g}  beta {schedules['kl_weight']:.2f}"
        )
        if means["skipped_steps"]:
            line += f"  {means['skipped_steps']:.0f} steps refused"
        steps_per_second = self._outputs.speed.steps_per_second
        if steps_per_second:
            left = duration((self._run.length.total_steps - step) / steps_per_second)
            line += f"  {steps_per_second * self._run.images_a_step:,.0f} images/s  {left} left"
        return line


def _first_words(folder: RunFolder, run: Run, step: int) -> str:
    length, images = run.length, run.images
    if step >= length.total_steps:
        return f"{folder.path}: a finished run."
    count = run.replicas.count
    on = f" on {count} replicas" if count > 1 else ""
    weights = sum(math.prod(weight.shape) for weight in run.model.trainable_variables)
    words = (
        f"{images.spec.name}: {images.train.count:,} training and {images.test.count:,} test images; "
        f"{run.model.plan.num_groups} latent groups, {weights:,} weights.\n"
        f"{length.total_steps:,} steps of {run.images_a_step} images{on}, {length.steps_per_epoch} an "
        f"epoch, into {folder.path}{f', from step {step:,} on' if step else ''}. "
        "The first step takes longer: TensorFlow builds its graph."
    )
    return "\n".join([words, *length_warnings(run.config, length)])
