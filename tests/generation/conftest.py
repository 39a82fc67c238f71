"""A tiny model of two scales with two groups each, and images for it."""

import numpy as np
import pytest

import nvae_tf
from nvae_tf.generation.sampling import encode_images
from tests.tiny_model import tiny_config

SEED = 3


@pytest.fixture(scope="session")
def four_groups():
    return nvae_tf.NVAE(tiny_config(num_groups_per_scale=2))


@pytest.fixture(scope="session")
def binary_images():
    """More than one batch, the last not full."""
    return np.random.default_rng(0).integers(0, 2, (21, 4, 4, 1)).astype(np.float32)


@pytest.fixture(scope="session")
def latents(four_groups, binary_images):
    return encode_images(four_groups, binary_images, SEED)
