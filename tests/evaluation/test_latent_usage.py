import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.evaluation.latent_usage import active_units
from nvae_tf.evaluation.likelihood import LikelihoodEvaluator
from nvae_tf.models.latents import active_channels
from tests.tiny_model import tiny_config


@pytest.mark.slow
def test_units_that_differ_from_the_prior_are_counted_in_their_group():
    # Four groups, two of 2x2 and two of 4x4 positions.
    model = nvae_tf.NVAE(tiny_config(num_groups_per_scale=2, num_latent_per_group=3))
    means, log_scales = np.zeros((4, 3)), np.zeros((4, 3))
    # The top group's prior has sigma 1.01: 0.0196 nats a position, and 0.0049.
    means[0] = 0.2, 0.1, 0.0
    log_scales[2] = -1.0
    means[3, 1], log_scales[3, 2] = 3.0, 0.5
    # The posterior of every image is the prior with this added.
    added = np.concatenate([means, log_scales], axis=1)
    for scale, of_scale in zip(model.top_down.scales, (added[:2], added[2:]), strict=True):
        scale.posteriors.kernel.assign(tf.zeros_like(scale.posteriors.kernel))
        scale.posteriors.bias.assign(of_scale)
    images = tf.constant(np.random.RandomState(0).randint(0, 2, (10, 4, 4, 1)), tf.float32)
    likelihood = LikelihoodEvaluator(model, 4).evaluate([images[:4], images[4:8], images[8:]])
    assert active_units(likelihood.kl_per_channel_nats, model.plan.latent_shapes()).tolist() == [1, 0, 3, 2]
    for fraction, are_same in ((1.0, True), (0.1, False)):
        kept = active_channels(likelihood.kl_per_channel_nats, fraction)
        found = LikelihoodEvaluator(model, 4, kept_channels=kept).evaluate([images[:4]]).reconstruction
        assert np.allclose(found, likelihood.reconstruction[:4], rtol=1e-5) == are_same


def test_it_is_the_mean_over_positions_that_counts():
    shapes = [(2, 2, 2), (4, 4, 2)]
    kl = np.array([[0.08, 0.03], [0.15, 0.17]])
    assert active_units(kl, shapes).tolist() == [1, 1]
    assert active_units(2.0 * kl, shapes).tolist() == [2, 2]
    assert active_units(0.1 * kl, shapes).tolist() == [0, 0]
