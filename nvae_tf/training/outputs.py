"""The outputs of a run besides checkpoints: metrics of training and test images, and grids of samples."""

import functools
import hashlib
import importlib.util
import math
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.config import named_settings
from nvae_tf.data.pipeline import chosen_images, evaluation_batches, iterate
from nvae_tf.errors import first_line, require
from nvae_tf.evaluation.likelihood import LikelihoodEvaluator
from nvae_tf.evaluation.table import active_units
from nvae_tf.generation.image_grid import displayed, image_grid, write_png
from nvae_tf.generation.sampling import generate_images
from nvae_tf.objective import bits_per_dimension, kl_weight, regularization_weight
from nvae_tf.optimization import averaged_weights
from nvae_tf.progress import Speed, StatusLine, duration
from nvae_tf.runs.run_folder import TEST_SCORE, MetricsFile, RunFolder
from nvae_tf.training.launcher import StopRequest, StopRequested
from nvae_tf.training.run import Run

_FIXED_SEED = 0  # latents, images and binarization are the same every time
# The number of samples at each temperature; the samples of the last are in `samples/`, too.
_SAMPLES = {1.0: 16, 0.9: 16, 0.8: 16, 0.6: 16, 0.7: 64}


class RunOutputs:
    """Writes the outputs that are due at a step and not there already, so a run can continue at any step."""

    def __init__(self, folder: RunFolder, run: Run, stop: StopRequest):
        self.status, self._speed = StatusLine(), Speed()
        self._folder, self._run, self._stop = folder, run, stop
        self._settings, self._total = run.config.train, run.config.objective.total_steps
        self.metrics = MetricsFile(folder.metrics_file)
        log = WandbLog if self._settings.logger == "wandb" else TensorBoardLog
        self._log = log(folder.path if log is WandbLog else folder.tensorboard, named_settings(run.config))
        self._batch_size = min(self._settings.batch_size, run.test_images.count)
        self._evaluator = LikelihoodEvaluator(run.model, self._batch_size)
        self._last_means: dict[str, float] = {}  # of the last whole period of `train.log_every_steps`

    def report_end(self, steps: int, seconds: float) -> None:
        """Says that the run has all its steps, of which this training has made `steps`, and its test score."""
        made = f", {steps:,} of them made in {duration(seconds)}" if steps else ""
        words = f"{self._folder.path} has all its {self._total:,} steps{made}."
        if self._run.replicas.is_chief:
            nelbo, place = self.test_score(self._total), f"--workdir={shlex.quote(str(self._folder.path))}"
            named = self._run.config.model.likelihood, self._run.config.model.cell_set
            modules = sorted({module for module in (name.rpartition(":")[0] for name in named) if module})
            place += f" --import={','.join(modules)}" if modules else ""
            next_commands = f"nvae-evaluate {place}", f"nvae-generate {place} --output=samples.png"
            if self._run.config.model.is_denoising:
                next_commands = (
                    f"nvae-evaluate {place} --metrics=noise",
                    f"nvae-generate denoise {place} --output=d.png",
                )
            words += (
                f"\nTest score: {self._score_text(nelbo)} "
                f"({self._run.test_images.count:,} images; an upper bound of the negative log-likelihood, lower is "
                f"better).\nNext: {next_commands[0]}\n      {next_commands[1]}"
            )
        self.status.print(words)

    def step_taken(self, step: int) -> None:
        """Counts a training step, shows a line about it if enough time has passed, and writes the curves if due."""
        self._speed.count_step()
        if self._is_due(step, self._settings.log_every_steps):
            self._last_means = self._running_means()
        if self.status.is_due or step == self._total:
            self._show_progress(step)
        if self._run.replicas.is_chief and self._is_due(step, self._settings.log_every_steps):
            self._write_training_curves(step)

    def _show_progress(self, step: int) -> None:
        means, schedules, period = self._running_means(), self._schedules(), self._settings.log_every_steps
        # Over about `train.log_every_steps` steps: the last period stands in for the rest of the present one.
        part = (step % period or period) / period
        last = {name: value for name, value in self._last_means.items() if math.isfinite(value)}
        moving = {name: part * value + (1.0 - part) * last.get(name, value) for name, value in means.items()}
        # All in one unit, the literature's.
        unit, places, scale = "bits/dim", 4, self._bits_per_dimension(1.0)
        if self._run.config.model.likelihood == "bernoulli" or not self._run.config.model.has_masses:
            unit, places, scale = "nats", 2, 1.0
        nelbo, loss, kl = (f"{scale * moving[name]:.{places}f}" for name in ("nelbo_nats", "loss", "kl"))
        # The important numbers come first: a narrow terminal cuts the end.
        line = f"step {step:,}/{self._total:,}"
        if steps_per_second := self._speed.steps_per_second:
            left = duration((self._total - step) / steps_per_second)
            line += f"  {left} left  {self._images_per_second():,.0f} images/s"
        line += f"  NELBO {nelbo} {unit}"
        if means["skipped_steps"]:
            line += f"  {means['skipped_steps']:.0f} steps skipped"
        line += f"  loss {loss}  KL {kl}"
        line += f"  rate {schedules['learning_rate']:.2g}  beta {schedules['kl_weight']:.2f}"
        self.status.show(line, step / self._total)

    def _write_training_curves(self, step: int) -> None:
        recent = self._run.model.recent.read()
        norms = recent.spectral_norms[-1]
        self._log.write(
            step,
            {f"train/{name}": value for name, value in self._running_means().items()}
            | {f"schedule/{name}": value for name, value in self._schedules().items()}
            | {f"train_kl_per_group/{index:02d}": value for index, value in enumerate(recent.kl_per_group[-1])}
            | {"spectral_norm/largest": norms.max(), "spectral_norm/sum": norms.sum()}
            | {"speed/images_per_second": self._images_per_second()},
        )

    def write_all_due(self, step: int) -> bool:
        """Writes the test metrics and samples of a step that are due; False where a stop was requested meanwhile."""
        grid = self._folder.samples / f"step-{step:08d}.png"
        evaluates = self.is_evaluated(step) and step not in self.metrics.rows
        draws = step > 0 and self._is_due(step, self._settings.sample_every_steps) and not grid.exists()
        if not evaluates and not draws:
            return True
        self._speed.pause()
        try:
            with averaged_weights(self._run.model):
                if evaluates:
                    self._write_evaluation(step)
                if draws:
                    self._write_images(step, grid)
        except StopRequested:
            return False
        return True

    def is_evaluated(self, step: int) -> bool:
        """Whether the test images are scored after a step."""
        return step > 0 and self._is_due(step, self._settings.evaluate_every_steps)

    def test_score(self, step: int) -> float:
        """The NELBO of the test images after a step at which they were scored, in nats per image."""
        return float(self.metrics.rows[step][TEST_SCORE])

    def _running_means(self) -> dict[str, float]:
        means = {metric.name: float(metric.result()) for metric in self._run.model.metrics}
        nelbo = means["reconstruction"] + means["kl"]
        return means | {"nelbo_nats": nelbo, "bits_per_dim": self._bits_per_dimension(nelbo)}

    def _schedules(self) -> dict[str, float]:
        """The scheduled values of the next step; skipped steps don't count."""
        objective, taken = self._run.config.objective, int(self._run.model.optimizer.iterations.numpy())
        beta = kl_weight(tf.constant(taken), objective)
        return {
            "learning_rate": float(self._run.schedule(taken)),
            "kl_weight": float(beta) * objective.kl_final_weight,
            "regularization_weight": float(regularization_weight(beta, objective)),
        }

    def _bits_per_dimension(self, nats: float) -> float:
        has_masses = self._run.config.model.has_masses
        return bits_per_dimension(nats, math.prod(self._run.config.data.image_shape)) if has_masses else math.nan

    def _score_text(self, nelbo: float) -> str:
        bits = self._bits_per_dimension(nelbo)
        return f"NELBO {nelbo:.2f} nats per image" + ("" if math.isnan(bits) else f", {bits:.4f} bits/dim")

    def _images_per_second(self) -> float:
        return (self._speed.steps_per_second or 0.0) * self._run.images_a_step

    def _is_due(self, step: int, interval: int) -> bool:
        return step % interval == 0 or step == self._total

    def _write_evaluation(self, step: int) -> None:
        source, count = self._run.test_images, self._run.test_images.count
        self.status.announce(f"evaluating the {count:,} test images")
        batches = evaluation_batches(source, self._run.config.data, self._batch_size, _FIXED_SEED)

        def show(done: int) -> None:
            self._stop.check()
            self.status.show_if_due(f"evaluating: {done:,} of {count:,} test images", done / count)

        test = self._evaluator.evaluate(iterate(batches, source), _FIXED_SEED, show)
        active = active_units(test.kl_per_channel_nats, self._run.model.plan.latent_shapes())
        measured = {name: getattr(test, name) for name in ("nelbo_nats", "reconstruction_nats", "kl_nats")}
        measured["bits_per_dim"] = self._bits_per_dimension(test.nelbo_nats)
        self._log.write(
            step,
            {f"test/{name}": value for name, value in measured.items()}
            | {"test/active_units": active.sum()}
            | {f"kl_per_group/{index:02d}": value for index, value in enumerate(test.kl_per_group_nats)}
            | {f"active_units/{index:02d}": value for index, value in enumerate(active)},
        )
        training, schedules = self._running_means(), self._schedules()
        self.metrics.append(
            {"step": step, "epoch": step / self._run.steps_per_epoch}
            | {name: schedules[name] for name in ("learning_rate", "kl_weight")}
            | {"train_loss": training["loss"], "train_nelbo_nats": training["nelbo_nats"]}
            | {f"train_{name}_nats": training[name] for name in ("reconstruction", "kl")}
            | {f"test_{name}": value for name, value in measured.items()}
            | {"images_per_second": self._images_per_second(), "active_units": int(active.sum())}
        )
        self.status.print(f"step {step:,}: test {self._score_text(test.nelbo_nats)}")

    def _write_images(self, step: int, file: pathlib.Path) -> None:
        """Writes reconstructions and samples for TensorBoard, and last a file, which shows that all are there."""
        spec, test = self._run.config.data, self._run.test_images
        self.status.announce("drawing reconstructions and samples")
        originals, labels, _ = chosen_images(test, spec, "test", at_most=8, seed=_FIXED_SEED)
        # Eagerly: for a handful of images a graph takes longer to build than it saves.
        reconstructions = self._run.model(originals, seed=_FIXED_SEED, labels=labels)
        rows = displayed(np.concatenate([originals, reconstructions]), spec.display_channels)
        self._stop.check()
        self._log.write(step, {"reconstructions": image_grid(rows, columns=len(originals), enlarge=None)})
        for temperature, count in _SAMPLES.items():
            images = generate_images(self._run.model, count, temperature, _FIXED_SEED, lambda done: self._stop.check())
            images = displayed(images, spec.display_channels)
            self._log.write(step, {f"samples/temperature_{temperature}": image_grid(images, enlarge=None)})
        if importlib.util.find_spec("matplotlib") is None:  # training does not need it: a bare grid
            write_png(file, image_grid(images, enlarge=None))
            return
        from nvae_tf.reports import figures

        about = figures.Provenance(self._folder.path.absolute().name, step, temperature, _FIXED_SEED)
        figures.save_figure(figures.samples(images, about), file)


