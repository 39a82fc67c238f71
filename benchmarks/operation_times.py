"""Where the time of a workload goes, operation by operation, as TensorFlow's profiler sees it.

    python -m benchmarks.operation_times --workload=training --preset=cifar10 [--turns=3] [--json=FILE]

Workloads and presets are those of `benchmarks.all`, its commands aside. Operations of one type are added up, an
operation's time being that between its start and its end on the thread that started it: two run side by side on two
cores, so the sum is more than the time of a turn. The profiler itself costs some percent. Let nothing else run
meanwhile.
"""

import argparse
import collections
import datetime
import importlib
import pathlib
import re
import tempfile
import time
from typing import Any

from benchmarks.command_line import at_least_one, benchmark_parser, write_figures
from benchmarks.train_step import describe_machine, say
from benchmarks.workloads import PRESETS, WORKLOADS

WARM_UP_TURNS = 2
PROFILED = tuple(name for name, workload in WORKLOADS.items() if not workload.is_command)
# Types of operations, by a part of their name; the first that fits. XLA's are named after what they do last.
KINDS = {
    "depthwise convolutions": ("Depthwise",),
    "convolutions": ("Conv2D",),
    "power iteration and other batched products": ("BatchMatMul",),
    "matrix products (1x1 convolutions, dense)": ("MatMul",),
    "batch norm": ("FusedBatchNorm",),
    "batch norm and swish in one pass (XLA)": ("_fusion",),
    "swish": ("SoftplusGrad",),
    "optimizer's update": ("ApplyAdaMax",),
}
OTHERS = "all others"
# An operation's event is called `name:Type`, or by XLA `..._fusion`; others are of what runs operations.
_OPERATION = re.compile(r"[^:]+:(\w+)|(\w+_fusion)")


def measure(workload: str, preset: str, turns: int) -> dict[str, Any]:
    """Profiles some turns and returns the figures, in seconds a turn, as `--json` writes them."""
    import tensorflow as tf

    machine = describe_machine()
    module, _, kind = WORKLOADS[workload].place.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        say(f"building {workload} of {preset}")
        made_by = getattr(importlib.import_module(f"benchmarks.workloads.{module}"), kind)
        work = made_by(preset, WORKLOADS[workload].batch_sizes[preset], pathlib.Path(folder))
        for _ in range(WARM_UP_TURNS):
            work.run()
        begun = time.perf_counter()
        for _ in range(turns):
            work.run()
        seconds = (time.perf_counter() - begun) / turns
        log = pathlib.Path(folder, "log")
        with tf.profiler.experimental.Profile(str(log)):
            for _ in range(turns):
                work.run()
        operations = operation_times(log, turns)
    return {
        "workload": workload,
        "preset": preset,
        "batch_size": WORKLOADS[workload].batch_sizes[preset],
        "turn_seconds": seconds,
        "operations": operations,
        "tensorflow": tf.__version__,
        "machine": machine,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def operation_times(log: pathlib.Path, turns: int) -> dict[str, dict[str, float]]:
    """Of every type of operation `seconds` and `count` a turn, the longest first.

    Args:
      log: the profiler's folder.
      turns: how many turns it has seen.
    """
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    (file,) = log.rglob("*.xplane.pb")
    seconds, counts = collections.Counter(), collections.Counter()
    for plane in xplane_pb2.XSpace.FromString(file.read_bytes()).planes:
        for line in plane.lines:
            for event in line.events:
                if match := _OPERATION.fullmatch(plane.event_metadata[event.metadata_id].name):
                    seconds[match[match.lastindex]] += event.duration_ps / 1e12
                    counts[match[match.lastindex]] += 1
    return {kind: {"seconds": value / turns, "count": counts[kind] / turns} for kind, value in seconds.most_common()}


def by_kind(operations: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The operations in the groups of `KINDS`."""
    groups = {kind: {"seconds": 0.0, "count": 0.0} for kind in (*KINDS, OTHERS)}
    for name, figures in operations.items():
        fitting = (kind for kind, parts in KINDS.items() if any(part in name for part in parts))
        group = groups[next(fitting, OTHERS)]
        for figure, value in figures.items():
            group[figure] += value
    return groups


def table(result: dict[str, Any]) -> str:
    """The groups, and the types of operations in the last of them, as Markdown."""
    operations, machine = result["operations"], result["machine"]
    total = sum(figures["seconds"] for figures in operations.values())
    lines = [
        f"{WORKLOADS[result['workload']].what}, {result['preset']}, batch {result['batch_size']}: "
        f"{result['turn_seconds']:.3f} s; operations {total:.3f} s on {machine['cores']} cores",
        "",
        "| operations | seconds | share | how many |",
        "| --- | --- | --- | --- |",
    ]
    for name, figures in by_kind(operations).items():
        lines.append(
            f"| {name} | {figures['seconds']:.3f} | {figures['seconds'] / total:.1%} | {figures['count']:,.0f} |"
        )
    rest = [name for name in operations if not any(part in name for parts in KINDS.values() for part in parts)]
    most = ", ".join(f"{name} {operations[name]['seconds']:.3f} s" for name in rest[:8])
    return "\n".join(
        [*lines, "", f"Most of the others: {most}.", "", f"TensorFlow {result['tensorflow']}, {result['date']}"]
        + [f"{machine['processor']}, {machine['cores']} cores, load {machine['load_average_at_start']:.1f}"]
    )


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = benchmark_parser("operation_times", __doc__)
    parser.add_argument("--workload", choices=PROFILED, required=True, help="what is profiled")
    parser.add_argument("--preset", choices=PRESETS, required=True, help="whose architecture")
    parser.add_argument("--turns", type=at_least_one, default=3, help="profiled turns (default: 3)")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measures and prints."""
    options = parse_arguments(arguments)
    result = measure(options.workload, options.preset, options.turns)
    print(table(result))
    write_figures(result, options.json)


if __name__ == "__main__":
    main()
