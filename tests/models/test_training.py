import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.config import ObjectiveConfig
from nvae_tf.layers import ForwardPass
from nvae_tf.layers.convolution import DataDependentConvolution
from nvae_tf.models.latents import batch_noise
from nvae_tf.models.training_step import loss_terms
from nvae_tf.optimization import NVAEAdamax
from tests import refuses
from tests.command_fixtures import output_of
from tests.tiny_model import PADDED, assert_near, assert_same, images_of, shaken, state_of, tiny_model, values

pytestmark = pytest.mark.usefixtures("few_power_iterations")


def compiled(rate=0.01, **changes):
    model = tiny_model(NVAEAdamax(rate), num_latent_scales=1, num_groups_per_scale=2, **changes)
    return model, tf.function(model.train_step, autograph=False)


def test_evaluation_gives_the_bound_and_changes_nothing():
    model = shaken(compiled(**PADDED)[0])
    before, images = values(model.weights), images_of(model.config, 8)
    results = [model.evaluate(images, batch_size=4, verbose=0, return_dict=True) for _ in range(2)]
    assert results[0] == results[1]
    assert results[0]["loss"] == pytest.approx(results[0]["reconstruction"] + results[0]["kl"], rel=1e-5)
    assert_same(model.weights, before)
    assert float(np.mean(model.score(images, importance_samples=10))) < results[0]["loss"]


@pytest.mark.slow
def test_self_normalizing_layers_are_set_by_the_first_batch_only_and_draws_depend_on_the_step():
    model, _ = compiled(rate=0.0, cell_set="res_elu")  # so that nothing else moves a weight
    layers = [layer for layer in model.convolutions if isinstance(layer, DataDependentConvolution)]
    variables = [variable for layer in layers for variable in (layer.log_norm, layer.bias)]
    start = values(variables)
    images = images_of(model.config, 8)
    model.train_step(images)
    first = values(variables)
    assert layers and float(model.data_initialised) == 1.0
    assert all(np.all(before != after) for before, after in zip(start, first, strict=True))
    losses = set()
    for _ in range(2):
        model.reset_metrics()
        losses.add(float(model.train_step(1.0 - images)["reconstruction"]))
    assert_same(variables, first)
    assert len(losses) == 2


@pytest.mark.slow
def test_the_steps_after_a_bad_one_are_as_if_it_had_not_been():
    """Self-normalizing layers, of res_elu, take their scales from the first batch that is sound."""
    model, step = compiled(cell_set="res_elu")
    variables, images = [*model.variables, *model.optimizer.variables], images_of(model.config)
    begun, bad = values(variables), np.full_like(images, np.nan)
    for batch in (bad, images, bad, images[::-1]):
        step(batch)
    with_bad = state_of(model)
    assert int(model.optimizer.iterations) == 2
    for variable, value in zip(variables, begun, strict=True):
        variable.assign(value)
    for batch in (images, images[::-1]):
        step(batch)
    assert_same(state_of(model), with_bad)


@pytest.mark.slow
def test_the_objective_is_that_of_the_settings():
    objective = ObjectiveConfig(total_steps=10, kl_anneal_portion=0.0, kl_constant_portion=0.0, regularization=0.0)
    changes, reports = dict(kl_final_weight=0.5, kl_scale_weights=(1, 4), free_nats=100.0), []
    for settings in (objective, dataclasses.replace(objective, **changes)):
        model = tiny_model(NVAEAdamax(), settings)
        model.optimizer.iterations.assign(5)
        reports.append({name: float(x) for name, x in model.train_step(tf.constant(images_of(model.config))).items()})
    plain, changed = reports
    assert plain["loss"] == pytest.approx(plain["reconstruction"] + plain["kl"], rel=1e-5)
    # Both groups' KL is below 100 nats; what is reported is the bound's.
    assert changed["loss"] == pytest.approx(plain["reconstruction"] + 0.5 * 100 + 2.0 * 100, rel=1e-5)
    assert changed["kl"] == pytest.approx(plain["kl"], rel=1e-5)
    with pytest.raises(ValueError, match=r"kl_scale_weights = \(1,\): 1 weights, and the model has 2 scales"):
        tiny_model(objective=ObjectiveConfig(kl_scale_weights=(1,)))


