"""How sure a median of repeated times is."""

import math
import statistics
from collections.abc import Sequence

import numpy as np

# From so many values on their quartiles are worth more than their standard deviation, which a single outlier spoils.
_ENOUGH_FOR_QUARTILES = 8
# Of the normal distribution: distance of its quartiles, and how much less sure a median is than a mean.
_QUARTILES, _MEDIAN = 1.349, math.sqrt(math.pi / 2)


def relative_standard_error(values: Sequence[float]) -> float | None:
    """The standard error of the values' median, over that median; None for fewer than two values."""
    if len(values) < 2:
        return None
    if len(values) < _ENOUGH_FOR_QUARTILES:
        deviation = statistics.stdev(values)
    else:
        low, high = np.percentile(values, (25, 75))
        deviation = (high - low) / _QUARTILES
    return float(_MEDIAN * deviation / math.sqrt(len(values)) / statistics.median(values))
