"""The curves of a run: read from `metrics.csv` and TensorBoard's event files, and drawn as SVG by matplotlib."""

import contextlib
import csv
import io
import logging
import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple
from xml.etree import ElementTree

import matplotlib
import numpy as np
import tensorflow as tf
from markupsafe import Markup
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util

# Positive values that span more than this are shown on a logarithmic axis: the early steps of a training would press
# the later ones flat.
_LOGARITHMIC_FROM = 30.0
# More places to point at would swell the page, and more columns of a heat map are narrower than a pixel of a phone.
_MOST_PLACES, _MOST_COLUMNS = 100, 60
# A logarithmic map goes down to this part of its largest value; below all is dark.
_SMALLEST_PART = 1e-3
# Colors of a drawing, and the variables of the page, light or dark, that take their place.
_FAINT, _RULE, _LINES = "#59636e", "#d5dae0", ("#0a63c4", "#c2410c")
_OF_PAGE = {_FAINT: "var(--faint)", _RULE: "var(--rule)", _LINES[0]: "var(--line0)", _LINES[1]: "var(--line1)"}
_STYLE = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _FAINT),
    **{"grid.color": _RULE, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False},
    # Texts stay texts, and the same drawing has the same bytes.
    **{"svg.fonttype": "none", "svg.hashsalt": "nvae_tf", "font.sans-serif": ["DejaVu Sans"]},
}


# It reports, as a warning, that it makes its cache of fonts.
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)


class Curve(NamedTuple):
    """Values at training steps, in ascending order of the steps; NaN for a gap."""

    steps: Sequence[int]
    values: Sequence[float]


def read_metrics(file: pathlib.Path) -> dict[str, Curve]:
    """The columns of `metrics.csv`; what is no number is NaN. Nothing where the file is missing or another kind."""
    with contextlib.suppress(OSError, ValueError, csv.Error):
        text = file.read_text(encoding="utf-8", errors="replace")
        # The line that a running training is writing has no end yet.
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        rows = [row for row in reader if (row.get("step") or "").isdecimal()]
        rows.sort(key=lambda row: int(row["step"]))
        steps = [int(row["step"]) for row in rows]
        columns = [name for name in reader.fieldnames or [] if name != "step"] if rows else []
        return {name: Curve(steps, [_number(row.get(name)) for row in rows]) for name in columns}
    return {}


def read_scalars(folder: pathlib.Path, families: Collection[str]) -> dict[str, Curve]:
    """The curves of TensorBoard's event files whose tags begin with one of the families, as in `kl_per_group/03`.

    Goes through the files one event at a time (TensorBoard's accumulator would keep all images in memory). Where a
    run has gone back, because it was continued from an earlier checkpoint, the later values count. Files that are
    damaged give what is before the damage.
    """
    points: dict[str, dict[int, float]] = {}
    # A file's name begins with the time of its making.
    for file in sorted(folder.glob("*tfevents*")):
        with contextlib.suppress(tf.errors.OpError, OSError):
            for event in EventFileLoader(str(file)).Load():
                for value in event.summary.value:
                    if value.tag.partition("/")[0] in families and value.metadata.plugin_data.plugin_name == "scalars":
                        curve = points.setdefault(value.tag, {})
                        if curve and event.step <= next(reversed(curve)):
                            for later in [step for step in curve if step >= event.step]:
                                del curve[later]
                        curve[event.step] = float(tensor_util.make_ndarray(value.tensor))
    return {tag: Curve(list(curve), list(curve.values())) for tag, curve in points.items()}


def group_curves(scalars: Mapping[str, Curve], family: str) -> tuple[list[int], list[int], np.ndarray] | None:
    """The numbers of groups, all steps, and values `[groups, steps]` of the curves `family/00`, `family/01` ...; NaN
    where a group has no value, None where there are no such curves.
    """
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
    return groups, steps, values


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def figure(title: str, about: str, content: Markup) -> Markup:
    """A chart or image, which is HTML, below its caption."""
    return Markup("<figure><figcaption><b>{}</b> {}</figcaption>{}</figure>").format(title, about, content)


