"""Which latents of a model carry information about an image: active units."""

from collections.abc import Sequence

import numpy as np

# Nats per image and position.
ACTIVE_FROM = 0.01


def active_units(kl_per_channel_nats: np.ndarray, latent_shapes: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """The number of active units of every group, int `[groups]`, from the KL `[groups, latent channels]` of images.

    A unit is a latent channel, active where its KL of posterior and prior exceeds 0.01 nats in the mean over images and
    positions. Vahdat & Kautz (2020) count from 0.1 nats on.
    """
    positions = np.array([height * width for height, width, _ in latent_shapes])
    return np.sum(kl_per_channel_nats / positions[:, np.newaxis] > ACTIVE_FROM, axis=1)
