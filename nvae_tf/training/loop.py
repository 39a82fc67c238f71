"""The training loop."""

import contextlib
import dataclasses
import math
import os
import pathlib
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.config import ExperimentConfig, check
from nvae_tf.data.pictures import BadPicture
from nvae_tf.data.pipeline import iterate, training_batches
from nvae_tf.errors import first_line
from nvae_tf.models import NVAE
from nvae_tf.models.metrics import RecentSteps
from nvae_tf.progress import StatusLine, duration
from nvae_tf.published.names import named_weights
from nvae_tf.reports.model_card import keep_model_card
from nvae_tf.training.checkpoints import TrainingState, latest_checkpoint, step_of
from nvae_tf.training.launcher import StopRequest
from nvae_tf.training.outputs import RunOutputs
from nvae_tf.training.run import Run, length_warnings, note_environment, note_images, run_of_folder
from nvae_tf.training.run_folder import RunFolder, lock_for_training, open_for_training
from nvae_tf.training.strategy import (
    Replicas,
    chosen_replicas,
    compiles_whole_step,
    configure_runtime,
    scans_steps,
    step_function,
)

# Several processes ask each other whether to stop; not at each step, that would hold up accelerators.
_AGREE_EVERY_STEPS = 10
# At fixed steps, so that an interruption does not show, and not at each, for the same reason.
_CHECK_EVERY_STEPS = 10
# A value has grown where it is so many times its usual one, the median over the earlier half of accepted steps.
_GROWN = 3.0


class TrainingResult(NamedTuple):
    """How a training has ended."""

    step: int
    signal_number: int | None = None  # that has interrupted it


