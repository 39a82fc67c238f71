"""How long one training step takes, beside a PyTorch workload of the same kind of arithmetic.

    python -m benchmarks.train_step --preset=mnist [--steps=15] [--json=FILE] [GROUP.SETTING=VALUE ...]

Our step and the yardstick's alternate, each with two threads in a process of its own. Compare the ratio of their
medians: the published PyTorch code, timed in the same way, takes 1.37 yardstick steps for `mnist` (batch 16, peak
memory 2.78 GB) and 7.9 for `cifar10` (batch 4, 10.6 GB). Let nothing else run meanwhile. The yardstick alone needs
PyTorch (`make torch`); --no-yardstick does without. Settings of the run may be changed, as train.recompute=all or
train.replicas=2 train.strategy=mirrored. `benchmarks.all --only=training` says how sure a ratio is.
"""

import argparse
import ast
import json
from typing import Any

from benchmarks import all as all_benchmarks
from benchmarks import results
from benchmarks.workloads import BATCH_SIZES
from nvae_tf.errors import exit_on_user_error
from nvae_tf.presets import experiment_config


def measure(options: argparse.Namespace) -> dict[str, Any]:
    preset, settings = options.preset, dict(options.settings)
    with exit_on_user_error():
        config = experiment_config(preset, {"train.batch_size": BATCH_SIZES[preset]} | settings)
        (measured,) = all_benchmarks.measure(("training", preset), options, options.steps, [json.dumps(settings)])
    ours, clock = measured["ours"], measured.get("yardstick", {})
    result = {"preset": preset, "batch_size": config.train.batch_size, "settings": settings}
    result["ratio"] = ours["seconds"] / clock["seconds"] if clock else None
    result |= {"step_seconds": ours.pop("seconds"), "every_step_seconds": ours.pop("every_second")}
    result |= {"yardstick_seconds": clock.get("seconds"), "every_yardstick_seconds": clock.get("every_second")}
    return result | ours


def setting(text: str) -> tuple[str, Any]:
    """`train.recompute=all` as a pair of name and value."""
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def main(arguments: list[str] | None = None) -> None:
    parser = results.benchmark_parser("benchmarks.train_step", __doc__)
    parser.add_argument("--preset", choices=tuple(BATCH_SIZES), required=True, help="whose architecture")
    parser.add_argument("--steps", type=results.at_least(1), default=15, help="timed steps of each (default: 15)")
    parser.add_argument("settings", nargs="*", type=setting, metavar="GROUP.SETTING=VALUE", help="changed settings")
    parser.set_defaults(rounds=1, against=None)
    options = results.parse_with_yardstick(parser, arguments)
    results.run(lambda: measure(options), options.json)


if __name__ == "__main__":
    main()
