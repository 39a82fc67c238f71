"""Which latents of a model carry information about an image: active units."""

from collections.abc import Sequence

import numpy as np

# Nats per image and position.
ACTIVE_FROM = 0.01


def active_units(kl_per_channel_nats: np.ndarray, latent_shapes: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """The number of active units of every group, int `[groups]`.

    A unit is a latent channel of a group, active where its KL of posterior and prior exceeds 0.01 nats in the mean over
    images and positions. Vahdat & Kautz (2020) count from 0.1 nats on; units between both say little at a position and
    much in an image. Arguments: `[groups, latent channels]`, see `Likelihood`, and `(height, width, channels)` of every
    group. With flows, which mix channels, the KL of a channel is its part of the estimate.
    """
    positions = np.array([height * width for height, width, _ in latent_shapes])
    return np.sum(kl_per_channel_nats / positions[:, np.newaxis] > ACTIVE_FROM, axis=1)
