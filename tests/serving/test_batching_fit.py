"""Which batches pay, from their times alone; test_serving_files.py measures an export."""

import pytest

from nvae_tf.serving.server_files import BatchTiming, fit_batching, largest_worthwhile

# Twice the rows in 1.5 times the time up to 8 rows, from there in twice the time.
TIMINGS = [BatchTiming(*pair) for pair in ((1, 0.1), (2, 0.15), (4, 0.225), (8, 0.3375), (16, 0.675), (32, 0.7))]


@pytest.mark.parametrize(
    ("timings", "longest", "rows"),
    [
        (TIMINGS, 10.0, 8),  # a gain after a doubling that gave none is not looked for
        (TIMINGS, 0.3, 4),
        (TIMINGS, 0.01, 1),
        (TIMINGS[:1], 10.0, 1),
        ([BatchTiming(1, 1.0), BatchTiming(2, 1.83)], 10.0, 1),  # 9 % more
        ([BatchTiming(1, 1.0), BatchTiming(2, 1.81)], 10.0, 2),  # 10.5 % more
    ],
)
def test_a_batch_is_doubled_while_that_pays_and_is_quick_enough(timings, longest, rows):
    assert largest_worthwhile(timings, longest) == rows


def test_models_that_share_the_parameters_get_those_that_suit_all():
    fast = [BatchTiming(1, 0.01), BatchTiming(2, 0.011), BatchTiming(4, 0.012)]
    # 4 rows; 20 % of 10 ms; 10 s of batches of 0.225 s; 3 cores.
    assert fit_batching({"slow": TIMINGS, "fast": fast}, 3, 10.0) == (64, 4, 2000, 44, 3)
    # The queue has place for two requests of 64 rows, and an end.
    assert fit_batching({"slow": [BatchTiming(1, 30.0)]}, 3, 1.0) == (64, 1, 6_000_000, 128, 3)
    assert fit_batching({"fast": [BatchTiming(1, 1e-4)]}, 3, 1.0).max_enqueued_batches == 1000
