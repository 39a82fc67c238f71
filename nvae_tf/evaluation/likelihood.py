"""What is measured of the likelihood of a set of images (Vahdat & Kautz 2020, section 4.1)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Likelihood(NamedTuple):
    """Bounds on the likelihood of images and their parts, image by image, in nats.

    Attributes:
      reconstruction: -log p(x | z) of one sample from the posterior, `[images]`.
      kl: KL of posterior and prior, `[images, groups, latent channels]`, top group first, summed over height and width;
        without flows analytic, with flows of the same sample.
      numbers_of_samples: the K of every importance-weighted bound, ascending; empty where there is none.
      importance_weighted: those bounds, `[images, number of Ks]`.
      effective_samples: of the largest K, `[images]`; zeros where there is none.
    """

    reconstruction: np.ndarray
    kl: np.ndarray
    numbers_of_samples: tuple[int, ...]
    importance_weighted: np.ndarray
    effective_samples: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence["Likelihood"]) -> "Likelihood":
        """Of the images of all parts, in their order.

        Raises:
          ValueError: there is no image.
        """
        if not parts:
            raise ValueError("there are no images to evaluate")
        arrays = (np.concatenate(columns) for columns in zip(*(part.arrays() for part in parts), strict=True))
        reconstruction, kl, importance_weighted, effective_samples = arrays
        return cls(reconstruction, kl, parts[0].numbers_of_samples, importance_weighted, effective_samples)

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Those with a row an image."""
        return self.reconstruction, self.kl, self.importance_weighted, self.effective_samples

    def is_finite(self) -> bool:
        """Whether all numbers are; if not, the model has diverged."""
        return all(bool(np.isfinite(array).all()) for array in self.arrays())

    @property
    def num_images(self) -> int:
        """How many images there are."""
        return len(self.reconstruction)

    @property
    def nelbo(self) -> np.ndarray:
        """The negative evidence lower bound of every image, reconstruction and KL."""
        return self.reconstruction + self.kl.sum(axis=(1, 2))

    @property
    def reconstruction_nats(self) -> float:
        """The mean over the images."""
        return _mean(self.reconstruction)

    @property
    def kl_per_channel_nats(self) -> np.ndarray:
        """The mean KL over the images, `[groups, latent channels]`."""
        return self.kl.mean(axis=0, dtype=np.float64)

    @property
    def kl_per_group_nats(self) -> np.ndarray:
        """The mean KL summed over the channels, `[groups]`."""
        return self.kl_per_channel_nats.sum(axis=1)

    @property
    def kl_nats(self) -> float:
        """The mean KL summed over the groups."""
        return float(self.kl_per_channel_nats.sum())

    @property
    def nelbo_nats(self) -> float:
        """The mean negative evidence lower bound."""
        return self.reconstruction_nats + self.kl_nats

    @property
    def importance_weighted_nats(self) -> float | None:
        """The mean importance-weighted bound with the most samples; None where there is none."""
        return _mean(self.importance_weighted[:, -1]) if self.numbers_of_samples else None


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64))
