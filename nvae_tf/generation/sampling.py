"""Images from latents, many at a time: all drawn from the prior, all given, or the top groups given and the rest drawn.

Every picture that a model makes comes through here, so the same latents give the same bits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.generation.fixed_batches import KeptGraphs, Progress, in_batches
from nvae_tf.models import NVAE
from nvae_tf.models.latents import check_latents
from nvae_tf.models.noise import image_seeds
from nvae_tf.models.temperatures import Temperature, temperatures_of_groups
from nvae_tf.replicas import divided, joined


def generate_images(
    model: NVAE,
    count: int,
    temperature: Temperature = 1.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> np.ndarray:
    """Mean images of latents from the prior; image i depends on the seed and i alone.

    Args:
      model: used with running batch-norm statistics.
      count: number of images.
      temperature: multiplies the priors' sigma; below 1 images are more alike. A number, or a list with one a scale or
        one a group, see `nvae_tf.models.temperatures`.
      seed: of the latents.
      progress: is called after each batch with the number of images done.

    Returns:
      float32 `[count, height, width, channels]` in [0, 1].

    Raises:
      ValueError: `count` or a temperature is not greater than 0, or there are too few or too many temperatures.
    """
    return GENERATORS.of(model).generate(count, temperature, seed, progress)


def decode_images(
    model: NVAE,
    latents: Sequence[np.ndarray],
    temperature: Temperature | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> np.ndarray:
    """Mean images `[count, height, width, channels]` of latents as `encode_images` gives them, or of the top groups'.

    Args:
      model: used with running batch-norm statistics.
      latents: of all groups or the top groups, at least one, `[count, height, width, latent channels]` each.
      temperature: of the groups that have no latent, see `generate_images`; without it all must have one.
      seed: of their draws.
      progress: is called after each batch with the number of images done.

    Raises:
      ValueError: see `generate_images`, or there are no latents.
    """
    latents = check_latents(latents, model.plan, may_lack_groups=temperature is not None)
    generator = GENERATORS.of(model)
    return generator.generate(len(latents[0]), 1.0 if temperature is None else temperature, seed, progress, latents)


class ImageGenerator:
    """What `generate_images` does, for a model whose weights change in between; each graph is traced once.

    There is one graph for every number of groups whose latents are given.

    Args:
      model: used with running batch-norm statistics.
      strategy: where the model's replicas are, all in this process; each takes batches of its own.
    """

    def __init__(self, model: NVAE, strategy: tf.distribute.Strategy | None = None):
        self._model = model
        self._strategy = strategy or tf.distribute.get_strategy()
        self._mean_images = tf.function(self._images_of, autograph=False)

    def generate(
        self,
        count: int,
        temperature: Temperature = 1.0,
        seed: int = 0,
        progress: Progress | None = None,
        latents: Sequence[np.ndarray] = (),
    ) -> np.ndarray:
        """See `generate_images`."""
        if count < 1:
            raise ValueError(f"count = {count}: must be at least 1")
        return self.from_seeds(image_seeds(seed, count), temperature, latents, progress)

    def from_seeds(
        self,
        seeds: tf.Tensor,
        temperature: Temperature = 1.0,
        latents: Sequence[np.ndarray] = (),
        progress: Progress | None = None,
    ) -> np.ndarray:
        """Mean images `[count, height, width, channels]` for one seed an image `[count, 2]`, see `generate_images`."""
        latents = _checked(latents, self._model) if len(latents) else []
        if latents and len(latents[0]) != len(seeds):
            raise ValueError(f"latents are of {len(latents[0])} images, but {len(seeds)} are asked for")
        temperatures = tf.constant(temperatures_of_groups(temperature, self._model.plan), tf.float32)

        def images_of(*rows: tf.Tensor) -> list[tf.Tensor]:
            return [joined(self._strategy, self._mean_images(temperatures, divided(self._strategy, rows)))]

        batches = self._strategy.num_replicas_in_sync
        (images,) = in_batches(images_of, [np.asarray(seeds), *latents], progress, batches)
        return images

    def _images_of(self, temperatures: tf.Tensor, rows: Any) -> Any:
        """The images that every replica makes of its rows: seeds and given latents."""

        def of_replica(seeds: tf.Tensor, *latents: tf.Tensor) -> tf.Tensor:
            return self._model.generate_from_seeds(seeds, tf.unstack(temperatures), latents).mean()

        return self._strategy.run(of_replica, rows)


# Of models that came to the functions here: a second call need not trace its graph again.
GENERATORS = KeptGraphs(ImageGenerator)


def _checked(latents: Sequence[np.ndarray], model: NVAE) -> list[np.ndarray]:
    return [latent.numpy() for latent in check_latents(latents, model.plan, may_lack_groups=True)]
