"""What a model makes of images: reconstructions, and variants that share only the latents of the top groups."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from nvae_tf.config import ExperimentConfig, check
from nvae_tf.data.pipeline import evaluation_batches, iterate
from nvae_tf.data.sources import load_split
from nvae_tf.generation.sampling import Progress, encode_images, generator_of
from nvae_tf.latent_plan import LatentPlan
from nvae_tf.models import NVAE
from nvae_tf.models.latents import Temperature, image_seeds
from nvae_tf.progress import StatusLine
from nvae_tf.training.loading import spec_to_read

_BATCH_SIZE = 64


def reconstruct_images(
    model: NVAE,
    images: np.ndarray,
    kept_groups: int | None = None,
    temperature: Temperature = 1.0,
    seed: int = 0,
    mean: bool = False,
    progress: Progress | None = None,
) -> np.ndarray:
    """Mean images of latents of which the top groups' come from images and the rest from the prior.

    Images are `[count, height, width, channels]` in [0, 1]. `kept_groups` is the number of groups, from the top, whose
    latents are the image's; None for all. `temperature` is that of the other groups' priors, see `generate_images`;
    `seed`, `mean` and `progress` as for `encode_images`.
    """
    kept_groups = checked_kept_groups(kept_groups, model.plan)
    latents = encode_images(model, images, seed, mean)[:kept_groups]
    return generator_of(model).generate(len(images), temperature, seed, progress, latents)


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
    """Variants of images, with the same latents of the top groups and draws of their own in the others.

    Variant j of image i depends on the seed, i and j, not on `count`. With all groups kept every variant is the
    reconstruction. Arguments as for `reconstruct_images`; returns float32 `[images, count, height, width, channels]`.
    """
    kept_groups = checked_kept_groups(kept_groups, model.plan)
    check(count >= 1, f"count = {count}: must be at least 1")
    if kept_groups == model.plan.num_groups:
        reconstructions = reconstruct_images(model, images, kept_groups, temperature, seed, mean, progress)
        return np.repeat(reconstructions[:, np.newaxis], count, axis=1)
    latents = encode_images(model, images, seed, mean)[:kept_groups]
    of_images = image_seeds(seed, len(images))

    def seeds(number: int) -> tf.Tensor:
        return tf.map_fn(lambda pair: tf.random.experimental.stateless_fold_in(pair, number, alg="philox"), of_images)

    # All images' first variants, then all second ones: so more variants leave the earlier ones in their places.
    of_variants = tf.concat([seeds(number) for number in range(count)], axis=0)
    tiled = [np.tile(latent, (count, 1, 1, 1)) for latent in latents]
    variants = generator_of(model).from_seeds(of_variants, temperature, tiled, progress)
    return variants.reshape(count, len(images), *variants.shape[1:]).swapaxes(0, 1)


def checked_kept_groups(kept_groups: int | None, plan: LatentPlan) -> int:
    """How many groups are kept, all for None; ValueError where the model has fewer."""
    groups = plan.num_groups
    kept_groups = groups if kept_groups is None else kept_groups
    check(
        0 <= kept_groups <= groups,
        f"kept_groups = {kept_groups}: this model has {groups} latent groups, so it must be from 0 to {groups}; 1 "
        "keeps the top group alone",
    )
    return kept_groups


def data_set_images(
    config: ExperimentConfig,
    split: str = "test",
    indices: Sequence[int] | None = None,
    count: int | None = None,
    at_most: int | None = None,
    seed: int = 0,
    data_path: str | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Images of a run's data set as the model sees them, and a name for each.

    They are those of the numbers `indices`, or the first `count`, or else `at_most`. `seed` is that of the
    binarization; `data_path` where the images are, if no longer at the run's. ValueError where there are fewer images,
    and the errors of `load_split`.
    """
    spec = spec_to_read(config, data_path)
    source = load_split(spec, split, StatusLine().report())
    count = count or min(at_most or source.count, source.count)
    part = f"the {split} part of {spec.name}"
    check(count <= source.count, f"--count={count}: {part} has only {source.count} images")
    for index in indices or ():
        numbers = f"{part} has {source.count} images, numbers 0 to {source.count - 1}"
        check(index < source.count, f"--indices={index}: {numbers}")
    if indices is None:
        indices = range(count)
        batches = evaluation_batches(source, spec, _BATCH_SIZE, seed, range(-(-count // _BATCH_SIZE)))
    else:
        batches = evaluation_batches(source, spec, 1, seed, indices)
    images = np.concatenate([batch.numpy() for batch in iterate(batches, source)])[: len(indices)]
    return images, [f"{split}_{index:05d}" for index in indices]