# Beta is neither 0 nor 1, so that each microbatch balances the groups by itself.
WARMING_UP = ObjectiveConfig(total_steps=10, kl_constant_weight=0.3)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(dict(num_flows=1), marks=pytest.mark.slow),
        dict(cell_set="res_elu", num_classes=3, label_dropout=0.5),
    ],
)
def test_the_public_loss_has_the_gradients_of_a_step_and_its_updates(settings):
    settings = settings | dict(num_latent_scales=1, num_groups_per_scale=2)
    model, other = (tiny_model(keras.optimizers.SGD(1.0), WARMING_UP, **settings) for _ in range(2))
    variables = []
    images, labels = images_of(model.config), tf.constant([0, 1, 2, -1]) if model.config.num_classes else None

    @tf.function(autograph=False)
    def gradients():
        with tf.GradientTape() as tape:
            loss = model.loss(images, labels)
        by_weight = tape.gradient(loss.total, model.trainable_weights, unconnected_gradients="zero")
        variables.extend(variable for variable, _ in loss.updates)
        return by_weight, [value for _, value in loss.updates], loss._replace(updates=None)

    taken, updates, loss = gradients()
    expected = [weight - gradient for weight, gradient in zip(model.trainable_weights, taken, strict=True)]
    tf.function(other.train_step, autograph=False)(images if labels is None else (images, labels))
    assert_same(values(other.trainable_weights), expected)
    for variable, value in zip(variables, updates, strict=True):
        variable.assign(value)
    assert_same(values(model.non_trainable_weights), values(other.non_trainable_weights))
    assert float(loss.total) == pytest.approx(float(other.running.loss.result()), rel=1e-6)
    assert_same(loss.kl_per_group[None], other.recent.read().kl_per_group)
    # Draws by the seed, the KL's weight by the step.
    again, *changed = (float(model.loss(images, labels, **how).total) for how in ({}, dict(seed=9), dict(step=1)))
    assert again not in changed


def test_the_public_loss_needs_a_step_and_what_fit_needs():
    model = tiny_model()
    with pytest.raises(ValueError, match="loss: give step=, the number of steps taken, or compile the model before"):
        model.loss(images_of(model.config))
    refuses("images have values from 0 to 255; they must be", model.loss, 255.0 * images_of(model.config), step=0)
    model.compile(loss="mse")
    assert model.loss(images_of(model.config), step=0).reconstruction.shape == [4]


def model_of(count, **changes):
    """A model of this number of microbatches, whose steps are its gradients."""
    changes = dict(num_latent_scales=1, num_groups_per_scale=2, num_flows=1) | changes
    return tiny_model(keras.optimizers.SGD(1.0), WARMING_UP, accumulate_steps=count, **changes)


def batch_of(model, count=6):
    return tf.constant(images_of(model.config, count))


def by_hand(model, images, count):
    """Of equal parts of the batch, each by itself: the mean gradients, updates, losses, reconstructions and KL."""
    size = len(images) // count
    draws = batch_noise(model.plan.latent_shapes(), len(images), (model.seed, 0))
    found = []
    for part in range(count):
        forward, rows = ForwardPass(training=True), slice(part * size, (part + 1) * size)
        with tf.GradientTape() as tape:
            metrics, *_ = loss_terms(model, images[rows], [draw[rows] for draw in draws], tf.constant(0), forward)
        updates = {variable.path: value for variable, value in forward.updates()}
        found.append((tape.gradient(metrics.loss, model.trainable_weights), updates, metrics.means))
    return tf.nest.map_structure(lambda *parts: np.mean([part.numpy() for part in parts], axis=0), *found)


@pytest.fixture(scope="module")
def step_of_three():
    """A model, its first weights, what its step of three microbatches reports, and what it should."""
    model = model_of(3)
    expected = by_hand(model, batch_of(model), 3)
    before = values(model.trainable_weights)
    report = tf.function(model.train_step, autograph=False)(batch_of(model))
    return model, before, report, expected


@pytest.mark.slow
def test_a_step_is_the_mean_of_those_of_the_microbatches(step_of_three):
    model, before, report, (gradients, updates, (loss, reconstruction, kl)) = step_of_three
    assert_near([old - new for old, new in zip(before, values(model.trainable_weights), strict=True)], gradients)
    assert int(model.optimizer.iterations) == 1
    norm = np.sqrt(sum(np.sum(np.square(gradient)) for gradient in gradients))
    expected = dict(loss=loss, reconstruction=reconstruction, kl=np.sum(kl), gradient_norm=norm, skipped_steps=0)
    assert {name: float(value) for name, value in report.items()} == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(model.recent.read().kl_per_group[0], kl, rtol=1e-3, atol=1e-5)
    # Statistics are the mean of theirs, and power vectors advance once.
    variables = {variable.path: variable for variable in model.non_trainable_variables}
    regularizer = model.spectral_regularizer
    moved = [*regularizer.vectors, regularizer.warmed_up, *(v for norm in model.batch_norms for v in norm.statistics)]
    assert updates.keys() == {variable.path for variable in moved}
    for path, value in updates.items():
        np.testing.assert_allclose(variables[path], value, rtol=1e-3, atol=1e-4, err_msg=path)


