"""How many images a second each source of data gives, and how much memory a large folder takes.

    python -m benchmarks.data_throughput [--files=100000] [--seconds=2] [--json=FILE]

Makes files of each kind in a temporary folder (patches of scikit-learn's photographs, so that they compress like
photographs), reads training batches from each in turn, several rounds, and gives the median. Beside it: what training
consumes, one step of the cifar10 preset on this machine and what the published runs on 8 to 24 GPUs consumed (epochs
x images / hours of table 6 of the paper). Last, a folder of --files small PNG files is read in a process of its own,
whose peak memory is reported. Let nothing else run meanwhile.
"""

import argparse
import itertools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import results
from benchmarks.results import say
from benchmarks.workloads import BATCH_SIZES, Worker, peak_memory_bytes, python
from nvae_tf.errors import start_tensorflow_quietly

ROUNDS, BATCH_SIZE, FILES_OF_A_KIND = 5, 32, 500
# Epochs x images / hours, for all GPUs together (Vahdat & Kautz 2020, table 6).
PUBLISHED_IMAGES_PER_SECOND = {
    "cifar10, 8 V100": 400 * 50_000 / (55 * 3600),
    "celeba64, 8 V100": 90 * 162_770 / (92 * 3600),
    "ffhq256, 24 V100": 200 * 63_000 / (160 * 3600),
}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    start_tensorflow_quietly()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        say("making files")
        rates = rates_of(make_sources(root), options.seconds)
        say("training steps of the cifar10 preset")
        # The worker has taken its first step when it answers.
        with Worker("ours", python("benchmarks.workloads", "training", "cifar10", "")) as worker:
            consumed = BATCH_SIZES["cifar10"] / statistics.median(worker.ask("step")["seconds"] for _ in range(3))
        say(f"a folder of {options.files:,} PNG files")
        write_pictures(root / "many", 32, options.files, "png")
        command = python("benchmarks.data_throughput", "read_folder", root / "many")
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {
        "images_per_second": rates,
        "training_images_per_second": consumed,
        "times_what_training_takes": {name: rate / consumed for name, rate in rates.items()},
        "published_images_per_second": PUBLISHED_IMAGES_PER_SECOND,
        "folder_memory": json.loads(done.stdout.splitlines()[-1]),
    }


def own_images(path: pathlib.Path, **settings: Any) -> Any:
    """A complete data spec of one's own images."""
    from nvae_tf.config import DataSpec
    from nvae_tf.data.spec import DATA_SPECS, complete_spec

    return complete_spec(DataSpec(**vars(DATA_SPECS["own_images"]) | {"path": str(path)} | settings))


def make_sources(root: pathlib.Path) -> dict[str, Any]:
    """A name and a data spec for each kind of source, with its files below `root`."""
    from nvae_tf.data.spec import DATA_SPECS

    specs = {}
    for size in (32, 256):
        for suffix in ("png", "jpg", "webp"):
            write_pictures(root / f"{suffix}{size}", size, FILES_OF_A_KIND, suffix)
            specs[f"folder, {suffix} {size}x{size}"] = own_images(root / f"{suffix}{size}")
    np.save(root / "images.npy", np.stack(list(patches(256, FILES_OF_A_KIND))))
    return specs | {
        "folder, jpg 256x256 to 64x64": own_images(root / "jpg256", resize="crop", height=64),
        "folder, png 256x256, cached": own_images(root / "png256", cache=str(root / "cache")),
        "arrays, .npy 256x256": own_images(root / "images.npy"),
        "in memory (TFDS, IDX, bundled), 32x32": DATA_SPECS["photos"],
    }


def patches(size: int, count: int) -> Iterator[np.ndarray]:
    """Random patches `[size, size, 3]` of scikit-learn's photographs."""
    from sklearn.datasets import load_sample_images

    random = np.random.default_rng(0)
    for photograph in itertools.islice(itertools.cycle(load_sample_images().images), count):
        top, left = (random.integers(0, side - size + 1) for side in photograph.shape[:2])
        yield photograph[top : top + size, left : left + size]


def write_pictures(folder: pathlib.Path, size: int, count: int, suffix: str) -> None:
    for number, patch in enumerate(patches(size, count)):
        place = folder / f"{number // 1000:04d}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(patch).save(place / f"{number:07d}.{suffix}")


def reading_of(spec: Any, batch_size: int) -> tuple[Any, Iterator]:
    """A source, and its training batches without an end."""
    from nvae_tf.data.pipeline import iterate, training_batches
    from nvae_tf.data.sources import load_split

    source = load_split(spec, "train")
    return source, iterate(training_batches(source, spec, batch_size, seed=0), source)


def rates_of(specs: dict[str, Any], seconds: float) -> dict[str, float]:
    """Median images/s of each source over rounds in which all take their turn."""
    readings = {name: reading_of(spec, BATCH_SIZE)[1] for name, spec in specs.items()}
    rounds = {name: [] for name in specs}
    for number in range(1, ROUNDS + 1):
        say(f"round {number} of {ROUNDS}")
        for name, reading in readings.items():
            _rate(reading, seconds / 4)  # uses up what was read ahead
            rounds[name].append(BATCH_SIZE * _rate(reading, seconds))
            # The pipeline reads ahead until its buffer is full, in the others' time.
            time.sleep(0.5)
    return {name: statistics.median(values) for name, values in rounds.items()}


def _rate(reading: Iterator, seconds: float) -> float:
    """How many batches are read a second, at least one."""
    started, count = time.monotonic(), 0
    while (passed := time.monotonic() - started) < seconds or not count:
        next(reading)
        count += 1
    return count / passed


def read_folder(folder: str) -> None:
    """Prints a line of JSON: seconds to list and check the files, images, and bytes after each stage."""
    start_tensorflow_quietly()
    spec = own_images(pathlib.Path(folder))
    imported, started = peak_memory_bytes(), time.monotonic()
    source, reading = reading_of(spec, 64)
    seconds = time.monotonic() - started
    for _ in range(500):
        next(reading)
    measured = {"images": source.count, "seconds_to_check": seconds, "imported_bytes": imported}
    print(json.dumps(measured | {"peak_bytes": peak_memory_bytes()}))


def main(arguments: list[str] | None = None) -> None:
    parser = results.benchmark_parser("data_throughput", __doc__)
    add = parser.add_argument
    add("--files", type=results.at_least(1000), default=100_000, help="PNG files of the large folder (default: 100000)")
    add("--seconds", type=results.at_least(0.01, float), default=2.0, help="seconds a source and round (default: 2)")
    results.run(parser.parse_args(arguments), measure)


if __name__ == "__main__":
    if sys.argv[1:2] == ["read_folder"]:  # the process whose memory is measured
        read_folder(sys.argv[2])
    else:
        main()
