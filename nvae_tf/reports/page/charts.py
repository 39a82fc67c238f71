"""Line charts as SVG, drawn from numbers alone."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nvae_tf.reports.page.axes import Axis, axis_of, written
from nvae_tf.reports.page.markup import escaped, figure

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 64, 428, 10, 206
# More points than these are not seen as such on a line, and more places to point at would swell the page.
_MOST_POINTS, _MOST_PLACES, _MOST_DOTS = 1000, 100, 40


class Series(NamedTuple):
    """A line of a chart: its name, and a value for every step; what is not finite leaves a gap."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]


def line_chart(title: str, unit: str, series: Sequence[Series]) -> str:
    """A figure with its title, its unit and a legend, then the chart; values over training steps.

    The vertical axis is logarithmic, and says so, where all values are positive and of very different sizes.
    """
    across = axis_of([step for line in series for step in line.steps], LEFT, RIGHT)
    values = [float(value) for line in series for value in line.values]
    up = axis_of(values, BOTTOM, TOP, margin=0.06, may_be_logarithmic=True)
    parts = [_grid(across, up)]
    for number, line in enumerate(series):
        parts.append(_line(line, across, up, number, unit))
    scale = "; logarithmic axis" if up.is_logarithmic else ""
    keys = "".join(
        f'<span class="key"><svg viewBox="0 0 26 8" aria-hidden="true"><path class="line line{number}" d="M1 4H25"/>'
        f"</svg>{escaped(line.name)}</span>"
        for number, line in enumerate(series)
    )
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(title)} over steps">'
        f"{''.join(parts)}</svg>"
    )
    return figure(f"<b>{escaped(title)}</b> {escaped(unit + scale)}<br>{keys}", svg)


def line_path(places: Sequence[tuple[float, float]]) -> str:
    """The `d` of an SVG path through places; one with a NaN in it leaves a gap.

    A place between two gaps is a line of no length, which round ends make a dot.
    """
    commands, is_drawing = [], False
    for x, y in places:
        is_there = math.isfinite(x) and math.isfinite(y)
        if is_there:
            commands.append(f"{'L' if is_drawing else 'M'}{_short(x)} {_short(y)}" + ("" if is_drawing else "h0"))
        is_drawing = is_there
    return "".join(commands)


def evenly_chosen(count: int, at_most: int) -> list[int]:
    """Which of `count` things to show when there is room for some: the first, the last, and others between."""
    if count <= at_most:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, at_most)})


def _line(line: Series, across: Axis, up: Axis, number: int, unit: str) -> str:
    chosen = evenly_chosen(len(line.steps), _MOST_POINTS)
    steps, values = [float(line.steps[index]) for index in chosen], [float(line.values[index]) for index in chosen]
    places = [
        (across.place(step), up.place(value) if math.isfinite(value) else math.nan)
        for step, value in zip(steps, values, strict=True)
    ]
    look = "dot" if len(places) <= _MOST_DOTS else "spot"
    dots = []
    for index in evenly_chosen(len(places), _MOST_PLACES):
        (x, y), told = places[index], f"step {steps[index]:,.0f}: {written(values[index])} {unit}"
        if math.isfinite(y):
            dots.append(
                f'<circle class="{look} line{number}" cx="{_short(x)}" cy="{_short(y)}" r="3.5">'
                f"<title>{escaped(line.name)}, {escaped(told)}</title></circle>"
            )
    return f'<path class="line line{number}" d="{line_path(places)}"/>{"".join(dots)}'


def _grid(across: Axis, up: Axis) -> str:
    parts = []
    for value in up.ticks(spaces=6):
        y = _short(up.place(value))
        parts.append(f'<path class="grid" d="M{LEFT} {y}H{RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y}" dy="0.35em" text-anchor="end">{written(value)}</text>')
    whole = [step for step in across.ticks() if step == round(step) and step >= 0]
    for step in whole:
        x = _short(across.place(step))
        parts.append(f'<path class="axis" d="M{x} {BOTTOM}v5"/>')
        parts.append(f'<text x="{x}" y="{BOTTOM + 19}" text-anchor="middle">{step:,.0f}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>')
    parts.append(f'<text x="{(LEFT + RIGHT) // 2}" y="{HEIGHT - 6}" text-anchor="middle">training step</text>')
    return "".join(parts)


def _short(place: float) -> str:
    return f"{place:.1f}".removesuffix(".0")
