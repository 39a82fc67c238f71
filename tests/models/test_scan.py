"""Equal groups and cells as one loop of the training step (`train.scan`): the same numbers by a smaller program."""

import dataclasses
import os

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf import layers, presets
from nvae_tf.evaluation.likelihood import LikelihoodEvaluator
from nvae_tf.generation.sampling import generate_images
from nvae_tf.layers import cpu_kernels, scan, steps
from nvae_tf.models import training_step
from nvae_tf.models.latents import batch_noise
from nvae_tf.optimization import NVAEAdamax, joined_weights
from nvae_tf.optimization.joined_weights import postponed_assignments
from nvae_tf.presets import experiment_config
from nvae_tf.runs.loading import model_for_training
from nvae_tf.training.strategy import step_function
from tests import own_parts, refuses  # noqa: F401, registers what variants name
from tests.command_fixtures import run
from tests.tiny_model import assert_near, assert_same, images_of, shaken, tiny_model, values

pytestmark = pytest.mark.slow
SETTINGS = dict(image_height=8, image_width=8, num_groups_per_scale=4, num_channels_encoder=4, num_channels_decoder=4)
# Settings of the model and of its training, and the number of its loops: forward, backward, and forward again.
VARIANTS = {
    "two scales, blocks, classes, registered likelihood and cells": (
        dict(num_preprocess_blocks=1, num_preprocess_cells=4, num_postprocess_blocks=1, num_postprocess_cells=4)
        | dict(num_latent_scales=2, num_classes=3, cell_set="normed", likelihood="fixed_laplace"),
        {},
        12,
    ),
    "flows, recomputed in parts": (
        dict(num_latent_scales=1, num_flows=1, num_cells_per_group_decoder=2, cell_set="res_elu"),
        dict(recompute="all", accumulate_steps=2),
        6,
    ),
}


def after_steps(scan, count, model, train):
    """What this number of steps changes, and the last one's metrics."""
    made = tiny_model(NVAEAdamax(0.01), **SETTINGS, **model, **train)
    made.scan = scan
    step = tf.function(made.train_step, autograph=False)
    images, labels = tf.constant(images_of(made.config, 8)), tf.constant([0, 1, 2, -1] * 2)
    for _ in range(count):
        results = step((images, labels) if made.config.num_classes else images)
    assert results["skipped_steps"] == 0.0
    recent = made.recent.read()
    others = [*made.non_trainable_variables, *made.optimizer.variables]
    return values(made.trainable_variables), [*values(others), recent.kl_per_group, recent.spectral_norms]


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_with_the_loop_are_the_same(variant, monkeypatch):
    loops, loop, (*settings, num_loops) = [], scan._loop, VARIANTS[variant]
    monkeypatch.setattr(scan, "_loop", lambda *given, **how: loops.append(given) or loop(*given, **how))
    expected, actual = (after_steps(scan, 3, *settings) for scan in (False, True))
    assert len(loops) == num_loops
    assert_near(actual[1], expected[1], rtol=1e-6, atol=1e-6)
    for one, other in zip(actual[0], expected[0], strict=True):
        # A batch norm subtracts some biases: rounding errors alone move them, by some 1e-6. Others move more than 1e-3.
        if np.max(np.abs([one, other])) > 1e-5:
            assert_near([one], [other], rtol=1e-6, atol=1e-6)


DRAWN = {
    "two scales, flows, classes": (dict(num_latent_scales=2, num_flows=1, num_classes=3), dict(guidance=2.0)),
    "half precision": (dict(num_latent_scales=1), {}),
}


@pytest.mark.parametrize("variant", DRAWN)
def test_scores_and_samples_from_loops_are_the_same(variant, monkeypatch):
    loops, loop = [], steps.scan_for_inference
    monkeypatch.setattr(steps, "scan_for_inference", lambda *given: loops.append(given) or loop(*given))
    settings, how = DRAWN[variant]
    precision = "mixed_bfloat16" if variant == "half precision" else None
    model = shaken(tiny_model(dtype=precision, label_dropout=0.1, **SETTINGS | settings))
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


def test_steps_before_a_loop_that_would_lose_what_their_layers_record_are_refused():
    norms, convolutions = layers.StackedBatchNormalization(4, 2), layers.StackedConvolution(3, 2, 2, 1)
    shares = {"norms": layers.StackShare(norms), "convolutions": layers.StackShare(convolutions)}

    @tf.function(autograph=False)
    def run_all():
        forward = layers.ForwardPass(training=True, scanned=True)
        return layers.run_steps(shares, None, tf.zeros((1, 2, 2, 2)), [()] * 4, forward)

    refuses("record in steps before a loop would be lost", run_all)


# Lines of the program that XLA is given, with the forms that GPUs get. Without the loop: 55,000 and 104,000.
SIZES = [("mnist", "float32", 23_000), ("cifar10", "mixed_bfloat16", 17_000)]


