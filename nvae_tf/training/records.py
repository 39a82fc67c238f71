"""The numbers of a run in files: `metrics.csv` for people and spreadsheets, event files for TensorBoard."""

import contextlib
import csv
import functools
import io
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.errors import first_line
from nvae_tf.files import atomic_write

COLUMNS = (
    "step",
    "epoch",
    "learning_rate",
    "kl_weight",
    "train_loss",
    "train_nelbo_nats",
    "train_reconstruction_nats",
    "train_kl_nats",
    "test_nelbo_nats",
    "test_reconstruction_nats",
    "test_kl_nats",
    "test_bits_per_dim",
    "images_per_second",
    "active_units",
)
# What every line has, besides its step.
_SCORE = "test_nelbo_nats"
_LONGEST_LINE = 10_000


class MetricsFile:
    """`metrics.csv`: one line an evaluation, in the order of steps, each step once.

    `train_*` are means over the steps since the last multiple of `train.log_every_steps`, `test_*` over the
    test part; `active_units` are counted over all groups, see `nvae_tf.evaluation.latent_usage.active_units`.

    A file keeps all its columns. What one of an older version lacks is added at the end with the next line, and left
    empty in the lines before.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path

    def keep_until(self, step: int) -> int:
        """Drops the lines after a step, which a run that goes on writes again, and damaged and half-written ones.

        Returns:
          How many were damaged, or there twice; a last one that a process was writing when it ended does not count.
        """
        columns, rows, damaged = self._read()
        kept = _text([row for row in rows if int(row["step"]) <= step], columns, with_header=True)
        if kept != self._content():
            atomic_write(self._path, kept)
        return damaged

    def has(self, step: int) -> bool:
        """Whether there is a line for a step."""
        return any(int(row["step"]) == step for row in self._read().rows)

    def value(self, step: int, column: str) -> float:
        """A number of the line for a step, as it is written."""
        (row,) = (row for row in self._read().rows if int(row["step"]) == step)
        return float(row[column])

    def append(self, row: Mapping[str, float]) -> None:
        """Adds the line of a later step; numbers are written with six digits."""
        written = {name: value if isinstance(value, int) else f"{value:.6g}" for name, value in row.items()}
        columns, rows, _ = self._read()
        missing = [name for name in COLUMNS if name not in columns]
        if missing:
            atomic_write(self._path, _text([*rows, written], [*columns, *missing], with_header=True))
            return
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(_text([written], columns, with_header=False))

    def _read(self) -> "_Lines":
        """What is whole in the file; nothing where there is no file, or not one of metrics."""
        content = self._content()
        # What the process was writing when it ended has no end of line.
        lines = [line for line in content[: content.rfind("\n") + 1].splitlines() if line.strip()]
        # Numbers need no quotes: one that damage has brought would make a single field of all that follows.
        short = [line for line in lines if len(line) < _LONGEST_LINE]
        reader = csv.DictReader(short, quoting=csv.QUOTE_NONE)
        columns = list(reader.fieldnames or [])
        if not {"step", _SCORE} <= {*columns}:
            return _Lines([], [], len(lines))
        by_step = {int(row["step"]): row for row in reader if _is_whole(row)}
        return _Lines(columns, [by_step[step] for step in sorted(by_step)], len(lines) - 1 - len(by_step))

    def _content(self) -> str:
        return self._path.read_text(encoding="utf-8", errors="replace") if self._path.exists() else ""


class _Lines(NamedTuple):
    """The columns of a file of metrics, its whole lines in the order of steps, and how many others it has."""

    columns: list[str]
    rows: list[dict[str, str]]
    damaged: int


def _is_whole(row: Mapping[str | None, str | None]) -> bool:
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
    """Scalars and pictures for TensorBoard."""

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

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Writes a picture, uint8 `[height, width, channels]`."""
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


def _text(rows: list[Mapping[str, str]], columns: list[str], with_header: bool) -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    if with_header and columns:
        writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
