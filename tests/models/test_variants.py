import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.models.passes import inference_pass
from nvae_tf.optimization import NVAEAdamax
from tests.tiny_model import PADDED, images_of, shaken, tiny_model, values

PLAIN = dict(padded_height=None, padded_width=None, image_height=4, image_width=4)
COLOR = dict(**PLAIN, image_channels=3, likelihood="logistic_mixture", num_mixtures=2)
# Settings that have nothing to do with each other share a model: each costs two seconds.
VARIANTS = {
    "logistic mixture, exact edges; no squeeze-excite; narrow encoder": COLOR
    | dict(num_bits=5, exact_edges=True, squeeze_excite=False, num_channels_encoder=2, num_channels_decoder=6),
    "normal; absolute posteriors; narrow decoder": COLOR
    | dict(
        num_bits=8, likelihood="normal", residual_distributions=False, num_channels_encoder=6, num_channels_decoder=2
    ),
    "adaptive groups; two flows": dict(
        num_latent_scales=3, num_groups_per_scale=2, adaptive_groups=True, min_groups_per_scale=2, num_flows=2
    ),
    "blocks and cells": dict(
        **dict(num_preprocess_blocks=2, num_preprocess_cells=2, num_cells_per_group_encoder=2),
        **dict(num_postprocess_blocks=2, num_postprocess_cells=1, num_cells_per_group_decoder=3),
    ),
    "oblong; dilated; single channels": PLAIN
    | dict(image_width=6, cell_set="res53_mbconv", num_channels_encoder=1, num_channels_decoder=1),
    "one group with flows": dict(num_latent_scales=1, num_flows=1, num_preprocess_blocks=1, num_postprocess_blocks=1),
    # The cells of all sets are tested in tests/layers; these differ in what a model does with them.
    **{name: dict(cell_set=name, num_channels_encoder=8, num_channels_decoder=8) for name in ("res_elu", "mbconv_den")},
}


# Whether a model can be built and named at all is seen in tests/published/test_names.py, too.
QUICK = ("oblong; dilated; single channels", "one group with flows")


@pytest.mark.parametrize("variant", [pytest.param(v, marks=[pytest.mark.slow] * (v not in QUICK)) for v in VARIANTS])
def test_a_variant_trains_scores_and_generates(variant):
    model = tiny_model(NVAEAdamax(1e-3, l2=0.0), **PADDED | VARIANTS[variant])
    images = images_of(model.config, count=3)
    before = values(model.trainable_weights)
    report = model.train_step(tf.constant(images))
    assert set(report) == {"loss", "reconstruction", "kl", "gradient_norm", "skipped_steps"}
    assert all(np.isfinite(value) for value in report.values())
    assert all(np.all(np.isfinite(weight)) for weight in model.weights)
    # Every kernel has its part in the loss; a bias right before a batch norm has none.
    for weight, value in zip(model.trainable_weights, before, strict=True):
        assert weight.name not in ("kernel", "gamma", "start") or not value.size or np.any(weight.numpy() != value)
    assert np.all(np.isfinite(model.score(images)))
    generated = model.generate(2)
    assert tuple(generated.shape) == (2, *images.shape[1:])
    assert np.min(generated) >= 0.0 and np.max(generated) <= 1.0
    assert [tuple(latent.shape[1:]) for latent in model.encode(images)] == list(model.plan.latent_shapes())


def test_posteriors_are_relative_to_the_prior_or_absolute():
    relative, absolute = (shaken(tiny_model(residual_distributions=residual, seed=0)) for residual in (True, False))
    noise = [tf.zeros((4, *shape)) for shape in relative.plan.latent_shapes()]
    # The prior of the top group is zeros, so that the other group has the same state.
    (_, one), (_, other) = (
        inference_pass(each, images_of(each.config), noise).latents for each in (relative, absolute)
    )
    prior, posterior, alone = (np.arctanh(normal.loc / 5.0) for normal in (one.prior, one.posterior, other.posterior))
    np.testing.assert_allclose(posterior, prior + alone, rtol=1e-4, atol=1e-5)
    assert np.abs(prior).max() > 1e-3


def test_models_learn_their_start_but_that_of_one_group_leaves_it_alone():
    """It has the learned start of the published file, but neither gradient nor decay reaches it."""
    model = tiny_model(**PADDED)
    assert tuple(model.top_down.start.shape) == (4, 4, 4)
    assert any(model.top_down.start is weight for weight in model.trainable_weights)
    model = tiny_model(NVAEAdamax(0.1, l2=0.5), num_latent_scales=1)
    start = model.top_down.start
    before = start.numpy()
    assert np.all((before >= 0.0) & (before < 1.0)) and np.std(before) > 0.1
    model.train_step(tf.constant(images_of(model.config)))
    np.testing.assert_array_equal(start, before)
    assert any(start is weight for weight in model.non_trainable_weights)
