"""A page for a Hugging Face Space: samples of a model, and variants of a picture, over the client of a model server.

    pip install gradio && python examples/space/app.py     # at http://127.0.0.1:7860

MODEL in the environment is what `nvae_tf.load` takes ("digits", which comes with the package, or "hf://user/name"): it
is exported once and served inside this process. With SERVER, as http://HOST:8501, MODEL is the name of a model there.
"""

import contextlib
import os

import gradio as gr
import numpy as np
from PIL import Image, ImageOps

from nvae_tf.generation.image_grid import pil_images
from nvae_tf.serving.client import ServedModel

COUNT, SIZE = 16, 128


def enlarged(pixels: np.ndarray) -> list[Image.Image]:
    """Images `[count, height, width, channels]` as Pillow images, enlarged by a whole number."""
    factor = max(1, SIZE // pixels.shape[2])
    return [ImageOps.scale(image, factor, Image.Resampling.NEAREST) for image in pil_images(pixels)]


def interface(model: ServedModel) -> gr.Blocks:
    """The page of a served model."""
    height, width, _ = model.image_shape()
    groups = model.signatures()["compose"].inputs["keep"].shape[1]

    def sample(seed: float, temperature: float) -> list[Image.Image]:
        return enlarged(model.sample(COUNT, int(seed), temperature, as_pixels=True))

    def vary(picture: Image.Image | None, kept: float, seed: float, temperature: float) -> list[Image.Image]:
        if picture is None:
            raise gr.Error("Choose a picture first.")
        latents = model.encode([ImageOps.fit(picture, (width, height))])
        keep = np.arange(groups) < kept
        latents = np.repeat(latents, COUNT, axis=0)
        return enlarged(model.compose(latents, keep, int(seed), temperature, as_pixels=True)[0])

    with gr.Blocks(title="NVAE") as page:
        gr.Markdown("# NVAE\nA deep hierarchical VAE ([arXiv 2007.03898](https://arxiv.org/abs/2007.03898)).")
        with gr.Row():
            seed = gr.Number(1, label="Seed", minimum=0, maximum=2**31 - 1, precision=0)
            temperature = gr.Slider(0.05, 1.5, 1.0, step=0.05, label="Temperature")
        with gr.Tab("Samples"):
            samples = gr.Gallery(label="Samples", columns=8, format="png")
            gr.Button("Draw").click(sample, [seed, temperature], samples)
        with gr.Tab("Variants of a picture"):
            picture = gr.Image(type="pil", label="Picture")
            kept = gr.Slider(0, groups, 1, step=1, label="Top latent groups kept; the others are drawn")
            variants = gr.Gallery(label="Variants", columns=8, format="png")
            gr.Button("Draw").click(vary, [picture, kept, seed, temperature], variants)
        page.load(sample, [seed, temperature], samples)
    return page


def main() -> None:
    """Serves the model unless a server is given, and the page."""
    name, server = os.environ.get("MODEL", "digits"), os.environ.get("SERVER")
    with contextlib.ExitStack() as stack:
        if server is None:
            from nvae_tf.serving.local_server import local_server
            from nvae_tf.serving.saved_model import cached_export

            path = cached_export(name)
            name = path.name
            server = f"http://127.0.0.1:{stack.enter_context(local_server(name, path))[1]}"
        interface(stack.enter_context(ServedModel(server, name))).launch()


if __name__ == "__main__":
    main()
