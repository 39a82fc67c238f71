"""Recomputed cells: the same step bit by bit or nearly so, with less memory."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.training.graph_memory import memory_timeline
from tests.tiny_model import tiny_config

BATCH = 32
# Deep enough that what cells keep is most of it.
SETTINGS = dict(
    image_height=8,
    image_width=8,
    num_latent_scales=1,
    num_groups_per_scale=3,
    num_cells_per_group_decoder=3,
    num_channels_encoder=4,
    num_channels_decoder=4,
    num_flows=1,
)
BLOCKS = dict(num_preprocess_blocks=1, num_preprocess_cells=3, num_postprocess_blocks=1, num_postprocess_cells=3)


def images_of(config, count=BATCH):
    shape = (count, config.image_height, config.image_width, config.image_channels)
    return tf.constant(np.random.default_rng(0).integers(0, 2, shape), tf.float32)


def model_of(recompute, **changes):
    """A compiled model; all have the same weights."""
    keras.utils.set_random_seed(3)
    changes = SETTINGS | changes
    dtype = changes.pop("dtype", None)
    model = nvae_tf.NVAE(tiny_config(**changes), recompute=recompute, dtype=dtype)
    # At rate 1 weights show the gradients themselves, and the slots the means that Adamax would follow.
    model.compile(optimizer=keras.optimizers.SGD(1.0, momentum=0.9))
    model.optimizer.build(model.trainable_variables)
    return model


def traced(model):
    """The step as a concrete function."""
    shape = images_of(model.config).shape
    return tf.function(model.train_step, autograph=False).get_concrete_function(tf.TensorSpec(shape))


def after(model, step):
    """All that a step changes, and what it tells."""
    report = step(images_of(model.config))
    assert report["skipped_steps"] == 0.0
    # Names are counted on from model to model.
    variables = enumerate([*model.variables, *model.optimizer.variables])
    found = {f"{index}, {variable.shape}": variable.numpy() for index, variable in variables}
    figures = model.recent.read()
    return found | dict(kl_per_group=figures.kl_per_group, spectral_norms=figures.spectral_norms)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        scale = max(np.max(np.abs(expected[name]), initial=0.0), 1e-3)
        np.testing.assert_allclose(value, expected[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)


@pytest.fixture(scope="module")
def steps(without_rewriting):
    """By what they recompute, models and their traced steps."""
    models = {recompute: model_of(recompute) for recompute in ("none", "all")}
    return {recompute: (model, traced(model)) for recompute, model in models.items()}


def peak(step):
    """What the step makes and has not yet freed, at most."""
    timeline = memory_timeline(step)
    assert not timeline.unknown
    return timeline.peak_bytes


def test_a_step_in_a_graph_is_the_same(steps):
    assert_same(after(*steps["all"]), after(*steps["none"]))


def test_a_step_needs_less_memory(steps):
    assert peak(steps["all"][1]) < 0.6 * peak(steps["none"][1])


@pytest.mark.slow
@pytest.mark.parametrize("cell_set", ["res_bnswish", "res_elu"])
def test_an_eager_step_is_the_same(cell_set):
    settings = dict(cell_set=cell_set, num_groups_per_scale=2, num_cells_per_group_decoder=1)
    plain, recomputed = (model_of(recompute, **settings) for recompute in ("none", "all"))
    assert_same(after(recomputed, recomputed.train_step), after(plain, plain.train_step))


@pytest.mark.slow
def test_the_cells_of_groups_alone_save_less(without_rewriting):
    settings = BLOCKS | dict(num_channels_encoder=8, num_channels_decoder=8)
    models = [model_of(recompute, **settings) for recompute in ("none", "groups", "all")]
    kept, groups, everything = ((model, traced(model)) for model in models)
    expected = after(*kept)
    for each in (groups, everything):
        assert_same(after(*each), expected)
    peaks = [peak(step) for _, step in (kept, groups, everything)]
    assert peaks[2] < 0.95 * peaks[1] < 0.85 * peaks[0], peaks


@pytest.mark.slow
def test_in_half_precision_too(without_rewriting):
    plain, recomputed = (model_of(recompute, dtype="mixed_bfloat16") for recompute in ("none", "all"))
    steps = [traced(model) for model in (plain, recomputed)]
    assert peak(steps[1]) < 0.75 * peak(steps[0])
    assert_same(after(recomputed, steps[1]), after(plain, steps[0]))


def test_what_is_recomputed():
    settings = tiny_config(**SETTINGS | BLOCKS | dict(num_flows=0))
    models = {recompute: nvae_tf.NVAE(settings, recompute=recompute) for recompute in ("none", "groups", "all")}
    count = {
        recompute: sum(layer.count for layer in model._flatten_layers() if getattr(layer, "recomputed", False))
        for recompute, model in models.items()
    }
    # Three groups of one cell in the encoder; two of three in the decoder, and none in its top group.
    assert count == {"none": 0, "groups": 3 + 6, "all": 3 + 6 + 3 + 3}


@pytest.mark.parametrize("recompute", ["some", "group", None, True])
def test_other_choices_are_refused(recompute):
    with pytest.raises(ValueError, match=rf"recompute = {recompute!r}: not one of the choices \(none, groups, all\)"):
        nvae_tf.NVAE(tiny_config(), recompute=recompute)


def test_the_choice_is_kept_with_the_model():
    model = nvae_tf.NVAE(tiny_config(), recompute="groups")
    assert nvae_tf.NVAE.from_config(model.get_config()).recompute == "groups"
