"""What a run writes besides checkpoints: metrics of training and test images, and grids of samples.

`metrics.csv` is for people and spreadsheets; TensorBoard's event files have the same numbers and more.
"""

import contextlib
import csv
import functools
import io
import math
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from nvae_tf.data.pipeline import evaluation_batches, iterate
from nvae_tf.errors import first_line
from nvae_tf.evaluation.latent_usage import active_units
from nvae_tf.evaluation.likelihood import LikelihoodEvaluator
from nvae_tf.files import atomic_write
from nvae_tf.generation.image_grid import image_grid, write_png
from nvae_tf.generation.sampling import ImageGenerator
from nvae_tf.objective import bits_per_dimension, kl_weight, regularization_weight
from nvae_tf.optimization import averaged_weights
from nvae_tf.progress import Speed, StatusLine
from nvae_tf.training.run import Run
from nvae_tf.training.run_folder import RunFolder
from nvae_tf.training.stopping import StopRequest, StopRequested

COLUMNS = (
    *("step", "epoch", "learning_rate", "kl_weight"),
    *("train_loss", "train_nelbo_nats", "train_reconstruction_nats", "train_kl_nats"),
    *("test_nelbo_nats", "test_reconstruction_nats", "test_kl_nats", "test_bits_per_dim"),
    *("images_per_second", "active_units"),
)
# What every line has, besides its step.
_SCORE = "test_nelbo_nats"
_LONGEST_LINE = 10_000

# The same latents, images and binarization every time: so that only the model differs.
_FIXED_SEED = 0
# How many samples at which temperatures; those of the last are in `samples/`, too. The paper shows samples from 1.0, of
# small gray images, down to 0.6 and less, of large photographs.
_SAMPLES = {1.0: 16, 0.9: 16, 0.8: 16, 0.6: 16, 0.7: 64}
_RECONSTRUCTION_COUNT = 8


class RunOutputs:
    """Writes what is due at a step, and not again what is there already, so a run can continue at any step."""

    def __init__(self, folder: RunFolder, run: Run, stop: StopRequest):
        self.status = StatusLine()
        self.speed = Speed()
        self._folder, self._run, self._stop = folder, run, stop
        self._metrics = MetricsFile(folder.metrics_file)
        self._tensorboard = TensorBoardWriter(folder.tensorboard)
        self._batch_size = min(run.config.train.batch_size, run.images.test.count)
        self._evaluator = LikelihoodEvaluator(run.model, self._batch_size)
        self._generator = ImageGenerator(run.model)

    def continue_from(self, step: int) -> None:
        """Drops the metrics of steps that will be made again, and damaged ones."""
        damaged = self._metrics.keep_until(step)
        if damaged:
            self.status.keep(f"{self._folder.metrics_file}: lines that are damaged or there twice: {damaged}, dropped.")

    def write_training_curves(self, step: int) -> None:
        """Writes the points of TensorBoard's training curves, if they are due."""
        if not self._is_due(step, self._run.config.train.log_every_steps):
            return
        recent = self._run.model.recent.read()
        kl, norms = recent.kl_per_group[-1], recent.spectral_norms[-1]
        self._tensorboard.scalars(
            step,
            {f"train/{name}": value for name, value in self.running_means().items()}
            | {f"schedule/{name}": value for name, value in self.schedules().items()}
            | {f"train_kl_per_group/{index:02d}": value for index, value in enumerate(kl)}
            | {"spectral_norm/largest": norms.max(), "spectral_norm/sum": norms.sum()}
            | {"speed/images_per_second": self.images_per_second},
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
        self.speed.pause()
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
        """The test images' negative bound in nats after a step at which they were scored."""
        return self._metrics.value(step, _SCORE)

    def running_means(self) -> dict[str, float]:
        """Loss, reconstruction and KL of training, in nats per image, since the means were last reset."""
        return {metric.name: float(metric.result()) for metric in self._run.model.metrics}

    def schedules(self) -> dict[str, float]:
        """Learning rate, KL weight beta and regularization weight lambda of the next step; skipped ones don't count."""
        objective, taken = self._run.config.objective, int(self._run.model.optimizer.iterations.numpy())
        beta = kl_weight(tf.constant(taken), objective)
        return {
            "learning_rate": float(self._run.schedule(taken)),
            "kl_weight": float(beta),
            "regularization_weight": float(regularization_weight(beta, objective)),
        }

    def bits_per_dimension(self, nats: float) -> float:
        """Nats of an image as bits per real value."""
        return bits_per_dimension(nats, math.prod(self._run.images.spec.image_shape))

    @property
    def images_per_second(self) -> float:
        """The speed of training."""
        return (self.speed.steps_per_second or 0.0) * self._run.images_a_step

    def _is_due(self, step: int, interval: int) -> bool:
        return step % interval == 0 or step == self._run.length.total_steps

    def _write_evaluation(self, step: int) -> None:
        images = self._run.images
        batches = evaluation_batches(images.test, images.spec, self._batch_size, _FIXED_SEED)

        def show(done: int) -> None:
            self._stop.check()
            self.status.show_if_due(f"evaluating: {done:,} of {images.test.count:,} test images")

        test = self._evaluator.evaluate(iterate(batches, images.test), _FIXED_SEED, show)
        active = active_units(test.kl_per_channel_nats, self._run.model.plan.latent_shapes())
        measured = {name: getattr(test, name) for name in ("nelbo_nats", "reconstruction_nats", "kl_nats")}
        measured["bits_per_dim"] = self.bits_per_dimension(test.nelbo_nats)
        self._tensorboard.scalars(
            step,
            {f"test/{name}": value for name, value in measured.items()}
            | {"test/active_units": active.sum()}
            | {f"kl_per_group/{index:02d}": value for index, value in enumerate(test.kl_per_group_nats)}
            | {f"active_units/{index:02d}": value for index, value in enumerate(active)},
        )
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
                **{f"test_{name}": value for name, value in measured.items()},
                "images_per_second": self.images_per_second,
                "active_units": int(active.sum()),
            }
        )

    def _write_images(self, step: int, file: pathlib.Path) -> None:
        """Reconstructions and samples for TensorBoard; the last also as a file, which shows that all are there."""
        # Eagerly: for a handful of images a graph takes longer to build than it saves.
        reconstructions = self._run.model(self._originals, seed=_FIXED_SEED)
        self._stop.check()
        rows = tf.concat([self._originals, reconstructions], axis=0)
        self._tensorboard.image(step, "reconstructions", image_grid(rows, columns=len(self._originals), enlarge=None))
        for temperature, count in _SAMPLES.items():
            images = self._generator.generate(count, temperature, _FIXED_SEED, lambda done: self._stop.check())
            grid = image_grid(images, enlarge=None)
            self._tensorboard.image(step, f"samples/temperature_{temperature}", grid)
        write_png(file, grid)

    @functools.cached_property
    def _originals(self) -> tf.Tensor:
        """The first test images as the model sees them."""
        spec, test = self._run.images.spec, self._run.images.test
        count = min(_RECONSTRUCTION_COUNT, test.count)
        with contextlib.closing(iterate(evaluation_batches(test, spec, count, _FIXED_SEED), test)) as batches:
            return next(batches)


