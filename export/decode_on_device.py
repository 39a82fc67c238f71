"""Draws images with an exported .tflite file, where neither TensorFlow nor the package that made it is installed.

    python decode_on_device.py digits_decode.tflite images.png latents.npz    # latents of nvae-generate encode
    python decode_on_device.py digits_sample.tflite images.png                # latents drawn at random

It needs ai-edge-litert, NumPy and Pillow. Files of latents are from nvae-generate encode and nvae-client encode.
Random latents are for the signature `sample`: a group's latents depend on the groups above, which `decode` leaves to
whoever gives them. Images of models with classes are of the classes in the file, or of none.
"""

import argparse
import os
import pathlib
import time
import zipfile

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

COUNT, TEMPERATURE, NO_CLASS = 8, 0.7, -1


def main(model: str, output: str, latents: str | None = None) -> None:
    """Draws a row of images: of the latents in a file, or `COUNT` random ones."""
    interpreter, signature = Interpreter(model_path=model), "decode" if latents else "sample"
    if signature not in interpreter.get_signature_list():
        raise ValueError(f"no signature {signature}; decode takes a file of latents, sample none")
    run = interpreter.get_signature_runner(signature)
    names = run.get_input_details()
    if latents:
        with zipfile.ZipFile(latents) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > 2**28 + 4 * os.path.getsize(latents):  # random numbers hardly shrink
            raise ValueError(f"its arrays would take {unpacked:,} bytes")
        with np.load(latents, allow_pickle=False) as file:
            rows = {"latent": file["latent"]} | ({"label": file["labels"]} if "labels" in file else {})
    else:
        noise = np.random.default_rng().standard_normal((COUNT, names["noise"]["shape"][1]))
        rows = {"noise": noise.astype(np.float32), "temperature": np.full(COUNT, TEMPERATURE, np.float32)}
    count = len(next(iter(rows.values())))
    rows = {"label": np.full(count, NO_CLASS, np.int32)} | rows
    images = [run(**{name: rows[name][index : index + 1] for name in names})["image"][0] for index in range(count)]
    pixels = np.rint(255 * np.clip(np.concatenate(images, axis=1), 0, 1)).astype(np.uint8)
    pixels = pixels[..., :3] if pixels.shape[-1] > 4 else pixels
    pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(output)
    print(f"{count} images in {output}")


def replay(inputs: str, results: str, model: str, signature: str, output: str) -> None:
    """Runs a signature for each row of a .npz file; writes the `output` of all, and the `seconds` that each took."""
    with np.load(inputs) as arrays:  # written by the caller
        rows = [dict(zip(arrays, row, strict=True)) for row in zip(*arrays.values(), strict=True)]
    run = Interpreter(model_path=model, num_threads=1).get_signature_runner(signature)
    outputs, seconds = [], []
    for row in rows[:1] + rows:  # once more at first: memory is allotted then, and weights are packed
        begun = time.perf_counter()
        outputs.append(run(**{name: value[np.newaxis] for name, value in row.items()})[output])
        seconds.append(time.perf_counter() - begun)
    np.savez(results, output=np.concatenate(outputs[1:]), seconds=seconds[1:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a .tflite file of the signature decode, or sample where no latents are given")
    parser.add_argument("output", help="the image, .png")
    parser.add_argument("latents", nargs="?", help="an .npz file of latents")
    arguments = parser.parse_args()
    try:
        main(**vars(arguments))
    except Exception as error:  # NumPy and the interpreter have many kinds for a damaged file
        files = " and ".join(filter(None, (arguments.model, arguments.latents)))
        parser.error(f"{files}: {' '.join(str(error).split())}")
