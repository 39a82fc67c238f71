"""What a model makes of pictures: reconstructions, and variants that share only the latents of the top groups."""

import numpy as np
import tensorflow as tf

from nvae_tf.generation.encoding import encode_images
from nvae_tf.generation.fixed_batches import Progress
from nvae_tf.generation.sampling import GENERATORS
from nvae_tf.latent_plan import LatentPlan
from nvae_tf.models import NVAE
from nvae_tf.models.noise import image_seeds
from nvae_tf.models.temperatures import Temperature


def reconstruct_images(
    model: NVAE,
    images: np.ndarray,
    kept_groups: int | None = None,
    temperature: Temperature = 1.0,
    seed: int = 0,
    mean: bool = False,
    progress: Progress | None = None,
) -> np.ndarray:
    """Mean images of latents of which the top groups' come from pictures and the rest from the prior.

    Args:
      model: used with running batch-norm statistics.
      images: `[count, height, width, channels]` in [0, 1].
      kept_groups: number of groups, from the top, whose latents are the picture's; None for all. With 0 the pictures
        play no part: these are the images of `generate_images`.
      temperature: of the other groups' priors, see `generate_images`.
      seed: of all draws; those of image i depend on the seed and i.
      mean: whether the kept latents are the posterior's means, not draws.
      progress: is called after each batch with the number of images done.

    Returns:
      float32 `[count, height, width, channels]` in [0, 1].

    Raises:
      ValueError: the images do not fit the model, or a number is out of range.
    """
    kept_groups = checked_kept_groups(kept_groups, model.plan)
    latents = encode_images(model, images, seed, mean)[:kept_groups]
    return GENERATORS.of(model).generate(len(images), temperature, seed, progress, latents)


def vary_images(
    model: NVAE,
    images: np.ndarray,
    kept_groups: int,
    count: int,
    temperature: Temperature = 1.0,
    seed: int = 0,
    mean: bool = False,
    progress: Progress | None = None,
) -> np.ndarray:
    """Variants of pictures: the top groups' latents are the same for all variants of a picture, the rest differ.

    Variant j of picture i depends on the seed, i and j, not on `count`. With all groups kept there is nothing to
    draw, and every variant is the reconstruction.

    Args:
      model: used with running batch-norm statistics.
      images: `[images, height, width, channels]` in [0, 1].
      kept_groups: number of groups, from the top, whose latents are the picture's; from 0, plain samples, to all.
      count: number of variants of each picture.
      temperature: of the other groups' priors, see `generate_images`.
      seed: of all draws.
      mean: whether the kept latents are the posterior's means, not draws.
      progress: is called after each batch with the number of variants done.

    Returns:
      float32 `[images, count, height, width, channels]` in [0, 1].

    Raises:
      ValueError: the images do not fit the model, or a number is out of range.
    """
    kept_groups = checked_kept_groups(kept_groups, model.plan)
    if count < 1:
        raise ValueError(f"count = {count}: must be at least 1")
    if kept_groups == model.plan.num_groups:
        reconstructions = reconstruct_images(model, images, kept_groups, temperature, seed, mean, progress)
        return np.repeat(reconstructions[:, np.newaxis], count, axis=1)
    latents = encode_images(model, images, seed, mean)[:kept_groups]
    # All pictures' first variants, then all second ones: so more variants leave the earlier ones in their places.
    seeds = tf.concat([_seeds_of_variant(seed, len(images), number) for number in range(count)], axis=0)
    tiled = [np.tile(latent, (count, 1, 1, 1)) for latent in latents]
    variants = GENERATORS.of(model).from_seeds(seeds, temperature, tiled, progress)
    return variants.reshape(count, len(images), *variants.shape[1:]).swapaxes(0, 1)


def _seeds_of_variant(seed: int, images: int, number: int) -> tf.Tensor:
    """Seeds `[images, 2]` of the variant with this number, other ones than the pictures' own."""
    return tf.map_fn(
        lambda pair: tf.random.experimental.stateless_fold_in(pair, number, alg="philox"), image_seeds(seed, images)
    )


def checked_kept_groups(kept_groups: int | None, plan: LatentPlan) -> int:
    """How many groups are kept; all for None.

    Raises:
      ValueError: the model has not so many.
    """
    if kept_groups is None:
        return plan.num_groups
    if not 0 <= kept_groups <= plan.num_groups:
        raise ValueError(
            f"kept_groups = {kept_groups}: this model has {plan.num_groups} latent groups, so it must be from 0 to "
            f"{plan.num_groups}; 1 keeps the top group alone"
        )
    return kept_groups
