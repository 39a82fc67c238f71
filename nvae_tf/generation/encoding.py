"""Latents of images, many at a time."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from nvae_tf.generation.fixed_batches import KeptGraphs, Progress, in_batches
from nvae_tf.models import NVAE
from nvae_tf.models.images import check_images
from nvae_tf.models.noise import image_seeds


def encode_images(
    model: NVAE, images: np.ndarray, seed: int = 0, mean: bool = False, progress: Progress | None = None
) -> list[np.ndarray]:
    """Latents of images from the posterior; those of image i depend on the image, the seed and i alone.

    Args:
      model: used with running batch-norm statistics.
      images: `[count, height, width, channels]` in [0, 1].
      seed: of the draws.
      mean: whether the posterior's means are taken instead, each given those of the groups above.
      progress: is called after each batch with the number of images done.

    Returns:
      float32 `[count, height, width, latent channels]` a group, top group first.

    Raises:
      ValueError: the images have another size than the model's, or are not all in [0, 1].
    """
    images = check_images(images, model.config).numpy()
    # The scale is an argument, not a constant: means then come from the arithmetic of draws.
    noise_scale = tf.constant(0.0 if mean else 1.0)
    encode = _ENCODERS.of(model)
    seeds = image_seeds(seed, len(images)).numpy()
    return in_batches(lambda *batch: encode(*batch, noise_scale), [images, seeds], progress)


def _encoder(model: NVAE) -> Callable[..., list[tf.Tensor]]:
    def encode(images, seeds, noise_scale):
        return [latent.z for latent in model.encode_from_seeds(images, seeds, noise_scale)]

    return tf.function(encode, autograph=False)


_ENCODERS = KeptGraphs(_encoder)
