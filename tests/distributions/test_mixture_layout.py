"""Which number of the network's output means what."""

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.distributions.mixture_layout import (
    channels_of_width,
    num_mixture_parameters,
    split_mixture_parameters,
)


@pytest.mark.parametrize(("channels", "per_component"), [(1, 3), (2, 6), (3, 10), (4, 15)])
def test_width_and_its_inverse(channels, per_component):
    assert num_mixture_parameters(channels, 7) == 7 * per_component
    assert channels_of_width(7 * per_component, 7) == channels


def test_published_rgb_layout():
    """M logits; then for each channel M means, M log-scales, M coefficients."""
    mixtures = 2
    parameters = np.arange(20, dtype=np.float32)[np.newaxis] / 20
    mixture = split_mixture_parameters(parameters, 3, mixtures)
    np.testing.assert_allclose(mixture.mixture_logits[0] * 20, [0, 1], rtol=1e-6)
    np.testing.assert_allclose(mixture.means[0] * 20, [[2, 3], [8, 9], [14, 15]], rtol=1e-6)
    np.testing.assert_allclose(mixture.log_scales[0] * 20, [[4, 5], [10, 11], [16, 17]], rtol=1e-6)
    coefficients = np.arctanh(mixture.coefficients[0]) * 20
    np.testing.assert_allclose(coefficients, [[6, 7], [12, 13], [18, 19]], rtol=1e-5)


@pytest.mark.parametrize(
    ("channels", "means", "log_scales", "coefficients"),
    [
        (1, [[1]], [[2]], np.zeros([0, 1])),
        (2, [[1], [3]], [[2], [4]], [[5]]),
        (4, [[1], [3], [5], [7]], [[2], [4], [6], [8]], [[9], [10], [11], [12], [13], [14]]),
    ],
)
def test_other_channel_counts_keep_coefficients_last(channels, means, log_scales, coefficients):
    width = num_mixture_parameters(channels, 1)
    mixture = split_mixture_parameters(np.arange(width, dtype=np.float32) / 15, channels, 1)
    np.testing.assert_allclose(mixture.means * 15, means, rtol=1e-5)
    np.testing.assert_allclose(mixture.log_scales * 15, log_scales, rtol=1e-5)
    np.testing.assert_allclose(np.arctanh(mixture.coefficients) * 15, coefficients, rtol=1e-5)


def test_log_scales_have_a_floor():
    mixture = split_mixture_parameters(tf.constant([0.0, 0.0, -50.0]), 1, 1)
    np.testing.assert_array_equal(mixture.log_scales, [[-7.0]])


def test_static_shape_survives_an_unknown_batch():
    @tf.function(input_signature=[tf.TensorSpec([None, 8, 8, 50], tf.bfloat16)])
    def split(parameters):
        mixture = split_mixture_parameters(parameters, 3, 5)
        assert mixture.means.shape.as_list() == [None, 8, 8, 3, 5]
        assert mixture.means.dtype == tf.float32
        return mixture

    assert split(tf.zeros([2, 8, 8, 50], tf.bfloat16)).coefficients.shape == [2, 8, 8, 3, 5]


def test_errors_say_what_is_wanted():
    with pytest.raises(ValueError, match="10 logistics over 3 channels need 100 parameters a pixel"):
        split_mixture_parameters(tf.zeros([2, 30]), 3, 10)
    with pytest.raises(ValueError, match="1 to 4 image channels, got 5"):
        split_mixture_parameters(tf.zeros([2, 30]), 5, 1)
    with pytest.raises(ValueError, match="10 logistics has 50 parameters.* 30, 60, 100, 150"):
        channels_of_width(50, 10)
