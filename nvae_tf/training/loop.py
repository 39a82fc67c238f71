"""The training loop."""

import contextlib
import dataclasses
import math
import os
import shlex
import signal
import time
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf

from nvae_tf.config import ExperimentConfig, check
from nvae_tf.data.pictures import BadPicture
from nvae_tf.data.pipeline import iterate, training_batches
from nvae_tf.progress import StatusLine, duration
from nvae_tf.reports.model_card import keep_model_card
from nvae_tf.training.checkpoints import TrainingState, latest_checkpoint, step_of
from nvae_tf.training.outputs import RunOutputs
from nvae_tf.training.profiling import StepProfiler
from nvae_tf.training.recovery import Recovery
from nvae_tf.training.run import (
    Run,
    check_images_a_step,
    length_warnings,
    load_images,
    new_run,
    note_images,
    run_length,
    with_length,
)
from nvae_tf.training.run_folder import RunFolder, lock_for_training, open_for_training
from nvae_tf.training.stopping import StopRequest
from nvae_tf.training.strategy import Replicas, chosen_replicas, compiles_whole_step, configure_runtime, step_function

# Several processes ask each other whether to stop; not at each step, that would hold up accelerators.
_AGREE_EVERY_STEPS = 10


class TrainingResult(NamedTuple):
    """At which step a training has ended, and the signal that interrupted it: None for a run that has all its steps."""

    step: int
    signal_number: int | None = None

    @property
    def exit_code(self) -> int:
        """0, or 128 and the signal's number, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 0 if self.signal_number is None else 128 + self.signal_number

    def __str__(self) -> str:
        if self.signal_number is None:
            return f"finished at step {self.step}"
        return f"interrupted at step {self.step} by {signal.Signals(self.signal_number).name}"


def train_and_evaluate(config: ExperimentConfig, workdir: str | os.PathLike) -> TrainingResult:
    """Trains a model in a run folder, from its latest checkpoint on if it has one.

    The weights after step n are a function of the settings alone: interrupted and continued runs end with the
    same. Several processes call this with the same arguments; the first of them, the chief, writes. SIGINT, SIGTERM and
    SIGHUP end it with a checkpoint. `workdir` is a new or empty folder, or that of the same run.

    Raises:
      ValueError: the settings do not fit each other, the devices or the data, the folder holds something else, another
        process trains in it, all its checkpoints are damaged, or training has diverged.
      OSError: the folder can't be written to; CheckpointNotWritten where that is noticed, or the disk is full, later.
      ConnectionError: the data must be downloaded and can't be.
      WorkerLost: another of several processes has ended.
    """
    replicas, folder = chosen_replicas(config.train), RunFolder(workdir)
    lock = lock_for_training(folder, StatusLine().keep) if replicas.is_chief else contextlib.nullcontext()
    with replicas.raising_worker_lost(), lock:
        return _train_on(replicas, config, folder)


def _train_on(replicas: Replicas, config: ExperimentConfig, folder: RunFolder) -> TrainingResult:
    configure_runtime()
    compiled = compiles_whole_step(config.train.xla, replicas.count)
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    images = load_images(config)
    length = run_length(config, images.train.count, replicas.count)
    config = with_length(config, length, folder.path)
    # Before anything is written: settings that make no model leave no folder behind.
    run = new_run(config, length, images, folder.path, replicas)
    check_images_a_step(folder.images_file, run)
    # The chief first: the folder may have to be made.
    if not replicas.is_chief:
        replicas.wait_for_all()
    open_for_training(folder.path, config)
    if replicas.is_chief:
        replicas.wait_for_all()
    recovery = Recovery(run)
    kept = config.train.keep_checkpoints, config.train.keep_checkpoint_every_hours
    state = TrainingState(folder.checkpoints, run.model, run.model.optimizer, *kept, recovery.variables)
    step = state.restore(StatusLine().keep, tidies=replicas.is_chief)
    replicas.check_same_step(step, folder.path)
    with StopRequest() as stop:
        # Several processes stop together, after a step.
        outputs = RunOutputs(folder, run, stop if replicas.shard.count == 1 else StopRequest())
        report = outputs.status.keep
        report(_first_words(folder, run, step))
        if replicas.is_chief:
            outputs.continue_from(step)
            note_images(folder.images_file, run, report)
            keep_model_card(folder, run.model, report)
        profiled = config.train.profile_steps if replicas.is_chief else ()
        with StepProfiler(profiled, folder.tensorboard, report) as profiler:
            profiler.note_steps(step + 1, length.total_steps)
            try:
                result = TrainingLoop(run, state, recovery, outputs, stop, profiler, compiled).continue_from(step)
            finally:
                if replicas.is_chief:
                    keep_model_card(folder, run.model, report)
        replicas.leave()
    if result.signal_number is None:
        report(_last_words(folder, run, outputs))
    return result


@dataclasses.dataclass
class TrainingLoop:
    """Steps, with all that happens between them."""

    run: Run
    state: TrainingState
    recovery: Recovery
    outputs: RunOutputs
    stop: StopRequest
    profiler: StepProfiler
    compiled: bool

    def __post_init__(self):
        self._settings, self._saved_at = self.run.config.train, time.monotonic()
        self._train_step = step_function(self.run.replicas.strategy, self.run.model, self.compiled)

    def continue_from(self, step: int) -> TrainingResult:
        """Trains from a step to the end, or until a signal interrupts it; raises what `train_and_evaluate` raises."""
        if self.state.whole_step is None:
            # The run is rolled back to it if it diverges before the next.
            self._save(step)
        run, images, seed = self.run, self.run.images, self._settings.seed
        while True:
            batches = training_batches(images.train, images.spec, run.images_a_step, seed, step, run.replicas.shard)
            with contextlib.closing(iterate(batches, images.train)) as iterator:
                result = self._train(step, iterator)
            if result is not None:
                return result
            step = self._roll_back()

    def _train(self, start: int, batches: Iterator[tf.Tensor]) -> TrainingResult | None:
        """Trains from a step on; None where the run has diverged and must be rolled back."""
        total = self.run.length.total_steps
        if not self._write_due(start):
            return self._interrupted(start, self.stop.signal_number)
        for step in range(start, total):
            number = self.agreed_signal(step)
            if number is not None:
                return self._interrupted(step, number)
            if step % self._settings.log_every_steps == 0:
                # Means start anew at fixed steps and are in checkpoints: an interruption does not show.
                for metric in self.run.model.metrics:
                    metric.reset_state()
            with self.profiler.step(step + 1):
                with self._saved_if_bad_picture(step):
                    images = next(batches)
                self._train_step(self.run.replicas.divided(images))
            if self.recovery.must_roll_back(step + 1):
                return None
            self._show_progress(step + 1)
            if self.run.replicas.is_chief:
                self.outputs.write_training_curves(step + 1)
            if self._is_checkpoint_due(step + 1):
                self._save(step + 1)
            if not self._write_due(step + 1):
                return self._interrupted(step + 1, self.stop.signal_number)
        return TrainingResult(total)

    def agreed_signal(self, step: int) -> int | None:
        """The signal that all processes stop for at this step, because one of them has received it."""
        if self.run.replicas.shard.count > 1 and step % _AGREE_EVERY_STEPS:
            return None
        # Not `self.stop.signal_number`: one that has come while the others were asked is for the next step.
        return self.run.replicas.agreed_signal(self.stop.signal_number)

    def _interrupted(self, step: int, signal_number: int) -> TrainingResult:
        if self.state.whole_step != step:
            self._save(step)
        return TrainingResult(step, signal_number)

    @contextlib.contextmanager
    def _saved_if_bad_picture(self, step: int) -> Iterator[None]:
        """Around reading images: the run can continue once a damaged file is fixed."""
        try:
            yield
        except BadPicture:
            if self.state.whole_step != step:
                self._save(step)
            raise

    def _roll_back(self) -> int:
        """Restores the latest checkpoint, if that may be done, lowers the learning rate and returns the step."""
        is_chief, report = self.run.replicas.is_chief, self.outputs.status.keep
        number, reason = self.recovery.next_rollback(step_of(latest_checkpoint(self.state.folder) or "step-0"))
        step = self.state.restore(report, tidies=is_chief)
        nothing = f"{reason}, and there is nothing to go back to: somebody has deleted the checkpoints in"
        check(self.state.whole_step is not None, f"{nothing} {self.state.folder}")
        factor = self.recovery.lower_rate(number)
        report(f"{reason}. Back to step {step:,}, with {factor:g} of the learning rate.")
        self.run.replicas.check_same_step(step, self.state.folder)
        if is_chief:
            self.outputs.continue_from(step)
        return step

    def _write_due(self, step: int) -> bool:
        """Writes the outputs of a step that are due; False where a stop was requested meanwhile."""
        if not self.run.replicas.is_chief:
            return True
        with self._saved_if_bad_picture(step):
            is_whole = self.outputs.write_due(step)
        if is_whole and self._settings.keep_best and self.outputs.is_evaluated(step):
            self.state.save_if_best(step, self.outputs.test_score(step))
        return is_whole

    def _is_checkpoint_due(self, step: int) -> bool:
        minutes = (time.monotonic() - self._saved_at) / 60.0
        by_time = 0.0 < self._settings.checkpoint_every_minutes <= minutes
        by_step = step % self._settings.checkpoint_every_steps == 0
        # Not among skipped steps: a roll-back needs a sound state.
        return step >= self.run.length.total_steps or ((by_time or by_step) and self.recovery.is_sound)

    def _save(self, step: int) -> None:
        if self.run.replicas.is_chief:
            self.state.save(step)
        self._saved_at = time.monotonic()

    def _show_progress(self, step: int) -> None:
        outputs, total = self.outputs, self.run.length.total_steps
        outputs.speed.count_step()
        if not outputs.status.is_due and step < total:
            return
        means, schedules = outputs.running_means(), outputs.schedules()
        nelbo = means["reconstruction"] + means["kl"]
        in_bits = self.run.config.model.likelihood != "bernoulli"
        bound = f"{outputs.bits_per_dimension(nelbo):.4f} bits/dim" if in_bits else f"{nelbo:.2f} nats"
        line = (
            f"step {step:,}/{total:,}  loss {means['loss']:.2f}  NELBO {bound}  "
            f"KL {means['kl']:.2f}  rate {schedules['learning_rate']:.2g}  beta {schedules['kl_weight']:.2f}"
        )
        if means["skipped_steps"]:
            line += f"  {means['skipped_steps']:.0f} steps skipped"
        if steps_per_second := outputs.speed.steps_per_second:
            left = duration((total - step) / steps_per_second)
            line += f"  {outputs.images_per_second:,.0f} images/s  {left} left"
        outputs.status.show(line, step / total)


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


def _last_words(folder: RunFolder, run: Run, outputs: RunOutputs) -> str:
    words = f"{folder.path} has all its {run.length.total_steps:,} steps."
    if not run.replicas.is_chief:
        return words
    nelbo = outputs.test_score(run.length.total_steps)
    place = shlex.quote(str(folder.path))
    return (
        f"{words}\nTest score: NELBO {nelbo:.2f} nats per image, {outputs.bits_per_dimension(nelbo):.4f} bits/dim "
        f"({run.images.test.count:,} images; an upper bound of the negative log-likelihood, lower is better).\n"
        f"Next: nvae-evaluate --workdir={place}\n"
        f"      nvae-generate --workdir={place} --output=samples.png"
    )
