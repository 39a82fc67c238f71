"""Where a value lies on a chart, and which values are written beside the axis."""

import math
from collections.abc import Iterable
from typing import NamedTuple

# Positive values that span more than this are shown on a logarithmic axis: the early steps of a training would press
# the later ones flat.
_LOGARITHMIC_FROM = 30.0


class Axis(NamedTuple):
    """The values `low` to `high` between the places `start` and `end` of a chart."""

    low: float
    high: float
    start: float
    end: float
    is_logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value lies."""
        low, high, value = (math.log(v) if self.is_logarithmic else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, spaces: int = 5) -> list[float]:
        """Round values within the axis, with about so many spaces between them, or fewer."""
        if self.is_logarithmic:
            return _logarithmic_ticks(self.low, self.high, spaces)
        return _even_ticks(self.low, self.high, spaces)


def axis_of(values: Iterable[float], start: float, end: float, margin: float = 0.0, may_be_logarithmic=False) -> Axis:
    """An axis with room for all finite values; for equal ones they are in its middle.

    Args:
      values: those that are not finite do not count; with none the axis is 0 to 1.
      start: the place of the smallest.
      end: the place of the largest.
      margin: room before and after, a fraction of the range.
      may_be_logarithmic: whether positive values of very different sizes make the axis logarithmic.
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


def written(value: float) -> str:
    """A number for people: `12,300`, `42.79`, `0.0001`, `3e-05`."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else f"{value}"
    return f"{value:,.0f}" if abs(value) >= 1000.0 else f"{value:.4g}"


def _even_ticks(low: float, high: float, spaces: int) -> list[float]:
    size = 10.0 ** math.floor(math.log10((high - low) / spaces))
    step = next(size * factor for factor in (1, 2, 5, 10) if (high - low) / (size * factor) <= spaces)
    # Rounded, or 0.3 would be 0.30000000000000004.
    digits = max(0, 1 - math.floor(math.log10(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, digits) for number in range(first, last + 1)]


def _logarithmic_ticks(low: float, high: float, spaces: int) -> list[float]:
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = math.log10(high / low)
    factors = (1, 2, 5) if decades < 3 else (1,)
    every = max(1, math.ceil(decades / spaces))
    ticks = [float(f"{factor}e{power}") for power in powers if power % every == 0 for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]
