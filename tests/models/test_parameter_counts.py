"""The parameter counts of the published architectures, counted in graphs that hold no arrays."""

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
