"""Small models for all tests of this folder: building one takes half a second, tracing a step many more."""

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from tests.tiny_model import tiny_config

# Padded on all sides.
PADDED = dict(image_height=6, image_width=6, padded_height=8, padded_width=8)


def padded_config(**changes):
    return tiny_config(**PADDED | changes)


def images_of(config, count=4):
    """Images of the right size and number of levels."""
    shape = (count, config.image_height, config.image_width, config.image_channels)
    levels = 2**config.num_bits
    return np.float32(np.random.default_rng(0).integers(0, levels, shape) / (levels - 1))


def shaken(model):
    """The model, none of whose weights, running statistics included, is as it was initialized."""
    generator = np.random.default_rng(1)
    for weight in model.weights:
        if weight.dtype == "float32" and len(weight.shape):
            weight.assign(weight + 0.1 * generator.uniform(size=weight.shape))
    return model


class Tiny:
    """What the tests need to make models; a fixture, because tests are no package to import from."""

    config = staticmethod(padded_config)
    images_of = staticmethod(images_of)
    shaken = staticmethod(shaken)

    @staticmethod
    def model(seed=0, objective=None, **changes):
        return nvae_tf.NVAE(padded_config(**changes), objective, seed)


@pytest.fixture(scope="session")
def tiny():
    return Tiny


@pytest.fixture(scope="session")
def model(tiny):
    """Three groups on two scales, with flows; not to be trained or changed."""
    return tiny.shaken(tiny.model(num_groups_per_scale=2, min_groups_per_scale=1, adaptive_groups=True, num_flows=1))


@pytest.fixture(scope="session")
def images(tiny):
    return tiny.images_of(tiny.config())


@pytest.fixture(scope="module")
def without_rewriting():
    """As in training on a CPU (`nvae_tf.training.strategy`): the first step of a graph comes sooner."""
    before = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})
