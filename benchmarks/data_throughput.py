"""How many images a second each source of data gives, and how much memory a large folder takes.

    python -m benchmarks.data_throughput [--files=100000] [--seconds=2] [--json=FILE]

Makes files of each kind in a temporary folder (patches of scikit-learn's photographs, so that they compress like
photographs), and --files small PNG files in a large one. Each source is read in a process of its own with two threads,
one after the other: the median of several times --seconds of training batches, the seconds to list and check the files
and to read a first batch, and the peak memory. Beside it what training consumes: steps of the cifar10 preset on this
machine. Let nothing else run meanwhile.
"""

import argparse
import functools
import itertools
import json
import pathlib
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import results
from benchmarks.all import Job, run_round, sides_of
from benchmarks.results import say
from benchmarks.workloads import BATCH_SIZES, Worker, python, serve_work

ROUNDS, BATCH_SIZE, FILES_OF_A_KIND = 5, 32, 500


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        say("making files")
        for name, settings in make_sources(pathlib.Path(folder), options.files).items():
            say(name)
            command = python("benchmarks.data_throughput", "read", json.dumps(settings), options.seconds)
            measured = run_round({name: functools.partial(Worker, name, command)}, ROUNDS, warm_up=1)[name]
            row = {"source": name, "images_per_second": BATCH_SIZE / statistics.median(measured.seconds)}
            row["seconds_to_first_batch"] = measured.summary["first_step_seconds"]
            rows.append(row | {"peak_memory_bytes": measured.summary["peak_memory_bytes"]})
        say("training steps of the cifar10 preset")
        training = run_round(sides_of(Job("training", "cifar10"), folder), turns=3, warm_up=0)["ours"]
    return {"rows": rows, "training_images_per_second": BATCH_SIZES["cifar10"] / statistics.median(training.seconds)}


def make_sources(root: pathlib.Path, files: int) -> dict[str, dict[str, Any]]:
    """A name and the settings `data.*` for each kind of source, with its files below `root`."""
    sources = {"in memory (TFDS, IDX, bundled), 32x32": {"name": "photos"}}

    def folder(suffix: str, size: int, count: int = FILES_OF_A_KIND) -> dict[str, Any]:
        place = root / f"{suffix}-{size}-{count}"
        for number, patch in enumerate(patches(size, count)):
            file = place / f"{number // 1000:04d}" / f"{number:07d}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(patch).save(file)
        return {"name": "own_images", "path": str(place)}

    for size, suffix in itertools.product((32, 256), ("png", "jpg", "webp")):
        sources[f"folder, {suffix} {size}x{size}"] = folder(suffix, size)
    jpg, png = (sources[f"folder, {suffix} 256x256"] for suffix in ("jpg", "png"))
    np.save(root / "images.npy", np.stack(list(patches(256, FILES_OF_A_KIND))))
    return sources | {
        "folder, jpg 256x256 to 64x64": jpg | {"resize": "crop", "height": 64},
        "folder, png 256x256, cached": png | {"cache": str(root / "cache")},
        "arrays, .npy 256x256": {"name": "own_images", "path": str(root / "images.npy")},
        f"folder, {files:,} png 32x32": folder("png", 32, files),
    }


def patches(size: int, count: int) -> Iterator[np.ndarray]:
    """Random patches `[size, size, 3]` of scikit-learn's photographs."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    for photograph in itertools.islice(itertools.cycle(load_sample_images().images), count):
        top, left = (random.integers(0, side - size + 1) for side in photograph.shape[:2])
        yield photograph[top : top + size, left : left + size]


def reading(name: str, **settings: Any) -> Callable[[], Any]:
    """A function that reads the next training batch of the data set with this name and other settings `data.*`."""
    from nvae_tf.data.pipeline import iterate, training_batches
    from nvae_tf.data.sources import load_split
    from nvae_tf.data.spec import DataSpec, complete_spec
    from nvae_tf.data_sets import DATA_SPECS

    spec = complete_spec(DataSpec(**vars(DATA_SPECS[name]) | settings))
    source = load_split(spec, "train")
    return functools.partial(next, iterate(training_batches(source, spec, BATCH_SIZE, seed=0), source))


def main(arguments: list[str] | None = None) -> None:
    parser = results.benchmark_parser("benchmarks.data_throughput", __doc__)
    add = parser.add_argument
    add("--files", type=results.at_least(1000), default=100_000, help="PNG files of the large folder (default: 100000)")
    add("--seconds", type=results.at_least(0.01, float), default=2.0, help="seconds a source and round (default: 2)")
    results.run(parser.parse_args(arguments), measure)


if __name__ == "__main__":
    if sys.argv[1:2] == ["read"]:  # the process of a source
        serve_work(functools.partial(reading, **json.loads(sys.argv[2])), seconds_at_a_time=float(sys.argv[3]))
    else:
        main()