def test_a_batch_that_can_not_be_cut_evenly_is_refused():
    model = model_of(4, num_flows=0)
    with pytest.raises(ValueError, match="a batch of 6 can't be cut into accumulate_steps = 4 equal parts: give batch"):
        model.train_step(batch_of(model, 6))
    step = tf.function(model.train_step, autograph=False, input_signature=[tf.TensorSpec((None, 4, 4, 1))])
    refuses(r"a batch of unknown size can't be cut .*drop_remainder=True", step, batch_of(model))
    assert int(model.optimizer.iterations) == 0


def changes_of_a_step(recompute):
    """All that a step changes, and its metrics."""
    # At rate 1 weights show the gradients themselves, and the slots the means that Adamax would follow.
    settings = dict(num_latent_scales=1, num_groups_per_scale=2, num_cells_per_group_decoder=2, num_flows=1)
    model = tiny_model(keras.optimizers.SGD(1.0, momentum=0.9), recompute=recompute, **settings)
    assert tf.function(model.train_step, autograph=False)(batch_of(model))["skipped_steps"] == 0.0
    recent = model.recent.read()
    changed = values([*model.variables, *model.optimizer.variables])
    return [*changed, recent.kl_per_group, recent.spectral_norms]


@pytest.mark.slow
def test_a_step_with_recomputed_cells_is_the_same():
    assert_near(changes_of_a_step("all"), changes_of_a_step("none"), floor=1e-3)


# The peak memory of a process in bytes. `ru_maxrss` would begin with the peak of the process that started this one.
PEAK = """
def peak():
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
"""
# Prints the bytes by which training steps of many images raise the peak memory of their process, one after another.
TRAINING_STEPS = """
import json, sys
import keras, tensorflow as tf
from nvae_tf.config import TrainConfig
from nvae_tf.training.strategy import configure_runtime
from tests.tiny_model import tiny_model

configure_runtime(TrainConfig(), replica_count=1)
settings = dict(image_height=8, image_width=8, num_latent_scales=1, num_groups_per_scale=3)
settings |= dict(num_cells_per_group_decoder=3, num_channels_encoder=4, num_channels_decoder=4)
models = [tiny_model(keras.optimizers.SGD(1.0), **settings, **json.loads(each)) for each in sys.argv[1:]]
images = tf.zeros([8192, 8, 8, 1])
steps = [tf.function(model.train_step, autograph=False).get_concrete_function(images) for model in models]
before = peak()
for step in steps:
    step(images)
    print(peak() - before)
"""
# The same of a forward and backward pass through stacked convolutions with batch norm and swish; an input has 32 MiB.
SWISH_CONVOLUTIONS = """
import sys
import tensorflow as tf
from nvae_tf import layers
from nvae_tf.layers.residual_cells import SwishConvolution

layers.cpu_kernels.on_one_cpu = lambda: sys.argv[1] == "one CPU"
layer = SwishConvolution(layers.StackedConvolution(12, 8, 8, 1))

@tf.function(autograph=False)
def gradients(images):
    forward = layers.ForwardPass(training=True, inlined=True)
    with tf.GradientTape() as tape:
        for call in layer.layers(forward):
            images = call(images)
    return tape.gradient(images, layer.trainable_weights)

gradients(tf.zeros([1, 32, 32, 8]))
images = tf.zeros([1024, 32, 32, 8])
before = peak()
gradients(images)
print(peak() - before)
"""


@pytest.fixture
def added_peaks(tmp_path):
    """`added_peaks(PROGRAM, *arguments)`: the numbers that a process prints, one for each argument."""

    def run(program, *arguments):
        (tmp_path / "program.py").write_text(PEAK + program)
        return list(map(int, output_of([tmp_path / "program.py", *arguments]).split()[-len(arguments) :]))

    return run


@pytest.mark.slow
def test_microbatches_and_recomputed_cells_need_less_memory(added_peaks):
    # The one that needs the least is the first: a peak stays.
    in_parts, recomputed, plain = added_peaks(TRAINING_STEPS, '{"accumulate_steps": 4}', '{"recompute": "all"}', "{}")
    assert 0 < in_parts < 0.45 * plain and in_parts < recomputed < 0.65 * plain


@pytest.mark.slow
@pytest.mark.parametrize("device", ["one CPU", "all else"])
def test_swish_convolution_keeps_only_its_inputs_for_the_backward_pass(added_peaks, device):
    # The inputs of all layers but the first, and what the backward pass of one layer needs. Where the machine is busy,
    # gradients of weights wait for a thread and keep their inputs meanwhile: then it is measured again.
    assert any(0 < added_peaks(SWISH_CONVOLUTIONS, device)[0] < (12 - 1 + 6.5) * 2**25 for _ in range(6))
