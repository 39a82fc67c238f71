"""The training loop."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from nvae_tf.data.pictures import BadPicture
from nvae_tf.data.pipeline import iterate, training_batches
from nvae_tf.errors import first_line
from nvae_tf.models import NVAE
from nvae_tf.progress import StatusLine
from nvae_tf.reports.model_card import update_model_card
from nvae_tf.runs.checkpoints import TrainingState, named_weights
from nvae_tf.runs.run_folder import RunFolder, lock_for_training, open_for_training
from nvae_tf.training import strategy
from nvae_tf.training.launcher import StopRequest
from nvae_tf.training.outputs import RunOutputs, first_words
from nvae_tf.training.run import Run, run_of_folder, write_environment, write_images

# At every tenth step the processes agree on whether to stop, and each checks for divergence; not at each step, because
# the check waits for the accelerator. All runs check at the same steps, so an interrupted run takes the same course.
_LOOK_EVERY_STEPS = 10
# A value has grown when it is this many times its usual value, the median over the earlier half of accepted steps; a
# usual value below the second number (a collapsed group's KL, for example, only jitters) counts as that number.
_GROWN, _SMALLEST = 3.0, 0.01


def train_and_evaluate(config: ExperimentConfig, workdir: str | os.PathLike) -> tuple[int, int | None]:
    """Trains a model in a run folder, new, empty or of the same run, from its latest checkpoint on if it has one.

    The weights after step n are a function of settings and data, however often the run was interrupted. The exception
    is a run that was rolled back: it returned to the newest checkpoint, and interruptions add checkpoints. Several
    processes call this with the same arguments; the first, the chief, writes. Signals end it with a checkpoint. Returns
    the step of the last checkpoint, and the signal that has interrupted the training, None without one.

    ValueError: the settings do not fit each other, the devices, the data or the folder, another process trains in it,
    all its checkpoints are damaged, or training has diverged. OSError: the folder can't be written to. ConnectionError:
    the data can't be downloaded. WorkerLost: another of several processes has ended.
    """
    replicas, folder = strategy.chosen_replicas(config.train), RunFolder(workdir)
    lock = lock_for_training(folder, StatusLine().print) if replicas.is_chief else contextlib.nullcontext()
    with replicas.raising_worker_lost(), lock:
        run, step_on_replicas = _open_run(config, folder, replicas)
        state = TrainingState(folder.checkpoints, run.model, config.train.keep_checkpoints, run.schedule)
        step, started = state.restore(StatusLine().print, replicas.is_chief), time.monotonic()
        replicas.check_same_step(step, folder.path)
        with StopRequest() as stop:
            # Several processes can stop only together (`signal_at`), so a signal must not break off one's evaluation:
            # their outputs get a request that no signal sets.
            outputs = RunOutputs(folder, run, stop if replicas.shard.count == 1 else StopRequest())
            _report_start(folder, run, outputs, step)
            try:
                end, signal_number = TrainingLoop(folder, run, step_on_replicas, state, outputs, stop).train(step)
            finally:
                if replicas.is_chief:
                    update_model_card(folder, run.model, outputs.status.print)
            replicas.leave()
    if signal_number is None:
        outputs.report_end(end - step, time.monotonic() - started)
    return end, signal_number


def _open_run(config: ExperimentConfig, folder: RunFolder, replicas: strategy.Replicas) -> tuple[Run, Callable]:
    """The run of a folder, which is made or opened, and its training step as a graph."""
    is_jit, scan = strategy.configure_runtime(config.train, replicas.count)
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    # Before anything is written: settings that make no model leave no folder behind.
    run = run_of_folder(config, folder, replicas)
    # The chief makes the folder, then the others open it.
    if not replicas.is_chief:
        replicas.wait_for_all()
    open_for_training(folder.path, run.config)
    if replicas.is_chief:
        replicas.wait_for_all()
    if config.train.keep_checkpoint_every_hours:
        StatusLine().print("Note: train.keep_checkpoint_every_hours has no effect: the newest checkpoints stay.")
    run.model.scan = scan
    return run, strategy.step_function(replicas.strategy, run.model, is_jit)


def _report_start(folder: RunFolder, run: Run, outputs: RunOutputs, step: int) -> None:
    """Reports what the run is, and writes into its folder what is known before the first step."""
    outputs.status.print(first_words(folder, run, step))
    if run.replicas.is_chief:
        if outputs.metrics.damaged:
            report = f"lines that are damaged or there twice: {outputs.metrics.damaged}, dropped."
            outputs.status.print(f"{folder.metrics_file}: {report}")
        outputs.metrics.drop_after(step)
        write_images(folder.images_file, run, outputs.status.print)
        if step < run.config.objective.total_steps:
            write_environment(folder.environment_file)
        update_model_card(folder, run.model, outputs.status.print)


@dataclasses.dataclass
class TrainingLoop:
    """Training steps, and what happens between them: scores and samples, checkpoints, recovery, stopping."""

    folder: RunFolder
    run: Run
    step_on_replicas: Callable[[Any], Any]  # the graph that `strategy.step_function` makes, of a divided batch
    state: TrainingState
    outputs: RunOutputs
    stop: StopRequest

    saved_at: float = dataclasses.field(default_factory=time.monotonic)

    def train(self, step: int) -> tuple[int, int | None]:
        """Trains from a step to the end, or until a signal interrupts it; returns as `train_and_evaluate`."""
        if self.state.saved_step is None:  # a run that diverges before its first checkpoint goes back to this one
            self._save(step)
        while (result := self._train_from(step)) is None:
            step = self._roll_back()
        return result

    def _train_from(self, start: int) -> tuple[int, int | None] | None:
        """Trains from a step on; returns as `train`, or None if the run has diverged and must be rolled back."""
        run, settings, source = self.run, self.run.config.train, self.run.train_images
        how = {"start_step": start, "shard": run.replicas.shard}
        batches = training_batches(source, run.config.data, run.images_a_step, settings.seed, **how)
        batches = iterate(batches, source)
        try:
            # `step` counts batches, of skipped steps too; `optimizer.iterations`, by which learning rate and KL
            # warm-up go, leaves skipped steps out. The last turn takes no step; it writes what is due after the last.
            for step in range(start, run.config.objective.total_steps + 1):
                if run.replicas.is_chief:
                    if not self.outputs.write_all_due(step):  # a signal has broken it off
                        return self._save_and_end(step, self.stop.signal_number)
                    if settings.keep_best and self.outputs.is_evaluated(step):
                        self.state.save_if_best(step, self.outputs.test_score(step))
                if step == run.config.objective.total_steps:
                    return step, None
                if (signal_number := self.signal_at(step)) is not None:  # the same in all processes
                    return self._save_and_end(step, signal_number)
                if step % settings.log_every_steps == 0:
                    # Means start anew at fixed steps and are in checkpoints: an interruption does not show.
                    run.model.reset_metrics()
                with self.profiled(step + 1):
                    # Traced at the first call, one TensorFlow graph from then on.
                    self.step_on_replicas(run.replicas.divided(next(batches)))
                if (step + 1) % _LOOK_EVERY_STEPS == 0 and skipped_in_a_row(run.model) >= settings.refused_steps:
                    return None
                self.outputs.step_taken(step + 1)
                if self._is_checkpoint_due(step + 1):
                    self._save(step + 1)
        except BadPicture:
            # The chief saves, as for a signal: the run can continue once the damaged file is fixed.
            self._save_and_end(step)
            raise
        finally:
            batches.close()

    @contextlib.contextmanager
    def profiled(self, step: int) -> Iterator[None]:
        """A block in which a step is taken, in TensorBoard's profile if it is one of `train.profile_steps`."""
        profile_steps = self.run.config.train.profile_steps if self.run.replicas.is_chief else ()
        first, last = profile_steps or (None, None)
        if step == first:
            self._try_profiler(tf.profiler.experimental.start, str(self.folder.tensorboard))
        # The name and `_r` are what TensorBoard finds steps by.
        with tf.profiler.experimental.Trace("train", step_num=step, _r=1):
            yield
        if step == last:
            tf.test.experimental.sync_devices()
            self._try_profiler(tf.profiler.experimental.stop)

    def _try_profiler(self, start_or_stop: Callable, *arguments: str) -> None:
        # A run is worth more than its profile. Starting fails where a rollback has left a profile open, stopping where
        # the run was continued behind the first profiled step.
        try:
            start_or_stop(*arguments)
        except Exception as error:
            StatusLine().print(f"The profile of train.profile_steps fails: {first_line(error)}")

    def signal_at(self, step: int) -> int | None:
        """The signal that all processes stop for at this step, because one of them has received it."""
        if self.run.replicas.shard.count > 1 and step % _LOOK_EVERY_STEPS:
            return None
        # The answer of all, not this process's number read again: a signal that comes meanwhile is for the next step.
        return self.run.replicas.agreed_signal(self.stop.signal_number)

    def _is_checkpoint_due(self, step: int) -> bool:
        minutes = (time.monotonic() - self.saved_at) / 60.0
        is_due = step % self.run.config.train.checkpoint_every_steps == 0
        is_due |= 0.0 < self.run.config.train.checkpoint_every_minutes <= minutes
        # Not among skipped steps, unless the run ends: the weights may have begun to diverge, and a rollback must go to
        # a step before that.
        return step == self.run.config.objective.total_steps or (is_due and not skipped_in_a_row(self.run.model))

    def _save(self, step: int) -> None:
        if self.run.replicas.is_chief:
            self.state.save(step)
        self.state.saved_step, self.saved_at = step, time.monotonic()  # the others note that the chief has saved

    def _save_and_end(self, step: int, signal_number: int | None = None) -> tuple[int, int | None]:
        # Among skipped steps nothing is saved: a rollback after them must find the checkpoint of an uninterrupted run.
        if self.state.saved_step != step and not skipped_in_a_row(self.run.model):
            self._save(step)
        return self.state.saved_step, signal_number

    def _roll_back(self) -> int:
        """Goes back to the latest checkpoint, with half the learning rate; ValueError for once too often."""
        is_chief, report = self.run.replicas.is_chief, self.outputs.status.print
        model, schedule = self.run.model, self.run.schedule
        number, reason = int(schedule.rollbacks.numpy()) + 1, reason_of_skips(model)
        if number > self.run.config.train.rollbacks:
            own = ", or a density of your own that is infinite at 0 or 1" if ":" in model.config.likelihood else ""
            raise ValueError(
                f"{reason}, after {number - 1} returns to a checkpoint with half the learning rate each time; "
                f"{growth_in(model)}; try a lower optimizer.learning_rate, longer optimizer.warmup_epochs or a higher "
                f"objective.regularization in a new run, or look for damaged images{own}"
            )
        # This restores the count of rollbacks and the guard's count of skipped steps too; they are set again below.
        step = self.state.restore(report, is_chief)
        if self.state.saved_step is None:
            raise ValueError(f"{reason}, and the checkpoints in {self.state.folder} are gone")
        schedule.rollbacks.assign(number)
        schedule.factor.assign(0.5**number)
        model.step_guard.skipped_in_a_row.assign(0.0)
        model.recent.forget()
        report(f"{reason}. Back to step {step:,}, with {0.5**number:g} of the learning rate.")
        self.run.replicas.check_same_step(step, self.state.folder)
        if is_chief:
            self.outputs.metrics.drop_after(step)
        return step