def train_and_evaluate(config: ExperimentConfig, workdir: str | os.PathLike) -> TrainingResult:
    """Trains a model in a run folder, new, empty or of the same run, from its latest checkpoint on if it has one.

    The weights after step n are a function of the settings alone, however often the run was interrupted. Several
    processes call this with the same arguments; the first, the chief, writes. Signals end it with a checkpoint.

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
    scan = scans_steps(config.train.scan, compiled, replicas.count)
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    # Before anything is written: settings that make no model leave no folder behind.
    run = run_of_folder(config, folder, replicas)
    run.model.scan = scan
    # The chief first: the folder may have to be made.
    if not replicas.is_chief:
        replicas.wait_for_all()
    open_for_training(folder.path, run.config)
    if replicas.is_chief:
        replicas.wait_for_all()
    recovery = Recovery(run)
    kept = config.train.keep_checkpoints, config.train.keep_checkpoint_every_hours
    state = TrainingState(folder.checkpoints, run.model, run.model.optimizer, *kept, recovery.variables)
    step, started = state.restore(StatusLine().keep, tidies=replicas.is_chief), time.monotonic()
    replicas.check_same_step(step, folder.path)
    with StopRequest() as stop:
        # Several processes stop together, after a step.
        outputs = RunOutputs(folder, run, stop if replicas.shard.count == 1 else StopRequest())
        report = outputs.status.keep
        report(_first_words(folder, run, step))
        if replicas.is_chief:
            outputs.continue_from(step)
            note_images(folder.images_file, run, report)
            if step < run.length.total_steps:
                note_environment(folder.environment_file)
            keep_model_card(folder, run.model, report)
        profiled = config.train.profile_steps if replicas.is_chief else ()
        with StepProfiler(profiled, folder.tensorboard, report) as profiler:
            profiler.note_steps(step + 1, run.length.total_steps)
            try:
                result = TrainingLoop(run, state, recovery, outputs, stop, profiler, compiled).continue_from(step)
            finally:
                if replicas.is_chief:
                    keep_model_card(folder, run.model, report)
        replicas.leave()
    if result.signal_number is None:
        report(_last_words(folder, run, outputs, run.length.total_steps - step, time.monotonic() - started))
    return result


@dataclasses.dataclass
class TrainingLoop:
    """Training steps, with all that happens between them."""

    run: Run
    state: TrainingState
    recovery: "Recovery"
    outputs: RunOutputs
    stop: StopRequest
    profiler: "StepProfiler"
    compiled: dataclasses.InitVar[bool]

    def __post_init__(self, compiled: bool):
        self._settings, self._saved_at = self.run.config.train, time.monotonic()
        self._train_step = step_function(self.run.replicas.strategy, self.run.model, compiled)

    def continue_from(self, step: int) -> TrainingResult:
        """Trains from a step to the end, or until a signal interrupts it."""
        if self.state.whole_step is None:
            # The run is rolled back to it if it diverges before the next.
            self._save(step)
        while (result := self._train(step)) is None:
            step = self._roll_back()
        return result

    def _train(self, start: int) -> TrainingResult | None:
        """Trains from a step on; None where the run has diverged and must be rolled back."""
        run, images, total = self.run, self.run.images, self.run.length.total_steps
        of_step = run.images_a_step, self._settings.seed, start, run.replicas.shard
        batches = iterate(training_batches(images.train, images.spec, *of_step), images.train)
        try:
            for step in range(start, total + 1):
                if not self._write_due(step):
                    return self._interrupted(step, self.stop.signal_number)
                if step == total:
                    break
                if (number := self.agreed_signal(step)) is not None:
                    return self._interrupted(step, number)
                if step % self._settings.log_every_steps == 0:
                    # Means start anew at fixed steps and are in checkpoints: an interruption does not show.
                    for metric in run.model.metrics:
                        metric.reset_state()
                with self.profiler.step(step + 1):
                    self._train_step(run.replicas.divided(next(batches)))
                if (step + 1) % _CHECK_EVERY_STEPS == 0 and self.recovery.skipped >= self._settings.refused_steps:
                    return None
                self.outputs.show_progress(step + 1)
                if run.replicas.is_chief:
                    self.outputs.write_training_curves(step + 1)
                if self._is_checkpoint_due(step + 1):
                    self._save(step + 1)
        except BadPicture:
            # The run can continue once the damaged file is fixed.
            self._interrupted(step)
            raise
        finally:
            batches.close()
        return TrainingResult(total)

    def _is_checkpoint_due(self, step: int) -> bool:
        minutes = (time.monotonic() - self._saved_at) / 60.0
        is_due = step % self._settings.checkpoint_every_steps == 0
        is_due |= 0.0 < self._settings.checkpoint_every_minutes <= minutes
        # Not among skipped steps: a roll-back needs a sound state.
        return step == self.run.length.total_steps or (is_due and not self.recovery.skipped)

    def agreed_signal(self, step: int) -> int | None:
        """The signal that all processes stop for at this step, because one of them has received it."""
        if self.run.replicas.shard.count > 1 and step % _AGREE_EVERY_STEPS:
            return None
        # Not `self.stop.signal_number`: one that has come while the others were asked is for the next step.
        return self.run.replicas.agreed_signal(self.stop.signal_number)

    def _interrupted(self, step: int, signal_number: int | None = None) -> TrainingResult:
        if self.state.whole_step != step:
            self._save(step)
        return TrainingResult(step, signal_number)

    def _roll_back(self) -> int:
        """Restores the latest checkpoint, if that may be done, lowers the learning rate and returns the step."""
        is_chief, report = self.run.replicas.is_chief, self.outputs.status.keep
        number, reason = self.recovery.next_rollback(step_of(latest_checkpoint(self.state.folder) or "step-0"))
        step = self.state.restore(report, tidies=is_chief)
        nothing = f"{reason}, and there is nothing to go back to: somebody has deleted the checkpoints in"
        check(self.state.whole_step is not None, f"{nothing} {self.state.folder}")
        self.recovery.lower_rate(number)
        report(f"{reason}. Back to step {step:,}, with {0.5**number:g} of the learning rate.")
        self.run.replicas.check_same_step(step, self.state.folder)
        if is_chief:
            self.outputs.continue_from(step)
        return step

    def _write_due(self, step: int) -> bool:
        """Writes the outputs of a step that are due; False where a stop was requested meanwhile."""
        if not self.run.replicas.is_chief:
            return True
        is_whole = self.outputs.write_due(step)
        if is_whole and self._settings.keep_best and self.outputs.is_evaluated(step):
            self.state.save_if_best(step, self.outputs.test_score(step))
        return is_whole

    def _save(self, step: int) -> None:
        if self.run.replicas.is_chief:
            self.state.save(step)
        self._saved_at = time.monotonic()


class Recovery:
    """Recovery from divergence: after `train.refused_steps` skipped steps in a row a run is rolled back to its latest
    checkpoint, and its learning rate halved. After `train.rollbacks` of these it stops; the error says what grew first.
    """

    def __init__(self, run: Run):
        self._model, self._guard, self._rate = run.model, run.model.step_guard, run.schedule
        self._settings = run.config.train
        self.variables = [*self._guard.variables, *self._rate.variables]  # must be in checkpoints

    @property
    def skipped(self) -> float:
        """How many steps in a row were skipped, up to the latest."""
        return float(self._guard.skipped_in_a_row.numpy())

    def next_rollback(self, latest: int) -> tuple[int, str]:
        """The number of the roll-back that is due and its reason; read before the state is restored, which resets both.

        ValueError: the run was rolled back as often as it may. `latest` is the step of the latest checkpoint.
        """
        limit, number = float(self._guard.limit), int(self._rate.rollbacks.numpy()) + 1
        or_above = "" if math.isinf(limit) else f", or their loss is above the limit of {limit:,.4g}"
        reason = f"{self.skipped:.0f} steps in a row were skipped: their loss or gradients are not finite{or_above}"
        if number <= self._settings.rollbacks:
            return number, reason
        shapes = enumerate(self._model.plan.latent_shapes())
        groups = [f"group {index} ({height}x{width})" for index, (height, width, _) in shapes]
        sentence = divergence_sentence(self._model.recent.read(), groups, layer_names(self._model))
        raise ValueError(
            f"{reason}, after {number - 1} returns to a checkpoint with half the learning rate each time. {sentence}. "
            f"The latest checkpoint is that of step {latest:,}{'' if latest else ', where the run began'}. "
            "Try a lower optimizer.learning_rate, longer optimizer.warmup_epochs or a higher objective.regularisation "
            "in a new run, or look for damaged images"
        )

    def lower_rate(self, number: int) -> None:
        """Lowers the learning rate for the roll-back of a number, once the state is restored."""
        self._rate.rollbacks.assign(number)
        self._rate.factor.assign(0.5**number)
        self._guard.skipped_in_a_row.assign(0.0)
        self._model.recent.forget()


def layer_names(model: NVAE) -> list[str]:
    """The name of every convolution, in the order of the spectral norms."""
    names = {id(weight): name.rpartition("/")[0] for name, weight in named_weights(model).items()}
    return [f"{names[id(stack.kernel)]}[{index}]" for stack in model.convolutions for index in range(stack.count)]


def divergence_sentence(steps: RecentSteps, groups: Sequence[str], layers: Sequence[str]) -> str:
    """Of the latest steps: the KL of which group and the spectral norm of which layer grew first, by their names."""
    count, taken = len(steps.accepted), np.flatnonzero(steps.accepted)
    if not count:
        return "No step is remembered"
    kl = _first_divergence(steps.kl_per_group, taken, groups, "KL", " nats")
    norm = _first_divergence(steps.spectral_norms, taken, layers, "spectral norm", "")
    return f"In the last {count} steps: {kl}; {norm}"


def _first_divergence(values: np.ndarray, taken: np.ndarray, names: Sequence[str], what: str, unit: str) -> str:
    usual = np.median(values[taken[: max(len(taken) // 2, 1)]], axis=0) if len(taken) else values[0]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratios = np.where(np.isfinite(values), np.abs(values) / np.maximum(np.abs(usual), 1e-6), np.inf)
    ratios = np.nan_to_num(ratios, nan=0.0, posinf=np.inf)
    grown = (ratios > _GROWN).any(axis=1)
    step = int(np.argmax(grown if grown.any() else ratios.max(axis=1)))
    place, before_last = int(np.argmax(ratios[step])), len(values) - 1 - step
    when = "at the last step" if before_last == 0 else f"{before_last} steps before the last"
    if not np.isfinite(usual[place]):
        return f"the {what} of {names[place]} was {values[step, place]:,.4g} {when}"
    change = f"{usual[place]:,.4g} to {values[step, place]:,.4g}{unit} {when}"
    if not grown.any():
        return f"no {what} has tripled, that of {names[place]} grew most, from {change}"
    return f"the {what} of {names[place]} grew first, from {change}"


class StepProfiler(contextlib.AbstractContextManager):
    """Profiles the steps from one to another, counted from 1, once; without steps it does nothing. Never ends a run.

    A run that continues behind the first step has no profile: the first steps of a process build graphs. A profile ends
    after its last step, at a step outside (of a run that goes back), or with the block.
    """

    def __init__(self, steps: tuple[int, ...], folder: pathlib.Path, report: Callable[[str], None]):
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self._folder, self._report = folder, report
        self._newest: int | None = None  # of the steps in the profile that is running

    def __exit__(self, *_: object) -> None:
        self._stop()

    def note_steps(self, first: int, last: int) -> None:
        """Reports if a run from one step to another will have no profile."""
        if self._steps and first <= last and not first <= self._steps[0] <= last:
            begin = self._steps[0]
            self._report(f"No profile: train.profile_steps begin with {begin}, this run makes steps {first} to {last}.")

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the step of this number."""
        if number not in self._steps:
            self._stop()
        elif self._newest is None and number == self._steps[0]:
            with self._giving_up():
                tf.profiler.experimental.start(str(self._folder))
                self._newest = number
        if self._newest is not None:
            self._newest = number
        # The name and `_r` are what TensorBoard finds steps by.
        with tf.profiler.experimental.Trace("train", step_num=number, _r=1):
            yield
        if number == self._newest == self._steps[-1]:
            self._stop()

    def _stop(self) -> None:
        if self._newest is None:
            return
        with self._giving_up():
            # A GPU may still be busy with the last step.
            tf.test.experimental.sync_devices()
            tf.profiler.experimental.stop()
            self._report(f"A profile of steps {self._steps[0]} to {self._newest} is in {self._folder}.")
        self._steps, self._newest = range(0), None

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        # Whatever a profiler's driver raises: a run of days is worth more than its profile.
        except Exception as error:
            reason = first_line(error).rstrip(".")
            self._report(f"No profile of steps {self._steps[0]} to {self._steps[-1]}: {reason}. The run goes on.")
            self._steps, self._newest = range(0), None


