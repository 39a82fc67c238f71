"""How long one training step takes, beside a PyTorch workload of the same kind of arithmetic.

    python -m benchmarks.train_step --preset=mnist [--steps=15] [--json=FILE]

Our step and the yardstick's alternate, each with two threads in a process of its own. Compare the ratio of their
medians: the published PyTorch code, timed in the same way, takes 1.37 yardstick steps for `mnist` (batch 16, peak
memory 2.78 GB) and 7.9 for `cifar10` (batch 4, 10.6 GB). Let nothing else run meanwhile. The yardstick alone needs
PyTorch (`make torch`); --no-yardstick does without. `benchmarks.all --only=training` says how sure a ratio is.
"""

import argparse
import statistics
import tempfile
from typing import Any

from benchmarks import results
from benchmarks.all import WARM_UP_STEPS, Job, Measured, run_round, sides_of
from benchmarks.workloads import BATCH_SIZES
from nvae_tf.errors import exit_on_user_error


def summarize(ours: Measured, yardstick: Measured | None) -> dict[str, Any]:
    seconds, clock = ours.seconds, yardstick.seconds if yardstick else []
    return {
        "ratio": statistics.median(seconds) / statistics.median(clock) if clock else None,
        "ratio_of_fastest": min(seconds) / min(clock) if clock else None,
        "step_seconds": statistics.median(seconds),
        "yardstick_seconds": statistics.median(clock) if clock else None,
        "every_step_seconds": seconds,
        "every_yardstick_seconds": clock,
        **ours.summary,
        "yardstick_peak_memory_bytes": yardstick.summary["peak_memory_bytes"] if yardstick else None,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    preset, yardstick = options.preset, None if options.no_yardstick else options.preset
    with tempfile.TemporaryDirectory() as folder, exit_on_user_error():
        sides = run_round(sides_of(Job("training", preset), folder, yardstick), options.steps, WARM_UP_STEPS)
    return {"preset": preset, "batch_size": BATCH_SIZES[preset]} | summarize(sides["ours"], sides.get("yardstick"))


def main(arguments: list[str] | None = None) -> None:
    parser = results.benchmark_parser("benchmarks.train_step", __doc__)
    parser.add_argument("--preset", choices=("cifar10", "mnist"), required=True, help="whose architecture")
    parser.add_argument("--steps", type=results.at_least(1), default=15, help="timed steps of each (default: 15)")
    results.run(results.parse_with_yardstick(parser, arguments), measure)


if __name__ == "__main__":
    main()
