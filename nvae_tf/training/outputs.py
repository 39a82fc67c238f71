"""The outputs of a run besides checkpoints: metrics of training and test images, and grids of samples."""

import contextlib
import functools
import hashlib
import importlib.util
import math
import pathlib
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import summary as custom_scalar
from tensorboard.plugins.hparams import api as hparams

from nvae_tf.config import named_settings
from nvae_tf.data.pipeline import chosen_images, evaluation_batches, iterate
from nvae_tf.errors import first_line, require
from nvae_tf.evaluation.latent_usage import active_units
from nvae_tf.evaluation.likelihood import LikelihoodEvaluator
from nvae_tf.files import atomic_write
from nvae_tf.generation.image_grid import image_grid, write_png
from nvae_tf.generation.sampling import ImageGenerator
from nvae_tf.objective import bits_per_dimension, kl_weight, regularization_weight
from nvae_tf.optimization import averaged_weights
from nvae_tf.progress import Speed, StatusLine, duration
from nvae_tf.runs.run_folder import RunFolder
from nvae_tf.training.launcher import StopRequest, StopRequested
from nvae_tf.training.run import Run, length_warnings

COLUMNS = (
    *("step", "epoch", "learning_rate", "kl_weight"),
    *("train_loss", "train_nelbo_nats", "train_reconstruction_nats", "train_kl_nats"),
    *("test_nelbo_nats", "test_reconstruction_nats", "test_kl_nats", "test_bits_per_dim"),
    *("images_per_second", "active_units"),
)
# The column that every line has, besides its step.
_SCORE = "test_nelbo_nats"
# The latents, images and binarization are the same every time, so that only the model differs.
_FIXED_SEED = 0
# The number of samples at each temperature; the samples at the last temperature are in `samples/`, too. The paper shows
# samples from 1.0 (small gray images) down to 0.6 and less (large photographs).
_SAMPLES = {1.0: 16, 0.9: 16, 0.8: 16, 0.6: 16, 0.7: 64}

# The descriptions of TensorBoard's curves, by a part of their tags.
_DESCRIPTIONS = {
    "nelbo": "negative evidence lower bound in nats per image; lower is better",
    "bits_per_dim": "the same in bits per real pixel value",
    "reconstruction": "negative log-likelihood of an image given its latents, in nats per image",
    "kl_weight": "factor of the KL in the loss",
    "kl": "KL of posterior and prior in nats per image",
    "loss": "weighted bound and regularization, which training minimizes, in nats per image",
    "active_units": "latent channels whose KL is above 0.01 nats per image and position",
    "spectral_norm": "spectral norms of the convolutions, which the regularization keeps small",
    "regularization_weight": "factor of the penalty of spectral norms and batch-norm scales in the loss",
    "gradient_norm": "L2 norm of all gradients of a step",
    "learning_rate": "learning rate of the next step",
    "images_per_second": "training images, without the pauses for evaluation and checkpoints",
    "skipped_steps": "steps since the last point whose loss or gradients were not used",
}


