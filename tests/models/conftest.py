"""Small models for all tests of this folder: building one takes half a second, tracing a step many more."""

import pytest
import tensorflow as tf

from tests.tiny_model import PADDED, images_of, shaken, tiny_config, tiny_model


@pytest.fixture(scope="session")
def model():
    """Three groups on two scales, with flows; not to be trained or changed."""
    groups = dict(num_groups_per_scale=2, min_groups_per_scale=1, adaptive_groups=True, num_flows=1)
    return shaken(tiny_model(**PADDED, **groups, seed=0))


@pytest.fixture(scope="session")
def images():
    return images_of(tiny_config(**PADDED))


@pytest.fixture(scope="module")
def without_rewriting():
    """As in training on a CPU (`nvae_tf.training.strategy`): the first step of a graph comes sooner."""
    before = tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})
