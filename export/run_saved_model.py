"""Draws images with an exported model, without the package that made it.

    python run_saved_model.py --saved_model=models/digits/1 --output=samples.png --temperature=0.7

A plain script that needs TensorFlow, NumPy and Pillow alone: copy it beside an export. The model is loaded by
TensorFlow's session loader, as TensorFlow Serving does it.
"""

import argparse
import contextlib
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

BATCH = 64  # images drawn at once, which bounds the memory
# The shortest side, in pixels, to which small images are enlarged; pixels between images.
VISIBLE_SIDE, GAP = 64, 6
LARGEST_SEED = 2**31 - 1
# Signatures that are checked as a server runs them: one of each network.
AS_SERVED, DEFAULT = ("sample", "score"), "serving_default"


@contextlib.contextmanager
def session_of(folder: str) -> Iterator[Callable]:
    """Loads a SavedModel and gives `run(signature, **inputs)`, whose arrays by name have the batch as first axis."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    # With the rewriting of graphs, as TensorFlow Serving has it: without `config` it follows what the process has set.
    with contextlib.closing(tf.compat.v1.Session(graph=tf.Graph(), config=tf.compat.v1.ConfigProto())) as session:
        loaded = tf.compat.v1.saved_model.loader.load(session, [tf.saved_model.SERVING], folder)

        def run(signature: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
            definition = loaded.signature_def[signature]
            feed = {definition.inputs[name].name: value for name, value in inputs.items()}
            return session.run({name: output.name for name, output in definition.outputs.items()}, feed)

        yield run


def sample(run: Callable, count: int, seed: int, temperature: float) -> np.ndarray:
    """Images `[count, height, width, channels]` in [0, 1]; image i depends on `seed` and i alone."""
    # The low word of a row's seed is the series, the high word the image's number in it.
    seeds = np.int64(seed) + (np.arange(count, dtype=np.int64) << 32)
    temperatures = np.full(count, temperature, np.float32)
    parts = [slice(start, start + BATCH) for start in range(0, count, BATCH)]
    return np.concatenate([run("sample", seed=seeds[part], temperature=temperatures[part])["image"] for part in parts])


def replay(inputs: str, outputs: str, folder: str) -> None:
    """Runs all signatures on arrays `signature/input` of a .npz file, by both loaders of TensorFlow; writes outputs."""
    import tensorflow as tf

    given: dict[str, dict[str, np.ndarray]] = {}
    with np.load(inputs) as file:  # written by the caller
        for name in file:
            signature, _, argument = name.partition("/")
            given.setdefault(signature, {})[argument] = file[name]
    served_names = given.keys() & set(AS_SERVED)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})

    def as_served() -> dict[str, dict[str, np.ndarray]]:
        with session_of(folder) as run:
            return {signature: run(signature, **given[signature]) for signature in served_names}

    with ThreadPoolExecutor() as pool:  # both take seconds, the most of them outside of Python
        served = pool.submit(as_served)
        stored = tf.saved_model.load(folder).signatures
        results = {
            signature: stored[signature](**{name: tf.constant(array) for name, array in given[signature].items()})
            for signature in stored.keys() - {DEFAULT} - served_names
        }
        results |= served.result()
    arrays = {
        f"{signature}/{name}": np.array(value) for signature in results for name, value in results[signature].items()
    }
    # PNG files as an array that needs no pickle to be stored.
    np.savez(outputs, **{name: array.astype("S") if array.dtype == object else array for name, array in arrays.items()})


def image_grid(images: np.ndarray) -> Image.Image:
    """A grid of images `[count, height, width, channels]` in [0, 1], of more than 4 channels of the first 3."""
    images = images[..., :3] if images.shape[-1] > 4 else images
    pixels = np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
    enlarge = max(1, math.ceil(VISIBLE_SIDE / min(pixels.shape[1:3])))
    columns = math.ceil(math.sqrt(len(pixels)))
    cells = pixels.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    # White, and where there is a channel for it opaque.
    cells = np.pad(cells, [(0, -len(cells) % columns), (0, GAP), (0, GAP), (0, 0)], constant_values=255)
    rows = [np.hstack(cells[first : first + columns]) for first in range(0, len(cells), columns)]
    grid = np.vstack(rows)[:-GAP, :-GAP]
    return Image.fromarray(grid[:, :, 0] if grid.shape[-1] == 1 else grid)


def main() -> None:
    """Draws, and writes the grid."""
    page = {"description": __doc__, "formatter_class": argparse.RawDescriptionHelpFormatter}
    parser = argparse.ArgumentParser(**page, allow_abbrev=False)
    parser.add_argument("--saved_model", required=True, metavar="DIR", help="one version, as models/digits/1")
    parser.add_argument("--output", required=True, metavar="PNG", help="the grid; replaced if it exists")
    parser.add_argument("--count", type=int, default=64, help="how many images (default: 64)")
    parser.add_argument("--seed", type=int, default=1, help="random seed, from 0 (default: 1)")
    parser.add_argument("--temperature", type=float, default=1.0, help="above 0; lower: less variety (default: 1)")
    flags = parser.parse_args()
    folder = pathlib.Path(flags.saved_model)
    if not (folder / "saved_model.pb").is_file():
        parser.error(f"--saved_model={folder}: no saved_model.pb in it; name one version, as models/digits/1")
    output = pathlib.Path(flags.output)
    is_right = flags.count > 0 < flags.temperature < math.inf and 0 <= flags.seed <= LARGEST_SEED
    if not is_right or output.suffix.lower() != ".png" or output.is_dir():
        limits = f"--count and --temperature must be above 0, --seed from 0 to {LARGEST_SEED}"
        parser.error(f"{limits}, --output a name in .png")
    try:
        with session_of(flags.saved_model) as run:
            images = sample(run, flags.count, flags.seed, flags.temperature)
    except Exception as error:  # TensorFlow and protobuf have many kinds for a damaged file
        lines = [line for line in str(error).splitlines() if line.strip() and "Graph execution error" not in line]
        parser.error(f"--saved_model={folder}: can't be run, a damaged or foreign export ({(lines or [error])[0]})")
    output.parent.mkdir(parents=True, exist_ok=True)
    # Written beside, then renamed: a reader never sees half a file.
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    image_grid(images).save(partial, format="PNG")
    partial.replace(output)
    print(f"{flags.count} images in {flags.output}")


if __name__ == "__main__":
    main()