class RunOutputs:
    """Writes the outputs that are due at a step and not there already, so a run can continue at any step."""

    def __init__(self, folder: RunFolder, run: Run, stop: StopRequest):
        self.status, self._speed = StatusLine(), Speed()
        self._folder, self._run, self._stop = folder, run, stop
        self._metrics = MetricsFile(folder.metrics_file)
        settings = named_settings(run.config)
        use_wandb = run.config.train.logger == "wandb"
        self._log = WandbLog(folder.path, settings) if use_wandb else TensorBoardLog(folder.tensorboard, settings)
        self._batch_size = min(run.config.train.batch_size, run.images.test.count)
        self._evaluator = LikelihoodEvaluator(run.model, self._batch_size)
        self._generator = ImageGenerator(run.model)
        self._last_means: dict[str, float] = {}

    def report_start(self, step: int) -> None:
        """Says what the run is, and that it begins or continues at a step."""
        self.status.keep(_first_words(self._folder, self._run, step))

    def report_end(self, steps: int, seconds: float) -> None:
        """Says that the run has all its steps, of which this training has made `steps`, and its test score."""
        words = f"{self._folder.path} has all its {self._run.length.total_steps:,} steps"
        words += f", {steps:,} of them made in {duration(seconds)}." if steps else "."
        if self._run.replicas.is_chief:
            nelbo, place = self.test_score(self._run.length.total_steps), shlex.quote(str(self._folder.path))
            words += (
                f"\nTest score: NELBO {nelbo:.2f} nats per image, {self.bits_per_dimension(nelbo):.4f} bits/dim "
                f"({self._run.images.test.count:,} images; an upper bound of the negative log-likelihood, lower is "
                f"better).\nNext: nvae-evaluate --workdir={place}\n"
                f"      nvae-generate --workdir={place} --output=samples.png"
            )
        self.status.keep(words)

    def continue_from(self, step: int) -> None:
        """Drops the metrics of steps that will be made again, and damaged ones."""
        self._last_means = {}
        if damaged := self._metrics.keep_until(step):
            self.status.keep(f"{self._folder.metrics_file}: lines that are damaged or there twice: {damaged}, dropped.")

    def show_progress(self, step: int) -> None:
        """Counts a training step, and shows a line about it if enough time has passed."""
        total = self._run.length.total_steps
        self._speed.count_step()
        if step % self._run.config.train.log_every_steps == 0:
            self._last_means = self._running_means()
        if not self.status.is_due and step < total:
            return
        means, schedules = self._moving_means(step), self._schedules()
        in_bits = self._run.config.model.likelihood != "bernoulli"
        unit, places, scale = ("bits/dim", 4, self.bits_per_dimension(1.0)) if in_bits else ("nats", 2, 1.0)
        values = means["reconstruction"] + means["kl"], means["loss"], means["kl"]
        nelbo, loss, kl = (f"{scale * value:.{places}f}" for value in values)
        # The important numbers come first: a narrow terminal cuts the end.
        line = f"step {step:,}/{total:,}"
        if steps_per_second := self._speed.steps_per_second:
            left = duration((total - step) / steps_per_second)
            line += f"  {left} left  {self._images_per_second:,.0f} images/s"
        line += f"  NELBO {nelbo} {unit}"
        if means["skipped_steps"]:
            line += f"  {means['skipped_steps']:.0f} steps skipped"
        line += f"  loss {loss}  KL {kl}"
        line += f"  rate {schedules['learning_rate']:.2g}  beta {schedules['kl_weight']:.2f}"
        self.status.show(line, step / total)

    def write_training_curves(self, step: int) -> None:
        """Writes the points of TensorBoard's training curves, if they are due."""
        if not self._is_due(step, self._run.config.train.log_every_steps):
            return
        recent, means = self._run.model.recent.read(), self._running_means()
        norms, nelbo = recent.spectral_norms[-1], means["reconstruction"] + means["kl"]
        self._log.scalars(
            step,
            {f"train/{name}": value for name, value in means.items()}
            | {"train/nelbo_nats": nelbo, "train/bits_per_dim": self.bits_per_dimension(nelbo)}
            | {f"schedule/{name}": value for name, value in self._schedules().items()}
            | {f"train_kl_per_group/{index:02d}": value for index, value in enumerate(recent.kl_per_group[-1])}
            | {"spectral_norm/largest": norms.max(), "spectral_norm/sum": norms.sum()}
            | {"speed/images_per_second": self._images_per_second},
        )

    def write_due(self, step: int) -> bool:
        """Writes the test metrics and samples of a step that are due; False where a stop was requested meanwhile."""
        if step == 0:
            return True
        evaluates = self.is_evaluated(step) and not self._metrics.has(step)
        grid = self._folder.samples / f"step-{step:08d}.png"
        draws = self._is_due(step, self._run.config.train.sample_every_steps) and not grid.exists()
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
        return step > 0 and self._is_due(step, self._run.config.train.evaluate_every_steps)

    def test_score(self, step: int) -> float:
        """The NELBO of the test images after a step at which they were scored, in nats per image."""
        return self._metrics.value(step, _SCORE)

    def _running_means(self) -> dict[str, float]:
        return {metric.name: float(metric.result()) for metric in self._run.model.metrics}

    def _moving_means(self, step: int) -> dict[str, float]:
        """Means over about `train.log_every_steps` steps: the last period stands in for the rest of the present one."""
        means, period = self._running_means(), self._run.config.train.log_every_steps
        part = (step % period or period) / period
        last = means | {name: value for name, value in self._last_means.items() if math.isfinite(value)}
        moving = {name: part * value + (1.0 - part) * last[name] for name, value in means.items()}
        return moving | {"skipped_steps": means["skipped_steps"]}

    def _schedules(self) -> dict[str, float]:
        """The scheduled values of the next step; skipped steps don't count."""
        objective, taken = self._run.config.objective, int(self._run.model.optimizer.iterations.numpy())
        beta = kl_weight(tf.constant(taken), objective)
        return {
            "learning_rate": float(self._run.schedule(taken)),
            "kl_weight": float(beta) * objective.kl_final_weight,
            "regularization_weight": float(regularization_weight(beta, objective)),
        }

    def bits_per_dimension(self, nats: float) -> float:
        """The bits per real value for the nats of an image."""
        return bits_per_dimension(nats, math.prod(self._run.images.spec.image_shape))

    @property
    def _images_per_second(self) -> float:
        return (self._speed.steps_per_second or 0.0) * self._run.images_a_step

    def _is_due(self, step: int, interval: int) -> bool:
        return step % interval == 0 or step == self._run.length.total_steps

    def _write_evaluation(self, step: int) -> None:
        images = self._run.images
        self.status.announce(f"evaluating the {images.test.count:,} test images")
        batches = evaluation_batches(images.test, images.spec, self._batch_size, _FIXED_SEED)

        def show(done: int) -> None:
            self._stop.check()
            count = images.test.count
            self.status.show_if_due(f"evaluating: {done:,} of {count:,} test images", done / count)

        test = self._evaluator.evaluate(iterate(batches, images.test), _FIXED_SEED, show)
        active = active_units(test.kl_per_channel_nats, self._run.model.plan.latent_shapes())
        measured = {name: getattr(test, name) for name in ("nelbo_nats", "reconstruction_nats", "kl_nats")}
        measured["bits_per_dim"] = self.bits_per_dimension(test.nelbo_nats)
        self._log.scalars(
            step,
            {f"test/{name}": value for name, value in measured.items()}
            | {"test/active_units": active.sum()}
            | {f"kl_per_group/{index:02d}": value for index, value in enumerate(test.kl_per_group_nats)}
            | {f"active_units/{index:02d}": value for index, value in enumerate(active)},
        )
        training, schedules = self._running_means(), self._schedules()
        self._metrics.append(
            {"step": step, "epoch": step / self._run.length.steps_per_epoch}
            | {name: schedules[name] for name in ("learning_rate", "kl_weight")}
            | {"train_loss": training["loss"], "train_nelbo_nats": training["reconstruction"] + training["kl"]}
            | {f"train_{name}_nats": training[name] for name in ("reconstruction", "kl")}
            | {f"test_{name}": value for name, value in measured.items()}
            | {"images_per_second": self._images_per_second, "active_units": int(active.sum())}
        )
        score = f"NELBO {test.nelbo_nats:.2f} nats per image, {measured['bits_per_dim']:.4f} bits/dim"
        self.status.keep(f"step {step:,}: test {score}")

    def _write_images(self, step: int, file: pathlib.Path) -> None:
        """Writes reconstructions and samples for TensorBoard, and last a file, which shows that all are there."""
        spec, test = self._run.images.spec, self._run.images.test
        self.status.announce("drawing reconstructions")
        originals, labels, _ = chosen_images(test, spec, "test", at_most=8, seed=_FIXED_SEED)
        # Eagerly: for a handful of images a graph takes longer to build than it saves.
        reconstructions = self._run.model(originals, seed=_FIXED_SEED, labels=labels)
        rows = tf.concat([originals, reconstructions], axis=0)
        self._stop.check()
        self._log.image(step, "reconstructions", image_grid(rows, columns=len(originals), enlarge=None))
        for temperature, count in _SAMPLES.items():
            self.status.announce(f"drawing samples at temperature {temperature:g}")
            images = self._generator.generate(count, temperature, _FIXED_SEED, lambda done: self._stop.check())
            grid = image_grid(images, enlarge=None)
            self._log.image(step, f"samples/temperature_{temperature}", grid)
        write_samples(file, images, self._folder.path.absolute().name, step, temperature)