def first_words(folder: RunFolder, run: Run, step: int) -> str:
    """What the run is, and that it begins or continues at a step."""
    total_steps, count = run.config.objective.total_steps, run.replicas.count
    if step >= total_steps:
        return f"{folder.path}: a finished run."
    on = f" on {count} replicas" if count > 1 else ""
    weights = sum(math.prod(weight.shape) for weight in run.model.trainable_variables)
    model, warmup = run.config.model, round(run.config.optimizer.warmup_epochs * run.steps_per_epoch)
    height, width = model.network_height, model.network_width
    is_framed = (height, width) != (model.image_height, model.image_width)
    framed = f", images in a frame of {height} x {width}" if is_framed else ""
    warning = f"\nWarning: the warm-up of {warmup:,} steps (optimizer.warmup_epochs) is longer than the run."
    return (
        f"{run.config.data.name}: {run.train_images.count:,} training and {run.test_images.count:,} test images; "
        f"{run.model.plan.num_groups} latent groups, {weights:,} weights{framed}.\n"
        f"{total_steps:,} steps of {run.images_a_step} images{on}, {run.steps_per_epoch} an "
        f"epoch, into {folder.path}{f', from step {step:,} on' if step else ''}. "
        f"The first step takes longer: TensorFlow builds its graph.{warning if warmup > total_steps else ''}"
    )


