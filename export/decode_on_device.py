"""Draws images with an exported .tflite file, where neither TensorFlow nor the package that made it is installed.

    python decode_on_device.py digits_decode.tflite images.png latents.npz    # latents of nvae-generate encode
    python decode_on_device.py digits_sample.tflite images.png                # latents drawn at random

It needs ai-edge-litert, NumPy and Pillow. Random latents are for the signature `sample`: those of a group depend on
the groups above, which `decode` leaves to whoever gives them.
"""

import argparse

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

COUNT, TEMPERATURE = 8, np.float32([0.7])


def main(model: str, output: str, latents: str | None = None) -> None:
    """Draws a row of images: of the latents in a file, or `COUNT` random ones."""
    interpreter = Interpreter(model_path=model)
    if latents:
        decode = interpreter.get_signature_runner("decode")
        with np.load(latents) as file:
            groups = [file[name] for name in file.files if name.startswith("group_")]
        rows = np.concatenate([group.reshape(len(group), -1) for group in groups], axis=1)
        images = [decode(latent=row[np.newaxis])["image"][0] for row in rows]
    else:
        sample = interpreter.get_signature_runner("sample")
        _, total = sample.get_input_details()["noise"]["shape"]
        rows = np.random.default_rng().standard_normal((COUNT, total)).astype(np.float32)
        images = [sample(noise=row[np.newaxis], temperature=TEMPERATURE)["image"][0] for row in rows]
    pixels = np.rint(255 * np.clip(np.concatenate(images, axis=1), 0, 1)).astype(np.uint8)
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a .tflite file of the signature decode, or sample where no latents are given")
    parser.add_argument("output", help="the image, .png")
    parser.add_argument("latents", nargs="?", help="an .npz file of nvae-generate encode")
    main(**vars(parser.parse_args()))
