"""How a training step grows with the images of a batch, the latent groups, and the side of the images: one figure.

    python -m benchmarks.growth [--figure=growth.png] [--json=FILE]

A model of one scale (32 channels, 10 groups, images of 32 x 32 pixels, batch 4), of which one size at a time grows, in
a process of its own. Its steps take turns with those of the smallest model: the time is the median ratio of the two.
The dotted line grows as the work does: what is above it is a defect. Twenty minutes; let nothing else run.
"""

import argparse
import contextlib
import functools
import json
import pathlib
import statistics
from typing import Any

from benchmarks import results
from benchmarks.all import run_round
from benchmarks.workloads import python, worker

TURNS = 3
SMALLEST = {"train.batch_size": 4, "model.num_groups_per_scale": 10, "data.height": 32}
SIZES = {
    "train.batch_size": ("images of a batch", (4, 8, 16, 32, 64)),
    "model.num_groups_per_scale": ("latent groups", (10, 20, 30, 60)),
    "data.height": ("side of an image, pixels", (32, 64, 128, 256)),
}
QUANTITIES = {"step": "step / smallest step", "memory": "peak memory, GB", "first_step": "time to first step, seconds"}


def training(**changed: int) -> contextlib.AbstractContextManager:
    """A process that takes the steps of the smallest model but for what is changed."""
    settings = SMALLEST | changed | {"model.num_channels_encoder": 32, "model.num_channels_decoder": 32}
    settings["data.width"] = settings["data.height"]
    return worker(f"growth, {changed}", python("benchmarks.workloads", "training", "cifar10", "", json.dumps(settings)))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    for name, size in [(name, size) for name, (_, sizes) in SIZES.items() for size in sizes]:
        sides = {"larger": functools.partial(training, **{name: size}), "smallest": training}
        larger, smallest = run_round(sides, TURNS, warm_up=1).values()
        turns = zip(larger["every_second"], smallest["every_second"], strict=True)
        row = {"grows": name, "size": size, "work": (size / SMALLEST[name]) ** (2 if name == "data.height" else 1)}
        row |= {"step": statistics.median(one / other for one, other in turns), "step_seconds": larger["seconds"]}
        row |= {"memory": larger["peak_memory_bytes"] / 1e9, "first_step": larger["first_step_seconds"]}
        rows.append(row | {"graph_nodes": larger["graph_nodes"]})
        results.say(str(rows[-1]))
    if options.figure:
        draw(rows, options.figure)
    return {"growth": rows}


def draw(rows: list[dict[str, Any]], file: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((9.0, 7.5), layout="constrained")
    grid = figure.subplots(len(QUANTITIES), len(SIZES), squeeze=False)
    for line, (quantity, text) in zip(grid, QUANTITIES.items(), strict=True):
        for axes, (name, (meaning, sizes)) in zip(line, SIZES.items(), strict=True):
            along = [row for row in rows if row["grows"] == name]
            axes.plot(sizes, [row[quantity] for row in along], "o-", label="measured")
            axes.plot(sizes, [along[0][quantity] * row["work"] for row in along], "k:", label="as the work")
            axes.set(xscale="log", yscale="log", xlabel=meaning, ylabel=text, xticks=sizes, xticklabels=sizes)
            axes.minorticks_off()
            axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    parser = results.benchmark_parser("benchmarks.growth", __doc__)
    parser.add_argument("--figure", type=results.json_file, metavar="FILE", help="a figure of it, e.g. in .png")
    results.run(parser.parse_args(), measure)
