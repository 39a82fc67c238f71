"""Equal groups and cells as one loop of the training step (`train.scan`): the same numbers by a smaller program."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import presets
from nvae_tf.evaluation.likelihood import LikelihoodEvaluator
from nvae_tf.generation.sampling import generate_images
from nvae_tf.layers import cpu_kernels, scan
from nvae_tf.optimization import NVAEAdamax
from nvae_tf.optimization.joined_step import postponed_assignments
from nvae_tf.presets import experiment_config
from nvae_tf.runs.new_model import model_for_training
from tests.tiny_model import assert_near, images_of, shaken, tiny_model, values

SETTINGS = dict(image_height=8, image_width=8, num_groups_per_scale=4, num_channels_encoder=4, num_channels_decoder=4)
VARIANTS = {
    "two scales, blocks, classes": (
        dict(num_preprocess_blocks=1, num_preprocess_cells=4, num_postprocess_blocks=1, num_postprocess_cells=4)
        | dict(num_latent_scales=2, num_classes=3),
        {},
    ),
    "flows, recomputed in parts": (
        dict(num_latent_scales=1, num_flows=1, num_cells_per_group_decoder=2, cell_set="res_elu"),
        dict(recompute="all", accumulate_steps=2),
    ),
}


def after_steps(scan, count, model, train):
    """What so many steps change, and the last one's metrics."""
    made = tiny_model(NVAEAdamax(0.01), **SETTINGS, **model, **train)
    made.scan = scan
    step = tf.function(made.train_step, autograph=False)
    images, labels = tf.constant(images_of(made.config, 8)), tf.constant([0, 1, 2, -1] * 2)
    for _ in range(count):
        results = step((images, labels) if made.config.num_classes else images)
    assert results["skipped_steps"] == 0.0
    recent = made.recent.read()
    return [*values([*made.variables, *made.optimizer.variables]), recent.kl_per_group, recent.spectral_norms]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_with_the_loop_are_the_same(variant):
    expected, found = (after_steps(scan, 5, *VARIANTS[variant]) for scan in (False, True))
    assert_near(found, expected, rtol=1e-6, atol=1e-6)


DRAWN = {
    "two scales": (dict(num_latent_scales=2), {}),
    "flows": (dict(num_flows=1), {}),
    "classes": (dict(num_classes=3), dict(guidance=2.0)),
    "half precision": (dict(), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", DRAWN)
def test_scores_and_samples_from_loops_are_the_same(variant, monkeypatch):
    loops, loop = [], scan.scan_for_inference
    monkeypatch.setattr(scan, "scan_for_inference", lambda *given: loops.append(given) or loop(*given))
    settings, how = DRAWN[variant]
    precision = "mixed_bfloat16" if variant == "half precision" else None
    model = shaken(tiny_model(dtype=precision, label_dropout=0.1, **SETTINGS | dict(num_latent_scales=1) | settings))
    images, labels = tf.constant(images_of(model.config, 4)), tf.constant([0, 1, 2, -1])
    labels = labels if model.config.num_classes else None
    nats = LikelihoodEvaluator(model, 4).evaluate([images if labels is None else (images, labels)], seed=1).nelbo
    loops_of_scores = len(loops)
    drawn = generate_images(model, 4, 0.7, seed=1, labels=labels, **how)
    assert 0 < loops_of_scores < len(loops)
    tolerance = 2e-2 if precision else 1e-4
    expected = model.score(images, per_group=True, seed=1, labels=labels)
    np.testing.assert_allclose(nats, expected.reconstruction + tf.reduce_sum(expected.kl, axis=1), rtol=tolerance)
    np.testing.assert_allclose(drawn, model.generate(4, 0.7, seed=1, labels=labels, **how), atol=tolerance)


# Lines of the program that XLA is given, with the forms that GPUs get. Without the loop: 55,000 and 104,000.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "precision", "most"), [("mnist", "float32", 23_000), ("cifar10", "mixed_bfloat16", 17_000)]
)
def test_the_size_of_the_program_that_xla_compiles(preset, precision, most, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "has_gpus", lambda: True)
    config = experiment_config(presets.preset(preset))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))
    model = model_for_training(config, steps_per_epoch=10, total_steps=100).model
    model.scan = True
    model.optimizer.build(model.trainable_variables)
    settings = config.model
    images = tf.zeros((4, settings.image_height, settings.image_width, settings.image_channels))

    @tf.function(autograph=False, jit_compile=True)
    def step(images):
        with postponed_assignments() as joined:
            return model.train_step(images), [tensors for _, tensors in joined]

    program = step.experimental_get_compiler_ir(images)(stage="hlo")
    assert program.count("\n") < most
