"""The batching parameters of TensorFlow Serving, fitted to how long batches of the exports take.

The server collects requests to one signature until they are `max_execution_batch_size` rows or the first has waited
`batch_timeout_micros`, and runs them as one batch. A request of more rows is split, as long as it has no more than
`max_batch_size`. There are no `allowed_batch_sizes`: batches would be filled up to one of them with rows that nobody
has asked for, and on a CPU such a row takes as long as any. And where requests are split, the server's code asks in
one place that the last of them is `max_batch_size`, in another that it is `max_execution_batch_size`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

# A batch is doubled as long as that gives so much more throughput: a larger one costs every request latency.
LEAST_GAIN = 0.10
# For how much of the time that it takes alone a request may wait for others.
WAIT_FRACTION = 0.20
# A queue longer than what is worked off in that time makes clients give up: the server refuses at once instead.
LONGEST_QUEUE_SECONDS = 10.0
MOST_ENQUEUED = 1000
# A request may have so many rows, and the queue has place for two such, however long they take.
MOST_ROWS = 64


class BatchTiming(NamedTuple):
    """The median time of one batch."""

    rows: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """The throughput."""
        return self.rows / self.seconds


class BatchingParameters(NamedTuple):
    """The message of that name in tensorflow_serving/servables/tensorflow/session_bundle_config.proto."""

    max_batch_size: int
    max_execution_batch_size: int
    batch_timeout_micros: int
    max_enqueued_batches: int
    num_batch_threads: int

    def text(self) -> str:
        """The message as text. The package tensorflow-serving-api lacks it, so it is written by hand."""
        numbers = "".join(f"{name} {{ value: {value} }}\n" for name, value in self._asdict().items())
        return f"{numbers}enable_large_batch_splitting {{ value: true }}\n"


def largest_worthwhile(timings: Sequence[BatchTiming], longest_seconds: float) -> int:
    """The rows of the largest batch that pays.

    Args:
      timings: of growing batches, the first with one row.
      longest_seconds: no batch but the first may take longer.

    Returns:
      The last of the batches that each give `LEAST_GAIN` more throughput than the one before.
    """
    best = timings[0]
    for timing in timings[1:]:
        too_slow = timing.seconds > longest_seconds
        if too_slow or timing.rows_per_second < (1.0 + LEAST_GAIN) * best.rows_per_second:
            break
        best = timing
    return best.rows


def fit_batching(
    timings: Mapping[str, Sequence[BatchTiming]], cores: int, longest_seconds: float
) -> BatchingParameters:
    """Chooses the parameters for a server of all the exports, which share them.

    The export that stands the smallest batches decides on the largest batch, the fastest one on the time to wait,
    the slowest one on the length of the queue.

    Args:
      timings: of each export, batches of 1, 2, 4, ... rows.
      cores: of the server; as many batches run at once.
      longest_seconds: no batch of several rows may take longer.
    """
    largest = min(largest_worthwhile(batches, longest_seconds) for batches in timings.values())
    alone = min(batches[0].seconds for batches in timings.values())
    slowest = max(batch.seconds for batches in timings.values() for batch in batches if batch.rows <= largest)
    enqueued = min(max(cores, math.floor(LONGEST_QUEUE_SECONDS / slowest)), MOST_ENQUEUED)
    two_requests = 2 * math.ceil(MOST_ROWS / largest)
    wait = max(1, round(1e6 * WAIT_FRACTION * alone))
    return BatchingParameters(MOST_ROWS, largest, wait, max(enqueued, two_requests), cores)


def timing_table(timings: Mapping[str, Sequence[BatchTiming]]) -> list[str]:
    """The lines of a table of what was measured."""
    lines = []
    for export, batches in timings.items():
        lines += ["", export, "  rows   ms a batch   rows/s"]
        lines += [f"{b.rows:6d} {1e3 * b.seconds:12.1f} {b.rows_per_second:8.1f}" for b in batches]
    return lines


def batching_file(
    timings: Mapping[str, Sequence[BatchTiming]], parameters: BatchingParameters, longest_seconds: float, measured: str
) -> str:
    """The file for --batching_parameters_file: the parameters below what they were chosen by.

    Args:
      timings: what was measured.
      parameters: what `fit_batching` chose.
      longest_seconds: the bound that it was given.
      measured: when and on what that was.
    """
    told = [
        f"BatchingParameters, fitted to the median time of batches. Measured {measured}:",
        *timing_table(timings),
        "",
        f"A batch is doubled while that gives {LEAST_GAIN:.0%} more rows/s and it takes at most {longest_seconds:g} s.",
        f"A request waits for others for {WAIT_FRACTION:.0%} of the time that it takes alone. The queue holds",
        f"{LONGEST_QUEUE_SECONDS:g} s of batches, at most {MOST_ENQUEUED}, or two of the largest requests.",
        f"A request of more rows than a batch is split; of more than {MOST_ROWS} it is refused.",
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in told) + parameters.text()
