"""The figures that a run has written on its way: `metrics.csv` and TensorBoard's event files."""

import contextlib
import csv
import io
import math
import pathlib
from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util


class Curve(NamedTuple):
    """Values at training steps, in ascending order of the steps."""

    steps: list[int]
    values: list[float]


class GroupCurves(NamedTuple):
    """A figure of every latent group over time.

    Attributes:
      groups: their numbers, the top one first.
      steps: in ascending order.
      values: `[groups, steps]`, NaN where a group has none at a step.
    """

    groups: list[int]
    steps: list[int]
    values: np.ndarray


def read_metrics(file: pathlib.Path) -> dict[str, Curve]:
    """The columns of `metrics.csv`; what is no number is NaN. None where the file is missing or another kind."""
    with contextlib.suppress(OSError, ValueError, csv.Error):
        text = file.read_text(encoding="utf-8", errors="replace")
        # What a running training is writing has no end of line yet.
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        rows = [row for row in reader if (row.get("step") or "").isdecimal()]
        rows.sort(key=lambda row: int(row["step"]))
        steps = [int(row["step"]) for row in rows]
        columns = [name for name in reader.fieldnames or [] if name != "step"] if rows else []
        return {name: Curve(steps, [_number(row.get(name)) for row in rows]) for name in columns}
    return {}


def read_scalars(folder: pathlib.Path, families: Collection[str]) -> dict[str, Curve]:
    """The curves of TensorBoard's event files whose tags begin with one of the families, as in `kl_per_group/03`.

    Goes through the files one event at a time (TensorBoard's accumulator would keep all pictures in memory). Where a
    run has gone back, because it was continued from an earlier checkpoint, the later values count. Files that are
    damaged give what is before the damage.
    """
    points: dict[str, dict[int, float]] = {}
    # A file begins with the time of its making.
    for file in sorted(folder.glob("*tfevents*")):
        with contextlib.suppress(tf.errors.OpError, OSError):
            for event in EventFileLoader(str(file)).Load():
                for value in event.summary.value:
                    if value.tag.partition("/")[0] in families and value.metadata.plugin_data.plugin_name == "scalars":
                        _add(points.setdefault(value.tag, {}), event.step, tensor_util.make_ndarray(value.tensor))
    return {tag: Curve(list(curve), list(curve.values())) for tag, curve in points.items()}


def group_curves(scalars: dict[str, Curve], family: str) -> GroupCurves | None:
    """Puts the curves `family/00`, `family/01` ... together; None where there are none."""
    numbers = {tag: tag.partition("/")[2] for tag in scalars if tag.startswith(f"{family}/")}
    tags = {int(number): tag for tag, number in numbers.items() if number.isdecimal()}
    if not tags:
        return None
    groups = sorted(tags)
    steps = sorted({step for tag in tags.values() for step in scalars[tag].steps})
    values = np.full([len(groups), len(steps)], np.nan)
    for row, group in enumerate(groups):
        curve = scalars[tags[group]]
        values[row, np.searchsorted(steps, curve.steps)] = curve.values
    return GroupCurves(groups, steps, values)


def _add(curve: dict[int, float], step: int, value: np.ndarray) -> None:
    if curve and step <= next(reversed(curve)):
        for later in [known for known in curve if known >= step]:
            del curve[later]
    curve[step] = float(value)


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan
