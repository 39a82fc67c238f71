"""Heat maps over time as SVG: one row a latent group, one column a step; thirty groups as readable as three."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from nvae_tf.reports.page.axes import written
from nvae_tf.reports.page.markup import escaped, figure

WIDTH, LEFT, RIGHT, TOP, ROW = 460, 104, 400, 22, 17
# More columns than these are narrower than a pixel of a phone.
_MOST_COLUMNS = 60
# A logarithmic map goes down to this part of its largest value; below all is dark.
_SMALLEST_PART = 1e-3
# From dark to light with even steps of lightness, as `viridis` has it.
_COLOURS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]], np.float64)
_LEGEND_CELLS = 24


class Shades(NamedTuple):
    """The colors of values from `low`, dark, to `high`, light."""

    low: float
    high: float
    is_logarithmic: bool

    def color(self, value: float) -> str:
        """`#rrggbb`; values outside have the color of the nearest end."""
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.is_logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        place = (value - low) / (high - low) if high > low else 1.0
        at = np.linspace(0.0, 1.0, len(_COLOURS))
        return "#" + "".join(f"{round(np.interp(place, at, _COLOURS[:, channel])):02x}" for channel in range(3))

    def value(self, place: float) -> float:
        """What is at a place from 0, dark, to 1, light."""
        if self.is_logarithmic:
            return self.low * (self.high / self.low) ** place
        return self.low + (self.high - self.low) * place


def shades_of(values: np.ndarray, is_logarithmic: bool) -> Shades:
    """Colors for all of the values, NaN aside: from 0, or logarithmic from a thousandth of the largest."""
    largest = float(np.max(values, initial=0.0, where=np.isfinite(values)))
    if largest <= 0.0:
        return Shades(0.0, 1.0, is_logarithmic=False)
    return Shades(largest * _SMALLEST_PART if is_logarithmic else 0.0, largest, is_logarithmic)


def heat_map(
    title: str, unit: str, rows: Sequence[str], steps: Sequence[int], values: np.ndarray, is_logarithmic: bool = False
) -> str:
    """A figure with title and unit, the map with the latest values beside its rows, and a legend of its colors.

    Where there are more steps than can be seen, a column is the mean of several.

    Args:
      title: of the figure.
      unit: of the values.
      rows: their names, from the top.
      steps: of the columns, in ascending order.
      values: `[rows, steps]`, not negative; NaN leaves a gap.
      is_logarithmic: whether the colors go by the logarithm.
    """
    parts = np.array_split(np.arange(len(steps)), min(len(steps), _MOST_COLUMNS))
    shades, width = shades_of(values, is_logarithmic), (RIGHT - LEFT) / len(parts)
    bottom = TOP + ROW * len(rows)
    drawn = [f'<text x="{RIGHT + 6}" y="{TOP - 7}">latest</text>']
    for number, name in enumerate(rows):
        y = TOP + number * ROW
        drawn.append(f'<text x="{LEFT - 6}" y="{y + 13}" text-anchor="end">{escaped(name)}</text>')
        drawn.append(f'<text x="{RIGHT + 6}" y="{y + 13}">{written(values[number, -1])}</text>')
        for column, part in enumerate(parts):
            mean = _mean(values[number, part])
            if math.isfinite(mean):
                told = f"{name}, {_steps_told(steps, part)}: {written(mean)} {unit}"
                drawn.append(
                    f'<rect x="{LEFT + column * width:.1f}" y="{y}" width="{width + 0.2:.1f}" height="{ROW}" '
                    f'fill="{shades.color(mean)}"><title>{escaped(told)}</title></rect>'
                )
    drawn.append(f'<text x="{LEFT}" y="{bottom + 16}">{steps[0]:,}</text>')
    if len(steps) > 1:
        drawn.append(f'<text x="{RIGHT}" y="{bottom + 16}" text-anchor="end">{steps[-1]:,}</text>')
    drawn.append(f'<text x="{(LEFT + RIGHT) // 2}" y="{bottom + 16}" text-anchor="middle">training step</text>')
    drawn.append(_legend(shades, bottom + 28))
    svg = f'<svg viewBox="0 0 {WIDTH} {bottom + 62}" role="img" aria-label="{escaped(title)}">{"".join(drawn)}</svg>'
    scale = "; logarithmic colors" if shades.is_logarithmic else ""
    return figure(f"<b>{escaped(title)}</b> {escaped(unit + scale)}", svg)


def _legend(shades: Shades, y: int) -> str:
    width = (RIGHT - LEFT) / _LEGEND_CELLS
    cells = [
        f'<rect x="{LEFT + cell * width:.1f}" y="{y}" width="{width + 0.2:.1f}" height="12" '
        f'fill="{shades.color(shades.value(cell / (_LEGEND_CELLS - 1)))}"/>'
        for cell in range(_LEGEND_CELLS)
    ]
    below = f'y="{y + 28}"'
    ends = f'<text x="{LEFT}" {below}>{"up to " if shades.is_logarithmic else ""}{written(shades.low)}</text>'
    middle = f'<text x="{(LEFT + RIGHT) // 2}" {below} text-anchor="middle">{written(shades.value(0.5))}</text>'
    return "".join([*cells, ends, middle, f'<text x="{RIGHT}" {below} text-anchor="end">{written(shades.high)}</text>'])


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else math.nan


def _steps_told(steps: Sequence[int], part: np.ndarray) -> str:
    first, last = steps[part[0]], steps[part[-1]]
    return f"step {first:,}" if first == last else f"mean of steps {first:,} to {last:,}"