class MetricsFile:
    """`metrics.csv`: one line an evaluation, in the order of steps, each step once.

    `train_*` are means over the steps since the last multiple of `train.log_every_steps`, `test_*` over the test
    images; `active_units` are counted over all groups. A file keeps all its columns. What one of an older version lacks
    is added at the end with the next line, and left empty in the lines before.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path

    def keep_until(self, step: int) -> int:
        """Drops the lines after a step, which a continued run writes again, and damaged ones.

        Returns how many were damaged or there twice; a last one that a killed process was writing does not count.
        """
        columns, rows, damaged = self._read()
        self._write(columns, [row for row in rows if int(row["step"]) <= step])
        return damaged

    def has(self, step: int) -> bool:
        """Whether there is a line for a step."""
        return any(int(row["step"]) == step for row in self._read()[1])

    def value(self, step: int, column: str) -> float:
        """A number of the line for a step, as it is written."""
        (row,) = (row for row in self._read()[1] if int(row["step"]) == step)
        return float(row[column])

    def append(self, row: Mapping[str, float]) -> None:
        """Adds the line of a later step; numbers are written with six digits."""
        written = {name: value if isinstance(value, int) else f"{value:.6g}" for name, value in row.items()}
        columns, rows, _ = self._read()
        self._write([*columns, *(name for name in COLUMNS if name not in columns)], [*rows, written])

    def _read(self) -> tuple[list[str], list[dict[str, str]], int]:
        """The columns of the file, its intact lines in the order of steps, and how many others it has."""
        content = self._content()
        # What the process was writing when it ended has no end of line.
        lines = [line for line in content[: content.rfind("\n") + 1].splitlines() if line.strip()]
        # Numbers need no quotes: one that damage has brought would make a single field of all that follows.
        short = [line for line in lines if len(line) < _LONGEST_LINE]
        reader = csv.DictReader(short, quoting=csv.QUOTE_NONE)
        columns = list(reader.fieldnames or [])
        if not {"step", _SCORE} <= {*columns}:
            return [], [], len(lines)
        by_step = {int(row["step"]): row for row in reader if _is_intact(row)}
        return columns, [by_step[step] for step in sorted(by_step)], len(lines) - 1 - len(by_step)

    def _content(self) -> str:
        return self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""

    def _write(self, columns: list[str], rows: list[Mapping[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        if columns:
            writer.writeheader()
        writer.writerows(rows)
        if text.getvalue() != self._content():
            atomic_write(self._path, text.getvalue())


def _is_intact(row: Mapping[str | None, str | None]) -> bool:
    """Whether a line has all its fields and a score, and numbers where numbers belong."""
    if None in row or None in row.values() or not row["step"].isdecimal() or row[_SCORE] == "":
        return False
    try:
        int(row["step"])
        for name in COLUMNS:
            # A column that is newer than the line is empty.
            float(row.get(name) or 0.0)
    except ValueError:
        return False
    return True


class TensorBoardWriter:
    """Scalars and images for TensorBoard."""

    def __init__(self, folder: pathlib.Path):
        self._folder = folder

    @functools.cached_property
    def _writer(self) -> tf.summary.SummaryWriter:
        # Only when something is written, or every look at a finished run would leave an empty file.
        return tf.summary.create_file_writer(str(self._folder))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one point of each curve."""
        with self._written(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes an image, uint8 `[height, width, channels]`."""
        with self._written(step):
            tf.summary.image(name, pixels[np.newaxis])

    @contextlib.contextmanager
    def _written(self, step: int) -> Iterator[None]:
        try:
            with self._writer.as_default(step):
                yield
            self._writer.flush()
        except tf.errors.OpError as error:
            reason = first_line(error)
            raise OSError(f"{self._folder}: TensorBoard's files can't be written ({reason})") from error
