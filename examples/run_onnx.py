"""Draws images with the files of nvae-export-onnx, and encodes and decodes them, with onnxruntime and NumPy alone.

    python run_onnx.py digits_onnx images.npz

The arrays of the .npz file are `image` and `again` [8, height, width, channels] in [0, 1], and `latent` [8, total].
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime

COUNT, TEMPERATURE, NO_CLASS = 8, 0.7, -1


def main(folder: str, output: str) -> None:
    """Writes the images."""
    names = ("sample", "encode", "decode")
    sessions = {name: onnxruntime.InferenceSession(pathlib.Path(folder, f"{name}.onnx")) for name in names}
    layout = json.loads(sessions["sample"].get_modelmeta().custom_metadata_map["latents"])
    noise = np.random.default_rng().standard_normal([COUNT, layout["total"]], np.float32)

    def run(name: str, **inputs: np.ndarray) -> np.ndarray:
        if "label" in {each.name for each in sessions[name].get_inputs()}:  # of models with classes
            inputs["label"] = np.full(COUNT, NO_CLASS, np.int32)
        return sessions[name].run(None, inputs)[0]

    image = run("sample", noise=noise, temperature=np.full(COUNT, TEMPERATURE, np.float32))
    latent = run("encode", image=image, noise=np.zeros_like(noise))  # the posterior's means
    np.savez(output, image=image, latent=latent, again=run("decode", latent=latent))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python run_onnx.py FOLDER OUTPUT.npz")
    main(*sys.argv[1:])
