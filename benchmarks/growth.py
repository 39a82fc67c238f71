"""How a training step grows with the images of a batch, the latent groups, and the side of the images: one figure.

    python -m benchmarks.growth [--figure=growth.png] [--json=FILE]

A model of one scale (32 channels, 10 groups, images of 32 x 32 pixels, batch 4, `train.scan` as the command chooses
it), of which one size at a time grows, each in a process of its own with two threads. The work of a step is
proportional to the batch, to the pixels, and nearly to the groups. The limit, dotted, grows as the work does from the
smallest size on: time above it is a defect, and so is memory beyond what the smallest size takes for itself. Some
minutes; let nothing else run meanwhile.
"""

import argparse
import json
import pathlib
import statistics
from typing import Any

from benchmarks import results
from benchmarks.workloads import Worker, python

STEPS = 5
PRESET, SMALLEST = "cifar10", {"batch_size": 4, "model.num_groups_per_scale": 10, "side": 32}
SIZES = {
    "batch_size": ("images of a batch", (4, 8, 16, 32, 64)),
    "model.num_groups_per_scale": ("latent groups", (10, 20, 30, 60)),
    "side": ("side of an image, pixels", (32, 64, 128, 256)),
}
QUANTITIES = {"step": "step, seconds", "memory": "peak memory, GB", "first_step": "time to first step, seconds"}


def work(name: str, size: int) -> float:
    """The work of a step, in those of the smallest model."""
    return (size / SMALLEST[name]) ** (2 if name == "side" else 1)


def measured(name: str, size: int) -> dict[str, Any]:
    settings = SMALLEST | {name: size, "model.num_channels_encoder": 32, "model.num_channels_decoder": 32}
    side = settings.pop("side")
    settings |= {"model.image_height": side, "model.image_width": side}
    command = python("benchmarks.workloads", "variant", PRESET, json.dumps(settings))
    with Worker(f"{name} = {size}", command) as worker:
        worker.ask("ready")
        seconds = [worker.ask("step")["seconds"] for _ in range(STEPS)]
        summary = worker.ask("summary")
    found = {"step": statistics.median(seconds[1:]), "memory": summary["peak_memory_bytes"] / 1e9}
    found |= {"first_step": summary["first_step_seconds"], "graph_nodes": summary["graph_nodes"]}
    results.say(f"{name} = {size}: {', '.join(f'{key} {value:.3g}' for key, value in found.items())}")
    return {"grows": name, "size": size, "work": work(name, size), **found}


def draw(rows: list[dict[str, Any]], file: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((9.0, 7.5), layout="constrained")
    for line, (quantity, text) in zip(figure.subplots(len(QUANTITIES), len(SIZES)), QUANTITIES.items(), strict=True):
        for axes, (name, (meaning, sizes)) in zip(line, SIZES.items(), strict=True):
            of_name = [row for row in rows if row["grows"] == name]
            axes.plot(sizes, [row[quantity] for row in of_name], "o-", label="measured")
            axes.plot(sizes, [of_name[0][quantity] * row["work"] for row in of_name], "k:", label="as the work")
            axes.set(xscale="log", yscale="log", xlabel=meaning, ylabel=text, xticks=sizes, xticklabels=sizes)
            axes.minorticks_off()
            axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=110)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rows = [measured(name, size) for name, (_, sizes) in SIZES.items() for size in sizes]
    if options.figure:
        draw(rows, options.figure)
    return {"growth": rows}


def main(arguments: list[str] | None = None) -> None:
    parser = results.benchmark_parser("growth", __doc__)
    parser.add_argument("--figure", type=results.json_file, metavar="FILE", help="a figure of it, e.g. in .png")
    results.run(parser.parse_args(arguments), measure)


if __name__ == "__main__":
    main()
