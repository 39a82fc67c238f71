"""The recorded files, and small models whose weights differ in their values."""

import argparse
import functools
import json
import sys

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.published.tensor_names import published_array, published_tensors
from tests import FIXTURES
from tests.tiny_model import tiny_config

SMALL = dict(image_height=8, image_width=8, num_groups_per_scale=2, num_flows=1)
SMALL |= dict(num_channels_encoder=8, num_channels_decoder=8)
SMALL |= dict(num_preprocess_blocks=1, num_preprocess_cells=2, num_postprocess_blocks=1, num_postprocess_cells=2)


def path(name):
    return FIXTURES / name


def recorded(name):
    """Settings and state of a recorded `.npz` file."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        state = {key.removeprefix("state/"): file[key] for key in file if key.startswith("state/")}
        return json.loads(str(file["config_json"])), state


def read(path):
    """All of a `.pt` file, by torch itself: a path, or the name of a recorded file."""
    import torch

    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(FIXTURES / path, weights_only=True)


def saved(content, path, **settings):
    import torch

    torch.save(content, path, **settings)
    return path


def config(**changes):
    return tiny_config(**SMALL | changes)


def model(**changes):
    return nvae_tf.NVAE(config(**changes))


@functools.cache
def without_arrays(config):
    """A model in a graph of its own: names and shapes, but no numbers."""
    with tf.Graph().as_default():
        return nvae_tf.NVAE(config)


def random_state(model):
    generator = np.random.default_rng(9)
    return {name: generator.normal(size=value.shape) for name, value in state_of(model).items()}


def state_of(model):
    tensors = published_tensors(model)
    return {tensor.names[-1]: np.array(published_array(tensor, tensor.variable.numpy())) for tensor in tensors}


@pytest.fixture(scope="session")
def published():
    """The functions of this module."""
    return sys.modules[__name__]