def write_samples(file: pathlib.Path, images: np.ndarray, model: str, step: int, temperature: float) -> None:
    """Writes a PNG file: a figure, or a bare grid where matplotlib, which training does not need, is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        write_png(file, image_grid(images, enlarge=None))
        return
    from nvae_tf.reports import figures

    figures.save_figure(figures.samples(images, figures.Provenance(model, step, temperature, _FIXED_SEED)), file)


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


class MetricsFile:
    """`metrics.csv`: one line an evaluation, in the order of steps, each step once.

    `train_*` are means over the steps since the last multiple of `train.log_every_steps`. New columns are added at the
    end of an older version's file, and left empty in the lines before.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path

    def keep_until(self, step: int) -> int:
        """Drops the lines after a step, and damaged and repeated lines, whose number it returns."""
        columns, rows, damaged = self._read()
        self._write(columns, [row for row_step, row in rows.items() if row_step <= step])
        return damaged

    def has(self, step: int) -> bool:
        """Whether there is a line for a step."""
        return step in self._read()[1]

    def value(self, step: int, column: str) -> float:
        """A number of the line for a step, as it is written."""
        return float(self._read()[1][step][column])

    def append(self, row: Mapping[str, float]) -> None:
        """Adds the line of a later step; numbers are written with six digits."""
        columns, rows, _ = self._read()
        written = {name: str(value) if isinstance(value, int) else f"{value:.6g}" for name, value in row.items()}
        self._write([*columns, *(name for name in COLUMNS if name not in columns)], [*rows.values(), written])

    def _read(self) -> tuple[list[str], dict[int, dict[str, str]], int]:
        """The columns, the intact lines by their steps, in order, and the number of others."""
        content = self._content()
        # A line that was being written when the process ended has no end of line.
        lines = [line.split(",") for line in content[: content.rfind("\n") + 1].splitlines() if line.strip()]
        columns, rows = lines[0] if lines else [], {}
        if not {"step", _SCORE} <= {*columns}:
            return [], {}, len(lines)
        for line in lines[1:]:
            with contextlib.suppress(ValueError):
                row = dict(zip(columns, line, strict=True))
                for name in COLUMNS:
                    # The line may be older than the column.
                    float(row.get(name) or 0.0)
                if row["step"].isdecimal() and row[_SCORE]:
                    rows[int(row["step"])] = row
        return columns, dict(sorted(rows.items())), len(lines) - 1 - len(rows)

    def _content(self) -> str:
        return self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""

    def _write(self, columns: list[str], rows: Iterable[Mapping[str, str]]) -> None:
        lines = [columns, *([row.get(name, "") for name in columns] for row in rows)]
        text = "".join(f"{','.join(line)}\n" for line in lines if line)
        if text != self._content():
            atomic_write(self._path, text)