def skipped_in_a_row(model: NVAE) -> float:
    """The number of steps skipped in a row, up to the latest step, see `optimization/step_guard.py`."""
    return float(model.step_guard.skipped_in_a_row.numpy())


def reason_of_skips(model: NVAE) -> str:
    """Why the latest steps were skipped."""
    limit = float(model.step_guard.limit)
    or_above = "" if math.isinf(limit) else f", or their loss is above the limit of {limit:,.4g}"
    number = skipped_in_a_row(model)
    return f"{number:.0f} steps in a row were skipped: their loss or gradients are not finite{or_above}"


def growth_in(model: NVAE) -> str:
    """The group whose KL, and the layer whose spectral norm, first exceeded three times their usual values."""
    steps, shapes = model.recent.read(), enumerate(model.plan.latent_shapes())
    groups = [f"group {index} ({height}x{width})" for index, (height, width, _) in shapes]
    names = {id(weight): name.rpartition("/")[0] for name, weight in named_weights(model).items()}
    layers = [f"{names[id(stack.kernel)]}[{index}]" for stack in model.convolutions for index in range(stack.count)]
    measured = ("KL", steps.kl_per_group, groups), ("spectral norm", steps.spectral_norms, layers)
    taken, clauses = np.flatnonzero(steps.accepted), []
    earlier = taken[: max(len(taken) // 2, 1)]
    for what, values, labels in measured if len(taken) else ():
        usual = np.median(np.abs(values[earlier]), axis=0)
        grown = ~(np.abs(values) <= _GROWN * np.maximum(usual, _SMALLEST))  # what is not finite has grown too
        # An outlier among the earlier steps, which came back, is no growth.
        grown[: earlier[-1] + 1] &= grown[earlier[-1] + 1 :].all(axis=0)
        if grown.any():
            step, place = np.argwhere(grown)[0]
            change = f"from {usual[place]:,.4g} to {values[step, place]:,.4g}"
            clauses.append(f"the {what} of {labels[place]} {change}, {len(values) - 1 - step} steps before the last")
    return f"what grew first: {' and '.join(clauses) or 'no KL or spectral norm of the latest steps'}"
