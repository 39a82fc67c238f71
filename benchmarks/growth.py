"""How a training step grows with the images of a batch, the latent groups, and the side of the images: one figure.

    python -m benchmarks.growth [--figure=growth.png] [--json=FILE]

A model of one scale (32 channels, 10 groups, images of 32 x 32 pixels, batch 4), of which one size at a time grows, in
a process of its own. Its steps take turns with those of the smallest model: the time is the median ratio of the two.
The work of a step is proportional to the batch, to the pixels, and nearly to the groups. The limit, dotted, grows as
the work does: what is above it is a defect. A quarter of an hour; let nothing else run meanwhile.
"""

import argparse
import json
import pathlib
import statistics
from typing import Any

from benchmarks import results
from benchmarks.workloads import Worker, python

STEPS = 4
PRESET, SMALLEST = "cifar10", {"batch_size": 4, "model.num_groups_per_scale": 10, "side": 32}
SIZES = {
    "batch_size": ("images of a batch", (4, 8, 16, 32, 64)),
    "model.num_groups_per_scale": ("latent groups", (10, 20, 30, 60)),
    "side": ("side of an image, pixels", (32, 64, 128, 256)),
}
QUANTITIES = {"step": "step / smallest step", "memory": "peak memory, GB", "first_step": "time to first step, seconds"}


def worker(**changed: int) -> Worker:
    """A process that takes the steps of the smallest model but for what is changed."""
    settings = SMALLEST | changed | {"model.num_channels_encoder": 32, "model.num_channels_decoder": 32}
    side = settings.pop("side")
    settings |= {"model.image_height": side, "model.image_width": side}
    return Worker(f"growth, {changed}", python("benchmarks.workloads", "variant", PRESET, json.dumps(settings)))


def measured(name: str, size: int, smallest: Worker) -> dict[str, Any]:
    with worker(**{name: size}) as larger:
        larger.ask("ready")
        turns = [[each.ask("step")["seconds"] for each in (larger, smallest)] for _ in range(STEPS)]
        summary = larger.ask("summary")
    figures = {"step": statistics.median(one / other for one, other in turns[1:])}
    figures |= {"step_seconds": statistics.median(one for one, _ in turns[1:])}
    figures |= {"memory": summary["peak_memory_bytes"] / 1e9, "first_step": summary["first_step_seconds"]}
    results.say(f"{name} = {size}: {', '.join(f'{key} {value:.3g}' for key, value in figures.items())}")
    work = (size / SMALLEST[name]) ** (2 if name == "side" else 1)
    return {"grows": name, "size": size, "work": work, **figures, "graph_nodes": summary["graph_nodes"]}


def draw(rows: list[dict[str, Any]], file: pathlib.Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure((9.0, 7.5), layout="constrained")
    grid = figure.subplots(len(QUANTITIES), len(SIZES), squeeze=False)
    for line, (quantity, text) in zip(grid, QUANTITIES.items(), strict=True):
        for axes, (name, (meaning, sizes)) in zip(line, SIZES.items(), strict=True):
            rows_of_setting = [row for row in rows if row["grows"] == name]
            axes.plot(sizes, [row[quantity] for row in rows_of_setting], "o-", label="measured")
            smallest = 1.0 if quantity == "step" else rows_of_setting[0][quantity]
            axes.plot(sizes, [smallest * row["work"] for row in rows_of_setting], "k:", label="as the work")
            axes.set(xscale="log", yscale="log", xlabel=meaning, ylabel=text, xticks=sizes, xticklabels=sizes)
            axes.minorticks_off()
            axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=110)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    with worker() as smallest:
        smallest.ask("ready")
        rows = [measured(name, size, smallest) for name, (_, sizes) in SIZES.items() for size in sizes]
    if options.figure:
        draw(rows, options.figure)
    return {"growth": rows}


def main(arguments: list[str] | None = None) -> None:
    parser = results.benchmark_parser("benchmarks.growth", __doc__)
    parser.add_argument("--figure", type=results.json_file, metavar="FILE", help="a figure of it, e.g. in .png")
    results.run(parser.parse_args(arguments), measure)


if __name__ == "__main__":
    main()
