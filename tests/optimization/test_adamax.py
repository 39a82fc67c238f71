import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.config import ExperimentConfig
from nvae_tf.optimization import NVAEAdamax, WarmupCosine, average_of_weights, averaged_weights, joined_step
from nvae_tf.optimization.joined_step import apply_joined_if
from nvae_tf.runs.checkpoints import TrainingState
from nvae_tf.runs.run_folder import open_for_training
from tests.tiny_model import assert_near, assert_same, images_of, tiny_config, tiny_model, values

SHAPES = [(3, 4), (5,), (), (300, 300), (400, 200)]  # the last two are updated one after the other
OTHER_SETTINGS = dict(learning_rate=0.05, beta_1=0.8, beta_2=0.9, epsilon=0.1, l2=0.2)
SCHEDULE = WarmupCosine(0.1, 0.01, warmup_steps=2, steps_per_epoch=2, total_steps=6)
MODEL = dict(num_latent_scales=1, squeeze_excite=False)
MOMENTUM = 0.9
IMAGES = images_of(tiny_config())


def gradients_of_steps(count=6):
    generator = np.random.default_rng(3)
    steps = [[generator.normal(size=shape) for shape in SHAPES] for _ in range(count)]
    steps[2] = [0.0 * gradient for gradient in steps[2]]  # nothing but decay
    return [[np.float32(gradient) for gradient in step] for step in steps]


def start():
    generator = np.random.default_rng(4)
    return [np.float32(generator.normal(size=shape)) for shape in SHAPES]


def expected_weights(steps, learning_rate=1e-2, beta_1=0.9, beta_2=0.999, epsilon=1e-3, l2=3e-4):
    """By the rule, with the paper's settings where none are given."""
    weights = [np.float64(value) for value in start()]
    momentum = [np.zeros(shape) for shape in SHAPES]
    largest = [np.zeros(shape) for shape in SHAPES]
    for t, gradients in enumerate(steps, start=1):
        rate = float(learning_rate(t - 1)) if callable(learning_rate) else learning_rate
        for i, gradient in enumerate(gradients):
            gradient = gradient + l2 * weights[i]
            momentum[i] = beta_1 * momentum[i] + (1.0 - beta_1) * gradient
            largest[i] = np.maximum(beta_2 * largest[i], np.abs(gradient) + epsilon)
            weights[i] = weights[i] - rate / (1.0 - beta_1**t) * momentum[i] / largest[i]
    return weights


@pytest.mark.parametrize(
    "settings", [{}, OTHER_SETTINGS, dict(learning_rate=SCHEDULE, l2=0.0)], ids=["defaults", "others", "schedule"]
)
def test_several_steps(settings, monkeypatch):
    """Eagerly, in a graph, and with small weights joined, in turn."""
    monkeypatch.setattr(joined_step, "SMALL_WEIGHT", 100)
    steps, variables = gradients_of_steps(), [keras.Variable(value) for value in start()]
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(NVAEAdamax(**settings)))
    optimizer.build(variables)

    def eager(gradients):
        optimizer.apply(gradients, variables)

    def joined(gradients):
        apply_joined_if(optimizer, tf.constant(True), gradients, variables)

    def conditional(gradients):
        optimizer.apply_if(tf.constant(True), gradients, variables)

    forms = [eager, *map(tf.function, (eager, conditional, joined))]
    for gradients, apply in zip(steps, itertools.cycle(forms), strict=False):
        apply([tf.constant(gradient) for gradient in gradients])
    assert int(optimizer.iterations) == len(steps)
    assert_near(values(variables), expected_weights(steps, **settings))


@pytest.mark.parametrize("apply_if", [NVAEAdamax.apply_if, apply_joined_if])
def test_a_step_that_is_not_chosen_changes_nothing(apply_if):
    variables = [keras.Variable(value) for value in start()]
    optimizer = NVAEAdamax(**OTHER_SETTINGS)
    optimizer.build(variables)
    first, second, *_ = gradients_of_steps()
    optimizer.apply(first, variables)
    before = values([*variables, *optimizer.variables])
    nan = [tf.constant(gradient * float("nan")) for gradient in second]
    tf.function(lambda: apply_if(optimizer, tf.constant(False), nan, variables))()
    assert_same(values([*variables, *optimizer.variables]), before)


def model_with(optimizer=None, dtype="float32"):
    """A new model, the same each time; its optimizer keeps averages unless another is given."""
    return tiny_model(optimizer or NVAEAdamax(use_ema=True, ema_momentum=MOMENTUM), dtype=dtype, **MODEL)


def weights_of(model):
    return values(model.trainable_variables)


def averages_of(model):
    averages = average_of_weights(model)
    return [averages[id(weight)].numpy() for weight in model.trainable_variables]


def train(model, steps):
    """The weights after each of some steps."""
    return [model.train_step(tf.constant(IMAGES)) and weights_of(model) for _ in range(steps)]


def recursion(weights_after_steps):
    """The averages by their definition; they start as the first weights."""
    averages = weights_after_steps[0]
    for weights in weights_after_steps[1:]:
        averages = [MOMENTUM * mean + (1.0 - MOMENTUM) * new for mean, new in zip(averages, weights, strict=True)]
    return averages


def test_settings_that_ruin_weights_are_refused_in_one_line():
    for setting, bad in {"learning_rate": (-0.1, None), "beta_1": (1.0, "0.9"), "beta_2": (np.float32("nan"),)}.items():
        for value in bad:
            with pytest.raises(ValueError, match=f"^{setting} = [^\\n]*: must be at least 0 and [a-z0-9 ]*$"):
                NVAEAdamax(**{setting: value})
        NVAEAdamax(**{setting: 0.0})


def test_inside_the_block_the_model_has_the_averages_and_after_an_error_the_weights():
    model = model_with(keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=MOMENTUM))
    (*_, weights) = train(model, 3)
    averages = averages_of(model)
    with pytest.raises(KeyboardInterrupt):
        with averaged_weights(model):
            assert_same(weights_of(model), averages)
            raise KeyboardInterrupt
    assert_same(weights_of(model), weights)
    assert_same(averages_of(model), averages)
    assert average_of_weights(model_with(NVAEAdamax())) == average_of_weights(tiny_model(**MODEL)) == {}


@pytest.mark.slow
def test_averages_of_weights_are_loaded_and_a_skipped_step_leaves_them(tmp_path):
    model = model_with(dtype="mixed_float16")
    folder = open_for_training(tmp_path / "run", ExperimentConfig(model=tiny_config(**MODEL)))

    def skip_a_step():
        model.optimizer.dynamic_scale.assign(3e38)
        model.train_step(tf.constant(IMAGES))
        model.optimizer.dynamic_scale.assign(1024.0)

    before = weights_of(model)
    skip_a_step()
    with averaged_weights(model):
        assert_same(weights_of(model), before)
    after = train(model, 2)
    averages = averages_of(model)
    assert_near(averages, recursion(after), rtol=1e-5)
    TrainingState(folder.checkpoints, model, model.optimizer, 2).save(3)
    assert_same(weights_of(nvae_tf.load(folder.path)), averages)
    other = model_with(dtype="mixed_float16")
    assert TrainingState(folder.checkpoints, other, other.optimizer, 2).restore() == 3
    assert_same([*weights_of(other), *averages_of(other)], [*after[-1], *averages])
    skip_a_step()
    assert_same(averages_of(model), averages)