class TensorBoardLog:
    """Settings, scalars and images for TensorBoard."""

    def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any]):
        self._folder, self._settings = folder, settings

    @functools.cached_property
    def _writer(self) -> tf.summary.SummaryWriter:
        # Made at the first point: otherwise every look at a finished run would leave a file.
        writer = tf.summary.create_file_writer(str(self._folder))
        with writer.as_default(0):
            tf.summary.text("settings", "".join(f"    {name} = {value}\n" for name, value in self._settings.items()))
        return writer

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes by their names points of curves, numbers, and images, uint8 `[height, width, channels]`."""
        try:
            with self._writer.as_default(step):
                for tag, value in values.items():
                    if np.ndim(value) == 3:
                        tf.summary.image(tag, value[np.newaxis])
                    else:
                        tf.summary.scalar(tag, value)
            self._writer.flush()
        except tf.errors.OpError as error:
            raise OSError(f"{self._folder}: TensorBoard's files can't be written ({first_line(error)})") from error


class WandbLog:
    """Settings, scalars and images for Weights & Biases, in the project `nvae_tf`; a continued run is one run there."""

    def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any]):
        self._wandb, self._folder, self._settings = require("wandb", "wandb"), folder.absolute(), settings

    @functools.cached_property
    def _run(self) -> Any:
        name = self._folder.name
        place = hashlib.sha256(str(self._folder).encode()).hexdigest()[:8]
        known = dict(project="nvae_tf", name=name, id=f"{name}-{place}", resume="allow")
        return self._wandb.init(**known, dir=str(self._folder), config=self._settings)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """As `TensorBoardLog.write`."""
        image = self._wandb.Image
        logged = {tag: image(value) if np.ndim(value) == 3 else float(value) for tag, value in values.items()}
        self._run.log(logged, step=step)
