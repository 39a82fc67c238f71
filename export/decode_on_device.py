"""Draws images with an exported .tflite file, where neither TensorFlow nor the package that made it is installed.

    python decode_on_device.py digits_decode.tflite images.png latents.npz    # latents of nvae-generate encode
    python decode_on_device.py digits_sample.tflite images.png                # latents drawn at random

It needs ai-edge-litert, NumPy and Pillow. Files of latents are those of nvae-generate encode and nvae-client encode.
Random latents are for the signature `sample`: those of a group depend on the groups above, which `decode` leaves to
whoever gives them. Images of models with classes are of the classes in the file, or of none.
"""

import argparse
import math
import pathlib
import time
import zipfile
from collections.abc import Callable

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

COUNT, TEMPERATURE, NO_CLASS = 8, 0.7, -1
MOST_BYTES = 2**30  # of an array in a file


def main(model: str, output: str, latents: str | None = None) -> None:
    """Draws a row of images: of the latents in a file, or `COUNT` random ones."""
    if latents and not zipfile.is_zipfile(latents):
        raise ValueError(f"{latents}: no .npz file")
    interpreter, count, signature = Interpreter(model_path=model), COUNT, "decode" if latents else "sample"
    if signature not in interpreter.get_signature_list():
        raise ValueError(f"{model}: has no signature {signature}; decode takes a file of latents, sample none")
    run = interpreter.get_signature_runner(signature)
    if latents:
        file = read_arrays(latents, lambda name: name in ("latent", "labels"))
        if "latent" not in file:
            raise ValueError(f"{latents}: has no array called latent")
        rows = {"latent": file["latent"]} | ({"label": file["labels"]} if "labels" in file else {})
        count = len(rows["latent"])
    else:
        _, total = run.get_input_details()["noise"]["shape"]
        rows = {"noise": np.random.default_rng().standard_normal((COUNT, total)).astype(np.float32)}
        rows["temperature"] = np.full(COUNT, TEMPERATURE, np.float32)
    rows = {"label": np.full(count, NO_CLASS, np.int32)} | rows
    names = run.get_input_details()
    images = [run(**{name: rows[name][index : index + 1] for name in names})["image"][0] for index in range(count)]
    pixels = np.rint(255 * np.clip(np.concatenate(images, axis=1), 0, 1)).astype(np.uint8)
    pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(output)
    print(f"{count} images in {output}")


def read_arrays(path: str, known: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """Returns the arrays of a .npz file whose names are known; ValueError for objects, or more bytes than it has."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        entries = {name: entry for name, entry in entries.items() if known(name)}
        for name, entry in entries.items():
            with archive.open(entry) as stream:
                np.lib.format.read_magic(stream)
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
            if dtype.hasobject or not 0 <= math.prod(shape) * dtype.itemsize <= min(entry.file_size, MOST_BYTES):
                raise ValueError(f"{path}: {name} is {dtype} {shape}; it must be numbers, at most 1 GiB")
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in entries}


def replay(model: str, signature: str, output: str, inputs: str, results: str, threads: str) -> None:
    """Runs a signature for each row of a .npz file; writes the `output` of all, and the `seconds` that each took."""
    with np.load(inputs) as arrays:  # written by who calls this
        rows = [dict(zip(arrays, row, strict=True)) for row in zip(*arrays.values(), strict=True)]
    run = Interpreter(model_path=model, num_threads=int(threads)).get_signature_runner(signature)
    outputs, seconds = [], []
    # Once more at first: memory is allotted then, and weights are packed.
    for row in rows[:1] + rows:
        begun = time.perf_counter()
        outputs.append(run(**{name: value[np.newaxis] for name, value in row.items()})[output])
        seconds.append(time.perf_counter() - begun)
    np.savez(results, output=np.concatenate(outputs[1:]), seconds=seconds[1:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a .tflite file of the signature decode, or sample where no latents are given")
    parser.add_argument("output", help="the image, .png")
    parser.add_argument("latents", nargs="?", help="an .npz file of latents")
    try:
        main(**vars(parser.parse_args()))
    except (KeyError, OSError, ValueError, zipfile.BadZipFile) as error:
        parser.error(" ".join(str(error).split()))
