"""Where the time of a workload goes, operation by operation, as TensorFlow's profiler sees it.

    python -m benchmarks.operation_times --workload=training --preset=cifar10 [--json=FILE]

Workloads and presets are those of `benchmarks.all`, its commands aside. Operations of one type are added up, an
operation's time being that between its start and its end on the thread that started it: two run side by side on two
cores, so the sum is more than the time of a turn. The profiler itself costs some percent. Let nothing else run.
"""

import argparse
import collections
import pathlib
import re
import statistics
import tempfile
import timeit
from typing import Any

from benchmarks import results
from benchmarks.workloads import PRESETS, WORKLOADS, make

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

    workload, preset = options.workload, options.preset
    with tempfile.TemporaryDirectory() as folder:
        work = make(workload, preset, folder)
        # After the first two turns, which warm up.
        seconds = timeit.repeat(work, repeat=2 + TURNS, number=1)[2:]
        with tf.profiler.experimental.Profile(folder):
            timeit.timeit(work, number=TURNS)
        operations = operation_times(pathlib.Path(folder), TURNS)
    result = {"workload": workload, "preset": preset, "batch_size": WORKLOADS[workload].batch_sizes[preset]}
    result |= {"turn_seconds": statistics.median(seconds), "kinds": by_kind(operations)}
    return result | {"operations": operations[:30]}


def operation_times(log: pathlib.Path, turns: int) -> list[dict[str, Any]]:
    """Types of operations with their kind, `seconds` and `count` a turn, the longest first; `log` is the profiler's."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (file,) = log.rglob("*.xplane.pb")
    seconds, counts = collections.Counter(), collections.Counter()
    for plane in xplane_pb2.XSpace.FromString(file.read_bytes()).planes:
        for event in (event for line in plane.lines for event in line.events):
            if match := _OPERATION.fullmatch(plane.event_metadata[event.metadata_id].name):
                seconds[match[match.lastindex]] += event.duration_ps / 1e12
                counts[match[match.lastindex]] += 1
    kinds = {name: next(kind for word, kind in KINDS.items() if word in name) for name in seconds}
    return [
        {"operation": name, "kind": kinds[name], "seconds": time / turns, "count": counts[name] / turns}
        for name, time in seconds.most_common()
    ]


def by_kind(operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each of `KINDS`."""
    total, rows = sum(each["seconds"] for each in operations), []
    for kind in KINDS.values():
        seconds, count = (sum(each[key] for each in operations if each["kind"] == kind) for key in ("seconds", "count"))
        rows.append({"operations": kind, "seconds": seconds, "share": seconds / total, "count": count})
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = results.benchmark_parser("benchmarks.operation_times", __doc__)
    profiled = [name for name, workload in WORKLOADS.items() if not workload.is_command]
    parser.add_argument("--workload", choices=profiled, required=True, help="what is profiled")
    parser.add_argument("--preset", choices=PRESETS, required=True, help="whose architecture")
    results.run(parser.parse_args(arguments), measure)


if __name__ == "__main__":
    main()
