"""How long one training step takes, beside a PyTorch workload of the same kind of arithmetic.

    python -m benchmarks.train_step --preset=mnist [--steps=15] [--json=FILE] [GROUP.SETTING=VALUE ...]

Our step and the yardstick's alternate, each with two threads in a process of its own. Compare the ratio of their
medians: the published PyTorch code, timed in the same way, takes 1.37 yardstick steps for `mnist` (batch 16, peak
memory 2.78 GB) and 7.9 for `cifar10` (batch 4, 10.6 GB). Let nothing else run meanwhile. The yardstick alone needs
PyTorch (`make torch`); --no_yardstick does without. Settings of the run may be changed, as train.recompute=all or
train.replicas=2 train.strategy=mirrored. `benchmarks.all --only=training` says how sure a ratio is.
"""

import ast
import re
import shlex
import sys
from json import dumps
from typing import Annotated, Any

from benchmarks import all as all_benchmarks
from benchmarks import results
from benchmarks.workloads import BATCH_SIZES, PRESETS
from nvae_tf import command_line
from nvae_tf.presets import experiment_config


def measure(preset: str, steps: int, settings: dict[str, Any], yardstick: bool) -> dict[str, Any]:
    config = experiment_config(preset, {"train.batch_size": BATCH_SIZES[preset]} | settings)
    (measured,) = all_benchmarks.measure(("training", preset), 1, yardstick, turns=steps, settings=[dumps(settings)])
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


def main(
    preset: Annotated[str, "Whose architecture.", *PRESETS],
    steps: Annotated[int, "Timed steps of each.", 1] = 15,
    settings: Annotated[str, "Changed settings of the run; may stand without --settings=."] = "",
    no_yardstick: results.NoYardstick = False,
    json: results.Json = None,
) -> None:
    """Measures, and prints the results."""
    changed = dict(map(setting, shlex.split(settings)))
    results.run(lambda: measure(preset, steps, changed, not no_yardstick), json, not no_yardstick)


if __name__ == "__main__":
    changed = [word for word in sys.argv[1:] if re.match(r"\w+\.\w+=", word)]
    if changed:
        sys.argv = [*(word for word in sys.argv if word not in changed), f"--settings={shlex.join(changed)}"]
    command_line.run(main)
