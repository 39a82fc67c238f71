"""The curves of a run: read from `metrics.csv` and TensorBoard's event files, and drawn as SVG from numbers alone."""

import contextlib
import csv
import io
import math
import pathlib
from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from markupsafe import Markup, escape
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util

# Where the axes of a line chart lie.
WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 64, 428, 10, 206
# Positive values that span more than this are shown on a logarithmic axis: the early steps of a training would press
# the later ones flat.
_LOGARITHMIC_FROM = 30.0
# More points than these are not seen as such on a line, and more places to point at would swell the page.
_MOST_POINTS, _MOST_PLACES, _MOST_DOTS = 1000, 100, 40
# The rows of a heat map. More columns than these are narrower than a pixel of a phone.
_MAP_LEFT, _MAP_RIGHT, _MAP_TOP, _ROW, _MOST_COLUMNS = 104, 400, 22, 17, 60
# A logarithmic map goes down to this part of its largest value; below all is dark.
_SMALLEST_PART = 1e-3
# From dark to light with even steps of lightness, as `viridis` has it.
_COLORS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float64)


class Curve(NamedTuple):
    """Values at training steps, in ascending order of the steps."""

    steps: list[int]
    values: list[float]


class GroupCurves(NamedTuple):
    """The curves of all latent groups, the top one first: `values[groups, steps]`, NaN where there is none."""

    groups: list[int]
    steps: list[int]
    values: np.ndarray


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


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


class Axis(NamedTuple):
    """The values `low` to `high` between the places `start` and `end` of a chart."""

    low: float
    high: float
    start: float
    end: float
    is_logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value lies; NaN for one that is not finite. Outside of a logarithmic axis the nearest end counts."""
        if not math.isfinite(value):
            return math.nan
        low, high = self.low, self.high
        if self.is_logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def value(self, place: float) -> float:
        """What lies at a place."""
        part = (place - self.start) / (self.end - self.start)
        if self.is_logarithmic:
            return self.low * (self.high / self.low) ** part
        return self.low + (self.high - self.low) * part

    def ticks(self, spaces: int = 5) -> list[float]:
        """Round values within the axis, with about so many spaces between them, or fewer."""
        if self.is_logarithmic:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            decades = math.log10(self.high / self.low)
            every = max(1, math.ceil(decades / spaces))
            factors = (1, 2, 5) if decades < 3 else (1,)
            ticks = [float(f"{factor}e{power}") for power in powers if power % every == 0 for factor in factors]
            return [tick for tick in ticks if self.low <= tick <= self.high]
        space = (self.high - self.low) / spaces
        size = 10.0 ** math.floor(math.log10(space))
        step = next(size * factor for factor in (1, 2, 5, 10) if space / (size * factor) <= 1.0)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        # Rounded, or 0.3 would be 0.30000000000000004.
        digits = max(0, 1 - math.floor(math.log10(step)))
        return [round(number * step, digits) for number in range(first, last + 1)]


def axis_of(values: Iterable[float], start: float, end: float, margin: float = 0.0, may_be_logarithmic=False) -> Axis:
    """An axis from place `start` to `end` with room for all finite values, and a margin (a fraction of their range).

    Equal values are in its middle; without values it is 0 to 1. It may be logarithmic for positive values of very
    different sizes.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Axis(0.0, 1.0, start, end)
    low, high = min(finite), max(finite)
    if high - low <= 1e-9 * abs(high):
        around = 0.1 * abs(high) or 1.0
        return Axis(low - around, high + around, start, end)
    if may_be_logarithmic and low > 0.0 and high / low > _LOGARITHMIC_FROM:
        factor = (high / low) ** margin
        return Axis(low / factor, high * factor, start, end, is_logarithmic=True)
    room = margin * (high - low)
    return Axis(low - room, high + room, start, end)


def figure(title: str, about: str, content: str, kind: str = "chart") -> Markup:
    """A chart or image, which is HTML, below its caption."""
    caption = Markup("<figcaption><b>{}</b> {}</figcaption>").format(title, about)
    return Markup('<figure class="{}">{}{}</figure>').format(kind, caption, Markup(content))


