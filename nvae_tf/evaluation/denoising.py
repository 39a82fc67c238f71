"""How well a model of noisy images (`data.noise`) tells signal and noise, and how near it comes to clean images."""

import functools
import pathlib
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.config import check
from nvae_tf.data.picture_folder import pictures_for_model
from nvae_tf.errors import require
from nvae_tf.evaluation.task import EvaluationTask
from nvae_tf.models.denoising import check_is_denoising, passing_noise
from nvae_tf.models.latents import image_seeds
from nvae_tf.progress import ImageProgress


def load_references(task: EvaluationTask, place: str | None) -> np.ndarray | None:
    """The clean images of all images of the part, float32 `[count, height, width, channels]` in the model's range.

    In a folder of pictures they have the names of the noisy ones; in files of arrays or TIFF files they are in the
    same order. ValueError where one is missing.
    """
    check_is_denoising(task.trained.config.model, "--metrics=noise")
    if place is None:
        return None
    require("skimage.metrics", "scientific")
    images, names = pictures_for_model(place, task.spec)
    noisy, where = task.source.names(), f"--references={place}"
    if isinstance(noisy, range):
        fix = f"and the {task.split} part has {len(noisy):,}; give one for each, in order"
        check(len(images) == len(noisy), f"{where}: has {len(images):,} images, {fix}")
        return images
    numbers = {pathlib.PurePath(name).stem: number for number, name in enumerate(names)}
    stems = [pathlib.PurePath(name).stem for name in noisy]
    unique = len(numbers) == len(names) and len({*stems}) == len(stems)
    check(unique, f"{where}: pictures of one name in several folders can't be told apart; rename them")
    for stem, name in zip(stems, noisy, strict=True):
        check(stem in numbers, f"{where}: has no clean image of the name of {name}")
    return images[[numbers[stem] for stem in stems]]


def measure_noise(task: EvaluationTask, references: np.ndarray | None) -> dict[str, Any]:
    """How much of the noise is in the signal at the posterior's means; with references PSNR and SSIM."""
    model, spec, columns = task.trained.model, task.spec, []
    specs = [tf.TensorSpec([None, *spec.image_shape]), tf.TensorSpec([None, 2], tf.int32)]
    specs += [tf.TensorSpec([None], tf.int32)] * spec.labels
    measure = tf.function(functools.partial(passing_noise, model), specs, autograph=False)
    progress, first = ImageProgress(task.status.show_if_due, task.source.count), 0
    for batch in task.batches(task.source, spec):
        images, *labels = batch if isinstance(batch, tuple) else (batch,)
        signal, passing = measure(images, image_seeds(task.seed, len(images), first), *labels)
        measured = {"passes": passing}
        if references is not None:
            clean = references[first : first + len(images)]
            measured |= {"psnr": psnr(signal, clean), "ssim": ssim(signal, clean)}
            measured |= {"psnr_of_images": psnr(images, clean), "ssim_of_images": ssim(images, clean)}
        columns.append(measured)
        first += len(images)
        progress.show(first)
    joined = {name: np.concatenate([measured[name] for measured in columns]) for name in columns[0]}
    task.check_finite(joined.values())
    return {name: float(values.mean(dtype=np.float64)) for name, values in joined.items()} | {"num_images": first}


def psnr(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """The peak signal-to-noise ratio of each image in dB, of the peak 1; of equal images 100 dB."""
    squares = np.square(np.asarray(images, np.float64) - references).reshape(len(references), -1)
    return -10.0 * np.log10(np.maximum(squares.mean(axis=1), 1e-10))


def ssim(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """The structural similarity of each image (Wang et al. 2004), in windows of 7x7 pixels, or what fits."""
    side = min(7, *references.shape[1:3])
    how = {"data_range": 1.0, "channel_axis": -1, "win_size": side - (side + 1) % 2}
    similarity = require("skimage.metrics", "scientific").structural_similarity
    return np.array([similarity(*pair, **how) for pair in zip(np.asarray(images), references, strict=True)])
