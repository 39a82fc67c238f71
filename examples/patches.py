"""Patches of many channels and of 12 bits, from scikit-learn's two photographs, to train models of, and their sizes.

    python -m examples.patches channels --output=FOLDER
    python -m examples.patches depth --output=FILE.npz

`python -m examples.patches RECIPE --help` says what a recipe does. docs/scientific.md has the trainings and scores.
"""

import importlib.util
import io
import pathlib
from typing import Annotated, Any

import numpy as np
from PIL import Image

from benchmarks import results
from nvae_tf.data.sources import load_split
from nvae_tf.presets import experiment_config
from nvae_tf.schemas import write_arrays


def photographs(size: int) -> dict[str, np.ndarray]:
    """RGB patches of both photographs, uint8 `[count, size, size, 3]`, of each part."""
    spec = experiment_config("photos", {"data.height": size, "data.width": size}).data
    return {part: load_split(spec, part).images for part in ("train", "test")}


def channels(output: Annotated[str, "A folder for all.npz, and 0.npz to 7.npz of one channel each."]) -> dict[str, Any]:
    """Writes 32x32 patches of 8 channels of 8 bits: red, green, blue, their squares, and two differences."""
    folder, parts = pathlib.Path(output), {}
    folder.mkdir(parents=True, exist_ok=True)
    for part, patches in photographs(32).items():
        values = patches.astype(np.int32)
        squares, differences = values**2 // 255, (values[..., :2] - values[..., 1:] + 255) // 2
        parts[part] = np.concatenate([values, squares, differences], axis=-1).astype(np.uint8)
    write_arrays(folder / "all.npz", parts)
    for channel in range(8):
        write_arrays(folder / f"{channel}.npz", {part: each[..., [channel]] for part, each in parts.items()})
    return {part: each.shape for part, each in parts.items()}


def depth(output: Annotated[str, "The file to write, .npz."]) -> dict[str, Any]:
    """Writes gray 32x32 patches of 12 bits: 64x64 patches in linear light, of which 2x2 pixels make one.

    Also the bits that a value of the test patches takes as PNG of 16 bits, and with imagecodecs as JPEG-LS and JPEG XL.
    """
    parts = {}
    for part, patches in photographs(64).items():
        linear = ((patches / 255.0) ** 2.2).mean(axis=-1, keepdims=True)
        halved = linear.reshape(-1, 32, 2, 32, 2, 1).mean(axis=(2, 4))
        parts[part] = np.rint(halved * (2**12 - 1)).astype(np.uint16)
    write_arrays(pathlib.Path(output), parts)
    pictures, files = parts["test"][..., 0], io.BytesIO()
    for picture in pictures:
        Image.fromarray(picture).save(files, "PNG", optimize=True)
    sizes = {"PNG": files.tell()}
    if importlib.util.find_spec("imagecodecs"):
        import imagecodecs

        sizes["JPEG-LS"] = sum(len(imagecodecs.jpegls_encode(picture)) for picture in pictures)
        coded = [imagecodecs.jpegxl_encode(picture, lossless=True, effort=9) for picture in pictures]
        sizes["JPEG XL"] = sum(map(len, coded))
    bits = {name: 8 * size / pictures.size for name, size in sizes.items()}
    return {part: each.shape for part, each in parts.items()} | {"bits_a_value": bits}


if __name__ == "__main__":
    results.run_recipe("examples.patches", __doc__, channels, depth)
