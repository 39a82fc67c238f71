"""The recorded files, and small models whose weights differ in their values."""

import argparse
import functools
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.config import ModelConfig
from nvae_tf.published.names import published_tensors
from nvae_tf.published.weights import published_array

FIXTURES = pathlib.Path(__file__).resolve().parent / "fixtures"

TINY = dict(
    image_height=8,
    image_width=8,
    image_channels=1,
    num_bits=1,
    likelihood="bernoulli",
    num_latent_scales=2,
    num_groups_per_scale=2,
    num_latent_per_group=2,
    num_channels_encoder=8,
    num_channels_decoder=8,
    num_preprocess_blocks=1,
    num_preprocess_cells=2,
    num_postprocess_blocks=1,
    num_postprocess_cells=2,
    num_cells_per_group_encoder=1,
    num_cells_per_group_decoder=1,
    num_flows=1,
)


class Published:
    """Recorded files and small models in the published layout; a fixture, because tests are no package."""

    NAMES = ("mnist_tiny", "cifar10_tiny", "celeba64_tiny", "normal_decoder_tiny")

    @staticmethod
    def path(name):
        return FIXTURES / name

    @staticmethod
    def recorded(name):
        """Settings and state of a recorded `.npz` file."""
        with np.load(FIXTURES / f"{name}.npz") as file:
            state = {key[len("state/") :]: file[key] for key in file if key.startswith("state/")}
            return json.loads(str(file["config_json"])), state

    @staticmethod
    def read(path):
        """All of a `.pt` file, by torch itself: a path, or the name of a recorded file."""
        import torch

        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(FIXTURES / path, weights_only=True)

    @staticmethod
    def saved(content, path, **settings):
        """Writes a `.pt` file and returns its path."""
        import torch

        torch.save(content, path, **settings)
        return path

    @staticmethod
    def config(**changes):
        return ModelConfig(**{**TINY, **changes})

    @staticmethod
    def model(**changes):
        return nvae_tf.NVAE(Published.config(**changes))

    @staticmethod
    @functools.cache
    def without_arrays(config):
        """A model in a graph of its own: names and shapes, but no numbers."""
        with tf.Graph().as_default():
            return nvae_tf.NVAE(config)

    @staticmethod
    def random_state(model):
        """A state for a model, every number of it drawn at random."""
        generator = np.random.default_rng(9)
        return {name: generator.normal(size=value.shape) for name, value in Published.state_of(model).items()}

    @staticmethod
    def state_of(model):
        """What a model holds, in the published layout."""
        return {
            tensor.names[-1]: np.array(published_array(tensor, tensor.variable.numpy()))
            for tensor in published_tensors(model)
        }


@pytest.fixture(scope="session")
def published():
    return Published
