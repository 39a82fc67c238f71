"""Lossless sizes of test images by a model and by other formats: the table of docs/compression.md.

    python -m examples.compression --workdir=digits
    python -m examples.compression --workdir=fashion --data_path=FOLDER --count=2000

Where imagecodecs is installed, JPEG XL is measured too. All images are one stream. Prints Markdown.
"""

import bz2
import importlib.util
import io
import lzma
import math
import os
import platform
import time
from typing import Annotated

import numpy as np

from nvae_tf import command_line
from nvae_tf.compression.container import unpacked
from nvae_tf.config import DATA_PATH_HELP
from nvae_tf.data.sources import load_split
from nvae_tf.generation.image_grid import pil_images
from nvae_tf.generation.image_sets import values_of_levels
from nvae_tf.models.lossless import Codec, compress
from nvae_tf.runs.loading import load_run
from nvae_tf.serving.saved_model import coding_model


def others(images: np.ndarray, is_binary: bool) -> dict[str, int]:
    """The bytes of uint8 images `[count, height, width, channels]` by each format; binary ones have bits packed."""

    def in_all(format: str, **options) -> int:
        files = [io.BytesIO() for _ in images]
        for picture, file in zip(pil_images(images), files, strict=True):
            (picture.convert("1") if is_binary and format != "WEBP" else picture).save(file, format, **options)
        return sum(file.tell() for file in files)

    data = np.packbits(images > 127).tobytes() if is_binary else images.tobytes()
    sizes = {"PNG, optimized, a picture each": in_all("PNG", optimize=True)}
    sizes["WebP lossless, a picture each"] = in_all("WEBP", lossless=True, quality=100, method=6)
    if is_binary:
        sizes["TIFF Group 4, a picture each"] = in_all("TIFF", compression="group4")
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs

        coded = (imagecodecs.jpegxl_encode(image.squeeze(), lossless=True, effort=9) for image in images)
        sizes["JPEG XL, effort 9, a picture each"] = sum(map(len, coded))
    sizes["bzip2 of all"] = len(bz2.compress(data, 9))
    return sizes | {"lzma of all": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))}


def ours(levels: np.ndarray, labels: np.ndarray | None, workdir: str, chunk: int) -> tuple[int, str]:
    """The bytes of the file by the model of a run, and a text about the bound, the parts of the file and the speed."""
    source, encoded = coding_model(workdir), []
    images = levels.astype(np.float32) / np.float32(2**source.model.config.num_bits - 1)
    settings = {"labels": labels, "per_group": True, "batch_size": 100}
    scores = [source.model.score(images, seed=seed, **settings).nelbo for seed in range(3)]
    bits = len(levels) * float(np.mean(scores)) / math.log(2.0)
    data = compress(source, levels, labels, {"model": workdir}, chunk, progress=encoded.append)
    header, _ = unpacked(data)
    codec, first = Codec(source, header["bins"], header["growth"], header["tolerance"]), levels[:chunk]
    classes = np.zeros(len(first), np.int32) if labels is None else labels[:chunk]
    for _ in range(2):  # the second time without building graphs
        begun = time.perf_counter()
        codec.encode(first, classes)
        middle = time.perf_counter()
        codec.decode(encoded[0].data, classes)
        end = time.perf_counter()
    return len(data), (
        f"NELBO {bits / len(levels):.2f} bits an image; the file has {8 * len(data) / bits:.3f} of its bits, the "
        f"stream {8 * sum(len(part.data) for part in encoded) / bits:.3f}; of the NELBO marks are "
        f"{sum(part.marks for part in encoded) / bits:.2%}, start {sum(part.start for part in encoded) / bits:.2%}; "
        f"{len(first) / (middle - begun):.0f} images/s to encode, {len(first) / (end - middle):.0f} to decode"
    )


def main(
    workdir: Annotated[str, command_line.RUN_HELP] = "digits",
    data_path: Annotated[str | None, DATA_PATH_HELP] = None,
    count: Annotated[int | None, "Test images; all if not given.", 1] = None,
    chunk: Annotated[int, "Images of a chunk.", 1] = 2**16,
) -> None:
    """Measures, and prints the table."""
    config = load_run(workdir).config
    source, num_bits = load_split(config.data_at(data_path), "test"), config.model.num_bits
    levels = source.read(np.arange(min(source.count, count or source.count))) >> (8 - num_bits)
    labels = source.labels[: len(levels)] if config.model.num_classes else None
    size, text = ours(levels, labels, workdir, chunk)
    sizes = {"**this**": size} | others(values_of_levels(num_bits, 255)[levels], num_bits == 1)
    print(f"{len(levels)} images {levels.shape[1:]}, {os.cpu_count()} cores, {platform.machine()}. {text}\n")
    print("format | bits an image | bits/dim\n---|---|---")
    for name, size in sizes.items():
        print(f"{name} | {8 * size / len(levels):,.1f} | {8 * size / levels.size:.4f}")


if __name__ == "__main__":
    command_line.run(main)
