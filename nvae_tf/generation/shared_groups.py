"""Samples that have the latents of their upper groups in common: what differs is what the groups below decide."""

import numpy as np
import tensorflow as tf

from nvae_tf.models import NVAE
from nvae_tf.models.latents import PriorSource
from nvae_tf.models.noise import image_seeds, noise_per_image
from nvae_tf.models.temperatures import Temperature, temperatures_of_groups
from nvae_tf.setting_checks import check


def samples_sharing_groups(
    model: NVAE, shared_groups: int, count: int, temperature: Temperature = 1.0, seed: int = 0
) -> np.ndarray:
    """Mean images `[count, height, width, channels]` in [0, 1] of latents from the prior.

    The first is the first of `model.generate` with the same seed and temperature, the others have its latents in the
    upper groups and their own below (Vahdat & Kautz 2020, figure 5 does so by scale).

    Raises:
      ValueError: `shared_groups` is not one of 0 ... groups, or see `model.generate`.
    """
    groups = model.plan.num_groups
    check(0 <= shared_groups <= groups, f"shared_groups = {shared_groups}: must be from 0 to {groups}")
    check(count >= 1, f"count = {count}: must be at least 1")
    noise = noise_per_image(model.plan.latent_shapes(), image_seeds(seed, count))
    mixed = [tf.repeat(eps[:1], count, axis=0) if group < shared_groups else eps for group, eps in enumerate(noise)]
    temperatures = temperatures_of_groups(temperature, model.plan)
    sources = [PriorSource(*of_group) for of_group in zip(mixed, temperatures, strict=True)]
    return model.top_down_pass(sources, count).likelihood.mean().numpy()


def numbers_of_shared_groups(groups: int) -> list[int]:
    """None, 1, 2, 4 ... and all but the last."""
    powers = [2**power for power in range(groups.bit_length()) if 2**power < groups - 1]
    return sorted({0, *powers, groups - 1})