class Series(NamedTuple):
    """A line of a chart: its name, and a value for every step; what is not finite leaves a gap."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def line_chart(title: str, unit: str, series: Sequence[Series]) -> Markup:
    """A figure with its title, its unit and a legend, then the chart; values over training steps.

    The vertical axis is logarithmic, and says so, where all values are positive and of very different sizes.
    """
    across = axis_of([step for line in series for step in line.steps], LEFT, RIGHT)
    values = [float(value) for line in series for value in line.values]
    up = axis_of(values, BOTTOM, TOP, margin=0.06, may_be_logarithmic=True)
    scale = "; logarithmic axis" if up.is_logarithmic else ""
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 26 8" aria-hidden="true"><path class="line line{number}" d="M1 4H25"/>'
        f"</svg>{escape(line.name)}</span>"
        for number, line in enumerate(series)
    )
    drawn = _grid(across, up) + [_line(line, across, up, number, unit) for number, line in enumerate(series)]
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} over steps">{"".join(drawn)}</svg>'
    )
    return figure(title, Markup("{}<br>{}").format(unit + scale, Markup(keys)), svg)


def evenly_chosen(count: int, at_most: int) -> list[int]:
    """Which of `count` things to show when there is room for some: the first, the last, and others between."""
    if count <= at_most:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, at_most)})


def _line(line: Series, across: Axis, up: Axis, number: int, unit: str) -> str:
    chosen = evenly_chosen(len(line.steps), _MOST_POINTS)
    places = [(across.place(float(line.steps[i])), up.place(float(line.values[i]))) for i in chosen]
    path, is_drawing = "", False
    for x, y in places:
        if is_there := math.isfinite(y):
            # A place between two gaps is a line of no length, which round ends make a dot.
            path += f"L{_short(x)} {_short(y)}" if is_drawing else f"M{_short(x)} {_short(y)}h0"
        is_drawing = is_there
    look = "dot" if len(places) <= _MOST_DOTS else "spot"
    dots = []
    for index in evenly_chosen(len(places), _MOST_PLACES):
        (x, y), step, value = places[index], line.steps[chosen[index]], float(line.values[chosen[index]])
        if math.isfinite(y):
            dots.append(
                f'<circle class="{look} line{number}" cx="{_short(x)}" cy="{_short(y)}" r="3.5"><title>'
                f"{escape(line.name)}, step {step:,.0f}: {_written(value)} {escape(unit)}</title></circle>"
            )
    return f'<path class="line line{number}" d="{path}"/>{"".join(dots)}'


def _grid(across: Axis, up: Axis) -> list[str]:
    drawn = []
    for value in up.ticks(spaces=6):
        y = _short(up.place(value))
        drawn.append(f'<path class="grid" d="M{LEFT} {y}H{RIGHT}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y}" dy="0.35em" text-anchor="end">{_written(value)}</text>')
    for step in across.ticks():
        if step == round(step) and step >= 0:
            x = _short(across.place(step))
            drawn.append(f'<path class="axis" d="M{x} {BOTTOM}v5"/>')
            drawn.append(f'<text x="{x}" y="{BOTTOM + 19}" text-anchor="middle">{step:,.0f}</text>')
    drawn.append(f'<path class="axis" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>')
    drawn.append(f'<text x="{(LEFT + RIGHT) // 2}" y="{HEIGHT - 6}" text-anchor="middle">training step</text>')
    return drawn


def shades_of(values: np.ndarray, is_logarithmic: bool) -> Axis:
    """An axis from dark, 0, to light, 1: from the value 0, or logarithmic from a thousandth of the largest."""
    largest = float(np.max(values, initial=0.0, where=np.isfinite(values)))
    if largest <= 0.0:
        return Axis(0.0, 1.0, 0.0, 1.0)
    return Axis(largest * _SMALLEST_PART if is_logarithmic else 0.0, largest, 0.0, 1.0, is_logarithmic)


def color(place: float) -> str:
    """`#rrggbb` of a place from 0, dark, to 1, light; places outside have the color of the nearest end."""
    at = np.linspace(0.0, 1.0, len(_COLORS))
    return "#" + "".join(f"{round(np.interp(place, at, _COLORS[:, channel])):02x}" for channel in range(3))


def heat_map(
    title: str, unit: str, rows: Sequence[str], steps: Sequence[int], values: np.ndarray, is_logarithmic: bool = False
) -> Markup:
    """A figure with title and unit, the map with the latest values beside its rows, and a legend of its colors.

    Where there are more steps than can be seen, a column is the mean of several. The values
    `[rows, steps]` are not negative, NaN leaves a gap; the steps are in ascending order.
    """
    columns = np.array_split(np.arange(len(steps)), min(len(steps), _MOST_COLUMNS))
    shades, bottom = shades_of(values, is_logarithmic), _MAP_TOP + _ROW * len(rows)
    drawn = [_text(_MAP_RIGHT + 6, _MAP_TOP - 7, "latest")]
    for number, name in enumerate(rows):
        y = _MAP_TOP + number * _ROW
        drawn.append(_text(_MAP_LEFT - 6, y + 13, name, "end"))
        drawn.append(_text(_MAP_RIGHT + 6, y + 13, _written(values[number, -1])))
        for column, part in enumerate(columns):
            finite = values[number, part][np.isfinite(values[number, part])]
            if finite.size:
                first, last, mean = steps[part[0]], steps[part[-1]], float(finite.mean())
                when = f"step {first:,}" if first == last else f"mean of steps {first:,} to {last:,}"
                words = Markup("<title>{}, {}: {} {}</title>").format(name, when, _written(mean), unit)
                drawn.append(_cell(column, len(columns), y, _ROW, color(shades.place(mean)), words))
    drawn.append(_text(_MAP_LEFT, bottom + 16, f"{steps[0]:,}"))
    if len(steps) > 1:
        drawn.append(_text(_MAP_RIGHT, bottom + 16, f"{steps[-1]:,}", "end"))
    middle = (_MAP_LEFT + _MAP_RIGHT) // 2
    drawn.append(_text(middle, bottom + 16, "training step", "middle"))
    drawn += [_cell(place, 24, bottom + 28, 12, color(place / 23)) for place in range(24)]
    lowest = f"{'up to ' if shades.is_logarithmic else ''}{_written(shades.low)}"
    drawn.append(_text(_MAP_LEFT, bottom + 56, lowest))
    drawn.append(_text(middle, bottom + 56, _written(shades.value(0.5)), "middle"))
    drawn.append(_text(_MAP_RIGHT, bottom + 56, _written(shades.high), "end"))
    svg = f'<svg viewBox="0 0 {WIDTH} {bottom + 62}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'
    return figure(title, unit + ("; logarithmic colors" if shades.is_logarithmic else ""), svg)


def _text(x: int, y: int, text: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _cell(column: int, columns: int, y: int, height: int, color: str, content: str = "") -> str:
    width = (_MAP_RIGHT - _MAP_LEFT) / columns
    place = f'x="{_MAP_LEFT + column * width:.1f}" y="{y}" width="{width + 0.2:.1f}" height="{height}"'
    return f'<rect {place} fill="{color}">{content}</rect>'


def _short(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")


def _written(value: float) -> str:
    """A number for people: `12,300`, `42.79`, `0.0001`, `3e-05`."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{value}"
    return f"{value:,.0f}" if abs(value) >= 1000.0 else f"{value:.4g}"
