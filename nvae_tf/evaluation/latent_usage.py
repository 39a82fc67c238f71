"""How many of a model's latents tell anything of an image."""

from collections.abc import Sequence

import numpy as np

# Nats of an image and position.
ACTIVE_FROM = 0.01


def active_units(
    kl_per_channel_nats: np.ndarray, latent_shapes: Sequence[tuple[int, int, int]], active_from: float = ACTIVE_FROM
) -> np.ndarray:
    """The number of active units of every group.

    A unit is a latent channel of a group. It is active where the KL of posterior and prior, given latents of the groups
    above that are drawn from the posterior, exceeds `active_from` in the mean over images and positions. So Vahdat &
    Kautz (2020) count the active channels of NVAE, with and without residual distributions, from 0.1 nats on. 0.01
    also finds those that say little at a position and much in an image, as in pictures of few bits; channels that the
    model has given up lie far below it.

    Burda et al. (2016), for one group, ask for a variance over images of the posterior's mean above 0.01, which alone
    is a KL of 0.005. In a hierarchy that says little: below the top group the mean moves with the draws above,
    and the prior's with it, also where the posterior adds nothing.

    Args:
      kl_per_channel_nats: `[groups, latent channels]`, means over images, summed over height and width, see
        `Likelihood`; with flows, which mix channels, a channel's part of the estimate.
      latent_shapes: `(height, width, latent channels)` of every group, in the same order.
      active_from: nats of an image and position above which a unit is active.

    Returns:
      int `[groups]`, each from 0 to the number of latent channels.
    """
    positions = np.array([height * width for height, width, _ in latent_shapes])
    return np.sum(kl_per_channel_nats / positions[:, np.newaxis] > active_from, axis=1)
