"""Images from the prior, many at a time."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from nvae_tf.models import NVAE
from nvae_tf.models.noise import image_seeds

# Always the same, so that the arithmetic of image i, and with it its last bit, does not depend on how many
# there are.
_BATCH_SIZE = 16


def generate_images(
    model: NVAE,
    count: int,
    temperature: float = 1.0,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> np.ndarray:
    """Mean images of latents from the prior; image i depends on the seed and i alone.

    Args:
      model: used with running batch-norm statistics.
      count: number of images.
      temperature: multiplies every prior's sigma; below 1 images are more alike.
      seed: of the latents.
      progress: is called after each batch with the number of images done.

    Returns:
      float32 `[count, height, width, channels]` in [0, 1].

    Raises:
      ValueError: `count` or `temperature` is not greater than 0.
    """
    return ImageGenerator(model).generate(count, temperature, seed, progress)


class ImageGenerator:
    """What `generate_images` does, for a model whose weights change in between; the graph is traced once."""

    def __init__(self, model: NVAE):
        self._mean_images = tf.function(
            lambda seeds, temperature: model.generate_from_seeds(seeds, temperature).mean(),
            input_signature=[tf.TensorSpec((_BATCH_SIZE, 2), tf.int32), tf.TensorSpec(())],
            autograph=False,
        )

    def generate(
        self,
        count: int,
        temperature: float = 1.0,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """See `generate_images`."""
        if count < 1:
            raise ValueError(f"count = {count}: must be at least 1")
        if not 0.0 < temperature < float("inf"):
            raise ValueError(f"temperature = {temperature}: must be greater than 0 and finite")
        images = []
        for first in range(0, count, _BATCH_SIZE):
            images.append(self._mean_images(image_seeds(seed, _BATCH_SIZE, first), temperature).numpy())
            if progress:
                progress(min(first + _BATCH_SIZE, count))
        return np.concatenate(images)[:count]
