"""What a model of noisy images (`data.noise`) makes of them: the signal, and how much of the noise is left in it.

`model` is the `NVAE` (nvae.py). The largest latents have half the images' height and width or less: with as many
positions as pixels they would carry the noise from the images to the signal, and nothing in the bound is against it.
"""

import tensorflow as tf

from nvae_tf.config import ModelConfig, check
from nvae_tf.layers import FoldedPass
from nvae_tf.models.latents import noise_per_image
from nvae_tf.models.passes import inference_pass

_PROBE = 0.1  # the standard deviation of a probe, in those of the noise


def check_is_denoising(config: ModelConfig, what: str) -> None:
    """ValueError, which begins with `what`, unless a model is of noisy images."""
    check(config.is_denoising, f"{what}: this model was not trained with data.noise, so that it has no signal to give")


def passing_noise(model, images: tf.Tensor, seeds: tf.Tensor, labels=None) -> tuple[tf.Tensor, tf.Tensor]:
    """The signal at the posterior's means, and the part of the noise that is in it, `[batch]`: 0 for none, 1 for all.

    It is measured by a little more noise, drawn from the seeds: the trace of the signal's derivative by the image over
    the number of values (Ramani et al. 2008, "Monte-Carlo SURE"), which needs no clean image.
    """
    forward, means = FoldedPass(labels=labels), [0.0] * model.plan.num_groups
    likelihood = inference_pass(model, images, means, forward).likelihood
    signal, deviation = likelihood.mean(), _PROBE * likelihood.stddev()
    (probe,) = noise_per_image([tuple(images.shape[1:])], seeds)
    moved = inference_pass(model, images + deviation * probe, means, forward).likelihood.mean() - signal
    products, squares = (tf.reduce_sum(values, axis=(1, 2, 3)) for values in (probe * moved / deviation, probe**2))
    return signal, products / squares
