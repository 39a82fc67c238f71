"""Noise taken out by models that have never seen a clean image: Fashion-MNIST, beside total variation, and photographs.

    python -m examples.denoising train gaussian|poisson_gaussian --workdir=RUN [--count=9600] [--steps=1500]
    python -m examples.denoising compare --workdir=RUN [--count=300] [--samples=64]
    python -m examples.denoising photos --output=FOLDER

`python -m examples.denoising RECIPE --help` says what a recipe does. Needs scikit-image (extra scientific).
"""

import pathlib
from typing import Annotated, Any

import numpy as np
import tensorflow as tf
import tifffile
from sklearn.datasets import load_sample_images

from benchmarks import results
from benchmarks.workloads import run_python
from examples.digits import Count, Workdir
from examples.fashion import DEBIAN, Images, fashion, tuned
from nvae_tf.data.sources import load_split
from nvae_tf.evaluation.denoising import psnr
from nvae_tf.models.denoising import passing_noise
from nvae_tf.models.latents import image_seeds
from nvae_tf.runs.loading import load_run
from nvae_tf.schemas import write_arrays

SIGMA, VARIANCE = 0.2, (0.05, 0.01)  # of images in [0, 1]; the variance a s + b of Poisson-Gaussian noise
TEST_IMAGES = 2000
# 0.3 million weights; latents of 7x7 and 14x14, none at the images' own 28x28. An epoch has 300 steps.
_RECIPE = {
    **{"model.num_latent_scales": 2, "model.num_groups_per_scale": 2, "model.num_latent_per_group": 10},
    **{f"model.num_channels_{part}": 16 for part in ("encoder", "decoder")},
    **{f"model.num_cells_per_group_{part}": 1 for part in ("encoder", "decoder")},
    **{f"model.num_{part}process_{what}": 1 for part in ("pre", "post") for what in ("blocks", "cells")},
    **{"data.range": "0,1", "optimizer.warmup_epochs": 1.0, "train.batch_size": 32},
}
Kind = Annotated[str, "The noise; may stand without --kind=.", "gaussian", "poisson_gaussian"]
Steps = Annotated[int, "Steps of training.", 1]
Samples = Annotated[int, "Draws whose mean is taken.", 2]


def noisy(images: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """Images in [0, 1] with noise that is drawn once, float32."""
    random, (slope, constant) = np.random.default_rng(seed), VARIANCE if kind != "gaussian" else (0.0, SIGMA**2)
    counts = slope * random.poisson(images / slope) if slope else images
    return (counts + random.normal(0.0, constant**0.5, images.shape)).astype(np.float32)


def clean(split: str, count: int | None, images: str) -> np.ndarray:
    """The first images of a part of Fashion-MNIST, in [0, 1]."""
    return fashion(images, split, count)[0] / np.float32(255.0)


def train(
    kind: Kind, workdir: Workdir, count: Count = 9600, steps: Steps = 1500, images: Images = DEBIAN
) -> dict[str, Any]:
    """Trains a model on noisy images alone, which go into a file beside the run; Gaussian noise is estimated."""
    file = pathlib.Path(workdir).absolute().with_suffix(".npz")
    if not file.exists():
        counts = {"train": count, "test": TEST_IMAGES}
        write_arrays(file, {s: noisy(clean(s, n, images), kind, seed) for seed, (s, n) in enumerate(counts.items())})
    settings = _RECIPE | {"data.path": file, "data.noise": kind, "train.steps": steps}
    if kind == "poisson_gaussian":
        settings["data.noise_variance"] = ",".join(map(str, VARIANCE))
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    return {"peak_memory_bytes": run_python("train.main", "--config=own_images", f"--workdir={workdir}", *flags)}


def photos(output: Annotated[str, "Folder to write to."]) -> dict[str, Any]:
    """Writes scikit-learn's photographs as an instrument would: gray TIFF files of numbers from 2000 on, with noise.

    Of each the left part is in noisy/train/, and the right one in noisy/test/ and, without noise, in clean/.
    """
    random, folder = np.random.default_rng(0), pathlib.Path(output)
    for number, photograph in enumerate(load_sample_images().images):
        true = 2000.0 + 3000.0 * photograph.mean(axis=-1) / 255.0
        counts = true + random.normal(0.0, 300.0, true.shape)
        parts = {"noisy/train": counts[:, :512], "noisy/test": counts[:, 512:], "clean": true[:, 512:]}
        for part, image in parts.items():
            (folder / part).mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(folder / part / f"{number}.tif", np.rint(image).astype(np.uint16))
    return {"range": "2000,5000", "sigma": 300}


def compare(workdir: Workdir, count: Count = 300, samples: Samples = 64, images: Images = DEBIAN) -> dict[str, Any]:
    """The mean PSNR in dB over test images of a model of `train`, and of total variation, tuned on the clean images.

    All but the noisy images are clipped to [0, 1]. Also the PSNR of training images, and how much of the noise passes.
    """
    run = load_run(workdir)
    spec, model = run.config.data, run.model
    measured, training = (load_split(spec, split).read(np.arange(count)) for split in ("test", "train"))
    true = clean("test", count, images)
    made = {"noisy": measured, "total variation": total_variation(measured, true, spec.noise)}
    for name, draws in (("one draw", 1), (f"mean of {samples} draws", samples), ("one pass", 0)):
        made[name] = np.clip(model.denoise(measured, draws).images, 0.0, 1.0)
    decibels = {name: float(psnr(each, true).mean()) for name, each in made.items()}
    made = np.clip(model.denoise(training).images, 0.0, 1.0)
    decibels["one pass, training images"] = float(psnr(made, clean("train", count, images)).mean())
    _, passing = passing_noise(model, tf.constant(measured), image_seeds(0, count))
    weights = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
    about = {"images": count, "weights": weights, "step": run.step, "noise": spec.noise, "sigma": spec.noise_sigma}
    return about | {"psnr_db": decibels, "noise_that_passes": float(np.mean(passing))}


def total_variation(measured: np.ndarray, true: np.ndarray, kind: str) -> np.ndarray:
    """Chambolle's method with the weight that is best for these images, of Poisson-Gaussian noise after a transform.

    That is the generalized one of Anscombe, which makes the noise's deviation `SIGMA` everywhere.
    """
    from skimage.restoration import denoise_tv_chambolle

    slope, constant = VARIANCE

    def denoised(image: np.ndarray, weight: float) -> np.ndarray:
        if kind == "gaussian":
            return denoise_tv_chambolle(image, weight, channel_axis=-1)
        stable = 2.0 * SIGMA / slope * np.sqrt(np.maximum(slope * image + 0.375 * slope**2 + constant, 0.0))
        made = denoise_tv_chambolle(stable, weight, channel_axis=-1)
        return slope / 4.0 * np.square(made / SIGMA) - slope / 8.0 - constant / slope

    return tuned(denoised, np.linspace(0.05, 0.5, 10), measured, true)


if __name__ == "__main__":
    results.run_recipe("examples.denoising", __doc__, train, compare, photos)
