"""Where the time of a workload goes, by kinds of operations, as TensorFlow's profiler sees it.

    python -m benchmarks.operation_times --workload=training --preset=cifar10 [--json=FILE]

Workloads and presets are those of `benchmarks.all`, its commands aside. An operation's time is that between its start
and its end on the thread that started it: two run side by side on two cores, so the sum is more than the time of a
turn. The profiler itself costs some percent. Let nothing else run.
"""

import argparse
import collections
import os
import pathlib
import re
import statistics
import tempfile
import timeit
from typing import Any

from benchmarks import results
from benchmarks.workloads import ENVIRONMENT, PRESETS, WORKLOADS, prepared

TURNS = 3
# Types of operations, by a part of their name; the first that fits. XLA's are named after what they do last.
KINDS = {
    "Depthwise": "depthwise convolutions",
    "Conv2D": "convolutions",
    "BatchMatMul": "power iteration and other batched products",
    "MatMul": "matrix products (1x1 convolutions, dense)",
    "FusedBatchNorm": "batch norm",
    "_fusion": "batch norm and swish in one pass (XLA)",
    "SoftplusGrad": "swish",
    "ApplyAdaMax": "optimizer's update",
    "": "all others",
}
# An operation's event is called `name:Type`, or by XLA `..._fusion`; others are of what runs operations.
_OPERATION = re.compile(r"[^:]+:(\w+)|(\w+_fusion)")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        work = prepared(options.workload, options.preset, folder)()
        # After two turns to warm up.
        seconds = statistics.median(timeit.repeat(work, repeat=2 + TURNS, number=1)[2:])
        with tf.profiler.experimental.Profile(folder):
            timeit.timeit(work, number=TURNS)
        kinds = operation_times(pathlib.Path(folder), TURNS)
    return {"workload": options.workload, "preset": options.preset, "turn_seconds": seconds, "kinds": kinds}


def operation_times(log: pathlib.Path, turns: int) -> list[dict[str, Any]]:
    """A row for each kind with `seconds`, `share` and `count` a turn; `log` is the profiler's folder."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (file,) = log.rglob("*.xplane.pb")
    seconds, counts = collections.Counter(), collections.Counter()
    for plane in xplane_pb2.XSpace.FromString(file.read_bytes()).planes:
        for event in (event for line in plane.lines for event in line.events):
            if match := _OPERATION.fullmatch(plane.event_metadata[event.metadata_id].name):
                kind = next(kind for word, kind in KINDS.items() if word in match[match.lastindex])
                seconds[kind] += event.duration_ps / 1e12 / turns
                counts[kind] += 1
    shares = {kind: seconds[kind] / seconds.total() for kind in KINDS.values()}
    return [
        {"operations": kind, "seconds": seconds[kind], "share": share, "count": counts[kind] / turns}
        for kind, share in shares.items()
    ]


if __name__ == "__main__":
    parser = results.benchmark_parser("benchmarks.operation_times", __doc__)
    profiled = [name for name, workload in WORKLOADS.items() if not workload.is_command]
    parser.add_argument("--workload", choices=profiled, required=True, help="what is profiled")
    parser.add_argument("--preset", choices=PRESETS, required=True, help="whose architecture")
    options = parser.parse_args()
    os.environ |= ENVIRONMENT
    results.run(options, measure)