class TensorBoardLog:
    """Settings, scalars and images for TensorBoard, with charts in which training and test images overlay."""

    def __init__(self, folder: pathlib.Path, settings: Mapping[str, Any]):
        self._folder, self._settings = folder, settings

    @functools.cached_property
    def _writer(self) -> tf.summary.SummaryWriter:
        # Made at the first point: otherwise every look at a finished run would leave a file.
        writer = tf.summary.create_file_writer(str(self._folder))
        rows = "".join(f"| {name} | `{value}` |\n" for name, value in self._settings.items())
        pairs = {name: {"tag": [f"train/{name}$", f"test/{name}$"]} for name in ("nelbo_nats", "bits_per_dim")}
        charts = [layout_pb2.Chart(title=name, multiline=tags) for name, tags in pairs.items()]
        layout = layout_pb2.Layout(category=[layout_pb2.Category(title="training and test images", chart=charts)])
        with writer.as_default(0):
            tf.summary.text("settings", f"| setting | value |\n|---|---|\n{rows}")
            # TensorBoard takes no None and no lists as hyperparameters.
            known = (bool, float, int, str)
            hparams.hparams({name: value for name, value in self._settings.items() if isinstance(value, known)})
            tf.summary.experimental.write_raw_pb(custom_scalar.pb(layout).SerializeToString())
        return writer

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one point of each curve."""
        with self._writing(step):
            for tag, value in values.items():
                texts = (text for part, text in _DESCRIPTIONS.items() if part in tag)
                tf.summary.scalar(tag, value, description=next(texts, None))

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes an image, uint8 `[height, width, channels]`."""
        with self._writing(step):
            tf.summary.image(name, pixels[np.newaxis])

    @contextlib.contextmanager
    def _writing(self, step: int) -> Iterator[None]:
        try:
            with self._writer.as_default(step):
                yield
            self._writer.flush()
        except tf.errors.OpError as error:
            reason = first_line(error)
            raise OSError(f"{self._folder}: TensorBoard's files can't be written ({reason})") from error


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

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes one point of each curve."""
        self._run.log({tag: float(value) for tag, value in values.items()}, step=step)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes an image, uint8 `[height, width, channels]`."""
        self._run.log({name: self._wandb.Image(pixels)}, step=step)