def _first_words(folder: RunFolder, run: Run, step: int) -> str:
    length, images, count = run.length, run.images, run.replicas.count
    if step >= length.total_steps:
        return f"{folder.path}: a finished run."
    on = f" on {count} replicas" if count > 1 else ""
    weights = sum(math.prod(weight.shape) for weight in run.model.trainable_variables)
    model = run.config.model
    height, width = model.network_height, model.network_width
    is_framed = (height, width) != (model.image_height, model.image_width)
    framed = f", images in a frame of {height} x {width}" if is_framed else ""
    words = (
        f"{images.spec.name}: {images.train.count:,} training and {images.test.count:,} test images; "
        f"{run.model.plan.num_groups} latent groups, {weights:,} weights{framed}.\n"
        f"{length.total_steps:,} steps of {run.images_a_step} images{on}, {length.steps_per_epoch} an "
        f"epoch, into {folder.path}{f', from step {step:,} on' if step else ''}. "
        "The first step takes longer: TensorFlow builds its graph."
    )
    return "\n".join([words, *length_warnings(run.config, length)])


def _last_words(folder: RunFolder, run: Run, outputs: RunOutputs, steps: int, seconds: float) -> str:
    words = f"{folder.path} has all its {run.length.total_steps:,} steps"
    words += f", {steps:,} of them made in {duration(seconds)}." if steps else "."
    if not run.replicas.is_chief:
        return words
    nelbo, place = outputs.test_score(run.length.total_steps), shlex.quote(str(folder.path))
    return (
        f"{words}\nTest score: NELBO {nelbo:.2f} nats per image, {outputs.bits_per_dimension(nelbo):.4f} bits/dim "
        f"({run.images.test.count:,} images; an upper bound of the negative log-likelihood, lower is better).\n"
        f"Next: nvae-evaluate --workdir={place}\n"
        f"      nvae-generate --workdir={place} --output=samples.png"
    )
