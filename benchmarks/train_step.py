"""How long one training step takes, beside a PyTorch workload of the same kind of arithmetic.

    python -m benchmarks.train_step --preset=mnist [--steps=15] [--json=FILE]

Our step and the yardstick's (benchmarks/torch_yardstick.py) alternate, each with two threads in a process of its own.
Compare the ratio of their medians: the published PyTorch code, timed in the same way, takes 1.37 yardstick steps for
`mnist` (batch 16, peak memory 2.6 GB) and 7.9 for `cifar10` (batch 4, 10.0 GB); runs differ by 5%. Let nothing else run
meanwhile. The yardstick alone needs PyTorch (`make torch`); --no-yardstick does without.
"""

import argparse
import statistics
from typing import Any

from benchmarks import results
from benchmarks.all import Job, Turns, measure
from benchmarks.interleaved import note_uneven
from benchmarks.workloads import BATCH_SIZES
from nvae_tf.errors import exit_on_user_error


def summarize(turns: Turns) -> dict[str, Any]:
    ours, yardstick = turns.seconds, turns.yardstick_seconds
    return {
        "ratio": statistics.median(ours) / statistics.median(yardstick) if yardstick else None,
        "ratio_of_fastest": min(ours) / min(yardstick) if yardstick else None,
        "step_seconds": statistics.median(ours),
        "yardstick_seconds": statistics.median(yardstick) if yardstick else None,
        "every_step_seconds": ours,
        "every_yardstick_seconds": yardstick,
        **turns.summary,
        "yardstick_peak_memory_bytes": turns.yardstick_summary["peak_memory_bytes"] if yardstick else None,
    }


def measure_step(options: argparse.Namespace) -> dict[str, Any]:
    yardstick = None if options.no_yardstick else options.preset
    turns = measure(Job("training", options.preset), options.steps, yardstick)
    return {"preset": options.preset, "batch_size": BATCH_SIZES[options.preset]} | summarize(turns)


def main(arguments: list[str] | None = None) -> None:
    parser = results.benchmark_parser("train_step", __doc__)
    parser.add_argument("--preset", choices=("cifar10", "mnist"), required=True, help="whose architecture")
    parser.add_argument("--steps", type=results.at_least(1), default=15, help="timed steps of each (default: 15)")
    options = results.parse_with_yardstick(parser, arguments)
    with exit_on_user_error():
        result = results.run(options, measure_step)
    note_uneven({"our steps": result["every_step_seconds"], "the yardstick": result["every_yardstick_seconds"]})


if __name__ == "__main__":
    main()