@pytest.mark.parametrize(("preset", "precision", "most"), SIZES)
def test_the_size_of_the_program_that_xla_compiles(preset, precision, most, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "gpus", lambda: True)
    config = experiment_config(presets.preset(preset))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision))
    model = model_for_training(config, steps_per_epoch=10, total_steps=100).model
    model.scan = True
    model.optimizer.build(model.trainable_variables)
    settings = config.model
    images = tf.zeros((4, *settings.image_shape))

    @tf.function(autograph=False, jit_compile=True)
    def step(images):
        with postponed_assignments() as joined:
            return model.train_step(images), [tensors for _, tensors in joined]

    program = step.experimental_get_compiler_ir(images)(stage="hlo")
    assert program.count("\n") < most


# Every kind of cell, and with them every operation that joins, doubles or halves.
COMPILED_STEPS = """
import tensorflow as tf
import nvae_tf
from nvae_tf.training.strategy import step_function
from tests.tiny_model import tiny_config

channels = dict(num_channels_encoder=8, num_channels_decoder=8)
blocks = dict(num_preprocess_blocks=1, num_preprocess_cells=1, num_postprocess_blocks=1, num_postprocess_cells=1)
blocks |= dict(image_height=8, image_width=8, num_latent_scales=1, num_groups_per_scale=2)
model = nvae_tf.NVAE(tiny_config(cell_set="mbconv_den", **channels, **blocks))
optimizer = nvae_tf.NVAEAdamax()
optimizer.build(model.trainable_variables)
model.compile(optimizer=optimizer)
step = step_function(tf.distribute.get_strategy(), model, is_jit=True)
images = tf.cast(tf.random.stateless_uniform((4, 8, 8, 1), (0, 0)) < 0.5, tf.float32)
for _ in range(3):
    print("loss", step(images)["loss"].numpy())
"""


def test_the_training_step_is_compiled_once():
    said = {"TF_CPP_VMODULE": "device_compiler=2", "TF_CPP_MIN_LOG_LEVEL": "0"}
    # How often a program is compiled does not depend on how well.
    quickly = {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"}
    process = run(["-c", COMPILED_STEPS], env=os.environ | said | quickly | {"TF_XLA_FLAGS": ""})
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("loss") == 3
    compilations = [line for line in process.stderr.splitlines() if "Compilation of XLA executable time" in line]
    assert len(compilations) == 1, compilations


def model_of(groups=2, adamax=True, **settings):
    # At rate 1 and with momentum, weights and slots show the gradients themselves.
    optimizer = NVAEAdamax() if adamax else keras.optimizers.SGD(1.0, momentum=0.9)
    return tiny_model(optimizer, num_latent_scales=1, num_groups_per_scale=groups, **settings)


def after(model, step):
    """What a step changes, and its metrics."""
    images = tf.constant(np.random.default_rng(0).integers(0, 2, (8, 4, 4, 1)), tf.float32)
    assert step(images)["skipped_steps"] == 0.0
    recent = model.recent.read()
    return [*values([*model.variables, *model.optimizer.variables]), recent.kl_per_group, recent.spectral_norms]


@pytest.fixture
def given_draws(monkeypatch):
    """Draws that are the same everywhere: XLA has Philox numbers of its own."""
    shapes = model_of(groups=4).plan.latent_shapes()
    draws = [draw.numpy() for draw in batch_noise(shapes, 8, (3, 0))]

    def noise(model, images, step, first=None, seed=None):
        size = images.shape[0]
        places = (0 if first is None else first) + tf.range(size)
        return [tf.gather(draw, places) for draw in draws[: model.plan.num_groups]]

    monkeypatch.setattr(training_step, "draws", noise)


# With each of the three ways of updating the weights. XLA takes nearly all of the time: one of them has flows.
@pytest.mark.parametrize(
    ("settings", "for_gpus"),
    [
        (dict(adamax=False, squeeze_excite=False, recompute="all", accumulate_steps=4), False),
        (dict(groups=1, num_flows=1), False),
        (dict(groups=4, squeeze_excite=False), True),
    ],
    ids=["another optimizer, recomputed in parts", "one group, flows", "with a loop, small weights joined, for GPUs"],
)
def test_the_compiled_step_is_the_same_and_what_is_not_finite_changes_nothing(
    settings, for_gpus, given_draws, monkeypatch
):
    plain, model = model_of(**settings), model_of(**settings)
    model.scan = for_gpus
    monkeypatch.setattr(joined_weights, "MOST_JOINED_VALUES", 100)
    monkeypatch.setattr(cpu_kernels, "gpus", lambda: for_gpus)
    compiled = step_function(tf.distribute.get_strategy(), model, is_jit=True)
    assert_near(after(model, compiled), after(plain, tf.function(plain.train_step, autograph=False)))
    # What was joined is assigned outside of what XLA compiles.
    outside = compiled.get_concrete_function(tf.TensorSpec((8, 4, 4, 1))).graph.get_operations()
    assert ("AssignVariableOp" in {each.type for each in outside}) == for_gpus
    before = values([*model.weights, *model.optimizer.variables])
    images = np.zeros((8, 4, 4, 1), np.float32)
    images[3, 1, 2] = np.nan
    assert float(compiled(images)["skipped_steps"]) == 1.0
    assert_same([*model.weights, *model.optimizer.variables], before)
    images[3, 1, 2] = 1.0
    assert float(compiled(images)["skipped_steps"]) == 1.0 and int(model.optimizer.iterations) == 2
