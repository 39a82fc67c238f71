"""What the allocator holds, for orders of taking and freeing whose places can be told by hand."""

import numpy as np
import pytest

from nvae_tf.memory import Timeline, reserved_bytes

UNIT = 2**20


def timeline(*steps):
    """From `("a", 3)` for a buffer of 3 units that is taken, and `"a"` for one that is freed."""
    sizes = dict(step for step in steps if isinstance(step, tuple))
    numbers = {name: number for number, name in enumerate(sizes)}
    names = [step[0] for step in steps]
    signs = [1 if isinstance(step, tuple) else -1 for step in steps]
    changes = [sign * round(sizes[name] * UNIT) for name, sign in zip(names, signs, strict=True)]
    return Timeline(np.array(changes), np.array([numbers[name] for name in names]), len(names), ())


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param([("a", 1), ("b", 2), "a", "b"], 3, id="side by side"),
        pytest.param([("a", 2), "a", ("b", 2), "b", ("c", 2), "c"], 2, id="what is freed is taken again"),
        pytest.param([("a", 1), ("b", 1), "a", ("c", 2), "b", "c"], 4, id="a gap that is too small stays one"),
        pytest.param([("a", 1), ("b", 1), ("c", 1), "b", "a", ("d", 2), "c", "d"], 3, id="gaps that touch are one"),
        pytest.param(
            [("a", 4), ("b", 1), ("c", 2), ("d", 1), "a", "c", ("e", 2), ("f", 4), "b", "d", "e", "f"],
            8,
            id="the smallest gap that fits",
        ),
        pytest.param(
            [("a", 3), ("b", 1), "a", ("c", 2), ("d", 1), "b", "c", "d"], 5, id="less than half is not cut off"
        ),
        pytest.param([("a", 4), ("b", 1), "a", ("c", 2), ("d", 2), "b", "c", "d"], 5, id="half is"),
        pytest.param([("a", 399), ("b", 1), "a", ("c", 271), ("d", 128), "b", "c", "d"], 400, id="and 128 MiB"),
        pytest.param([], 0, id="nothing"),
    ],
)
def test_where_the_last_buffer_ends(steps, expected):
    found = timeline(*steps)
    assert reserved_bytes(found) == expected * UNIT
    assert reserved_bytes(found) >= found.peak_bytes


def test_sizes_are_rounded_and_empty_buffers_take_nothing():
    assert reserved_bytes(Timeline(np.array([1, 257, 0, 0, -1, -257]), np.array([0, 1, 2, 2, 0, 1]), 6, ())) == 768
