"""The parameter counts of the published architectures, counted in graphs that hold no arrays."""

import dataclasses
import math

import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf import presets
from nvae_tf.config import experiment_config


def model_config(name):
    return experiment_config(presets.preset(name)).model


def count_of(config):
    with tf.Graph().as_default():
        weights = nvae_tf.NVAE(config).trainable_weights
    return sum(math.prod(weight.shape) for weight in weights)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("mnist", 33_363_134),
        ("cifar10", 130_852_480),
        pytest.param("celeba64", 153_281_364, marks=pytest.mark.slow),
        pytest.param("imagenet32", 268_509_444, marks=pytest.mark.slow),
        pytest.param("celebahq256", 330_798_664, marks=pytest.mark.slow),
    ],
)
def test_parameter_counts(name, count):
    assert count_of(model_config(name)) == count


def test_ffhq_has_the_architecture_of_celeba_hq():
    assert model_config("ffhq256") == model_config("celebahq256")


def test_counting_makes_no_arrays():
    # Four terabytes of weights.
    huge = dataclasses.replace(model_config("cifar10"), num_channels_encoder=8192, num_channels_decoder=8192)
    assert count_of(dataclasses.replace(huge, num_groups_per_scale=200)) > 10**12