def line_chart(title: str, unit: str, lines: Mapping[str, Curve]) -> Markup:
    """A figure of up to two lines over training steps, by their names; what is not finite leaves a gap.

    The vertical axis is logarithmic, and says so, where all values are positive and of very different sizes.
    """
    finite = np.concatenate([np.asarray(curve.values)[np.isfinite(curve.values)] for curve in lines.values()])
    is_logarithmic = finite.min() > 0.0 and finite.max() / finite.min() > _LOGARITHMIC_FROM
    words = {}
    with matplotlib.rc_context(_STYLE):
        drawing = Figure(figsize=(6.4, 3.5), layout="constrained")
        axes = drawing.add_subplot(xlabel="training step", yscale="log" if is_logarithmic else "linear")
        axes.grid(axis="y")
        axes.xaxis.get_major_locator().set_params(integer=True, nbins=5, min_n_ticks=1)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_major_formatter("{x:,g}")
        for (name, (steps, values)), color, form in zip(lines.items(), _LINES, ("-", "--"), strict=False):
            points = [(step, value) for step, value in zip(steps, values, strict=True) if np.isfinite(value)]
            chosen = np.unique(np.linspace(0, len(points) - 1, min(len(points), _MOST_PLACES)).round().astype(int))
            points = [points[index] for index in chosen]
            axes.plot(steps, values, form, color=color, label=name)
            axes.scatter(*zip(*points, strict=True), s=12, color=color, gid=f"places of {name}")
            words[f"places of {name}"] = [
                f"{name}, step {step:,.0f}: {_written(value)} {unit}" for step, value in points
            ]
        axes.legend()
        chart = _svg(drawing, f"{title} over steps", words)
    return figure(title, unit + ("; logarithmic axis" if is_logarithmic else ""), chart)


def heat_map(
    title: str, unit: str, rows: Sequence[str], steps: Sequence[int], values: np.ndarray, is_logarithmic: bool = False
) -> Markup:
    """A figure of values `[rows, steps]` as colors, from 0 or a thousandth of the largest; NaN leaves a gap.

    Beside a row's name stands its latest value. Where there are more steps than can be seen, a column is the mean of
    several. The values are not negative; the steps are in ascending order.
    """
    columns = np.array_split(np.arange(len(steps)), min(len(steps), _MOST_COLUMNS))
    spans = [(steps[part[0]], steps[part[-1]]) for part in columns]
    when = [f"step {first:,}" if first == last else f"mean of steps {first:,} to {last:,}" for first, last in spans]
    found = np.ma.masked_invalid(values)
    means = np.ma.stack([found[:, part].mean(axis=1) for part in columns], axis=1)
    largest = float(found.max()) if found.count() else 0.0
    colors = Normalize(0.0, largest or 1.0)
    if is_logarithmic and largest > 0.0:
        colors = LogNorm(largest * _SMALLEST_PART, largest, clip=True)
    words = [
        None if np.ma.is_masked(mean) else f"{name}, {time}: {_written(mean)} {unit}"
        for name, of_row in zip(rows, means, strict=True)
        for time, mean in zip(when, of_row, strict=True)
    ]
    with matplotlib.rc_context(_STYLE):
        drawing = Figure(figsize=(6.4, 1.2 + 0.24 * len(rows)), layout="constrained")
        axes = drawing.add_subplot(xlabel="training step")
        viridis = matplotlib.colormaps["viridis"].resampled(64)
        mesh = axes.pcolormesh(means, cmap=viridis, norm=colors, gid="cells")
        labels = [f"{name}: {_written(latest)}" for name, latest in zip(rows, values[:, -1], strict=True)]
        axes.set_yticks(np.arange(len(rows)) + 0.5, labels)
        axes.set_xticks([0, len(columns)], [f"{steps[0]:,}", f"{steps[-1]:,}"])
        axes.invert_yaxis()
        drawing.colorbar(mesh, orientation="horizontal", format="{x:,g}", aspect=40)
        chart = _svg(drawing, title, {"cells": words})
    return figure(title, unit + ("; logarithmic colors" if is_logarithmic else ""), chart)


def _svg(drawing: Figure, label: str, words: Mapping[str, Sequence[str | None]]) -> Markup:
    """A drawing as an element of the page, in its colors; `words`: by an artist's `gid` what its places say."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    drawing.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        # In HTML the elements have no name spaces. Nothing needs to be clipped.
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
        element.attrib.pop("clip-path", None)
    for group in root.iter("g"):
        texts = words.get(group.attrib.pop("id", ""), ())
        # Marks, which use one path, or cells.
        places = (list(group.iter("use")) or list(group.iter("path"))) if texts else ()
        for place, text in zip(places, texts, strict=True):
            if text is not None:
                ElementTree.SubElement(place, "title").text = text
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": label}
    text = ElementTree.tostring(root, encoding="unicode")
    for color, variable in _OF_PAGE.items():
        text = text.replace(color, variable)
    return Markup(text)


def _written(value: float) -> str:
    """A number for people: `12,300`, `42.79`, `0.0001`, `3e-05`."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{value}"
    return f"{value:,.0f}" if abs(value) >= 1000.0 else f"{value:.4g}"
