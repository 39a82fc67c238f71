import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.config import ExperimentConfig
from nvae_tf.optimization import (
    LoweredRate,
    NVAEAdamax,
    RunawayGuard,
    StepGuard,
    WarmupCosine,
    average_of_weights,
    averaged_weights,
    joined_weights,
)
from nvae_tf.optimization.joined_weights import apply_joined_if
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
    steps[2:3] = [[0.0 * gradient for gradient in step] for step in steps[2:3]]  # nothing but decay
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


@pytest.mark.parametrize("settings", [{}, OTHER_SETTINGS, dict(learning_rate=SCHEDULE, l2=0.0)])
def test_several_steps(settings, monkeypatch):
    """Eagerly, in a graph, and with small weights joined, in turn."""
    monkeypatch.setattr(joined_weights, "MOST_JOINED_VALUES", 100)
    steps, variables = gradients_of_steps(), [keras.Variable(value) for value in start()]
    optimizer = keras.optimizers.deserialize(keras.optimizers.serialize(NVAEAdamax(**settings)))
    optimizer.build(variables)

    true = tf.constant(True)
    eager = lambda gradients: optimizer.apply(gradients, variables)  # noqa: E731
    conditional = tf.function(lambda gradients: optimizer.apply_if(true, gradients, variables))
    joined = tf.function(lambda gradients: apply_joined_if(optimizer, true, gradients, variables))
    forms = [eager, tf.function(eager), conditional, joined]
    for gradients, apply in zip(steps, itertools.cycle(forms), strict=False):
        apply([tf.constant(gradient) for gradient in gradients])
    assert int(optimizer.iterations) == len(steps)
    assert_near(values(variables), expected_weights(steps, **settings))


def test_a_joined_step_builds_the_optimizer_and_needs_no_small_weight(monkeypatch):
    monkeypatch.setattr(joined_weights, "MOST_JOINED_VALUES", 0)
    variables = [keras.Variable(value) for value in start()]
    (gradients,) = gradients_of_steps(1)
    apply_joined_if(NVAEAdamax(), tf.constant(True), list(map(tf.constant, gradients)), variables)
    assert_near(values(variables), expected_weights([gradients]))


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
    TrainingState(folder.checkpoints, model, 2).save(3)
    assert_same(weights_of(nvae_tf.load(folder.path)), averages)
    other = model_with(dtype="mixed_float16")
    assert TrainingState(folder.checkpoints, other, 2).restore() == 3
    assert_same([*weights_of(other), *averages_of(other)], [*after[-1], *averages])
    skip_a_step()
    assert_same(averages_of(model), averages)


def rates_by_loop(rate, minimum, warmup_epochs, epochs, steps_per_epoch):
    """A run of whole epochs, as somebody training would set the rate."""
    rates, current = [], rate
    warmup_steps = warmup_epochs * steps_per_epoch
    last_of_warmup = None
    for epoch in range(epochs):
        for _ in range(steps_per_epoch):
            step = len(rates)
            if step < warmup_steps:
                current = last_of_warmup = rate * step / warmup_steps
            elif last_of_warmup is None:
                last_of_warmup = rate
            rates.append(current)
        after = epoch + 1 - warmup_epochs  # epochs of the cosine that the next one has behind it
        if after >= 1:
            part = after / (epochs - warmup_epochs - 1)
            current = minimum + (last_of_warmup - minimum) * (1.0 + math.cos(math.pi * part)) / 2.0
    return rates


@pytest.mark.parametrize(("warmup", "epochs", "steps"), [(5, 20, 7), (1, 4, 3), (2, 12, 1), (3, 5, 10), (0, 3, 4)])
def test_every_step_of_a_run(warmup, epochs, steps):
    schedule = WarmupCosine(1e-2, 1e-4, warmup * steps, steps, epochs * steps)
    found = [float(schedule(step)) for step in range(epochs * steps)]
    assert found == pytest.approx(rates_by_loop(1e-2, 1e-4, warmup, epochs, steps), rel=1e-4)
    assert float(schedule(epochs * steps + 1000)) == pytest.approx(1e-4)  # longer than planned


@pytest.mark.parametrize("total_steps", [3, 10, 12, 14])
def test_runs_too_short_for_the_cosine_stay_in_range(total_steps):
    schedule = WarmupCosine(1e-2, 1e-4, warmup_steps=10, steps_per_epoch=2, total_steps=total_steps)
    rates = [float(schedule(step)) for step in range(total_steps + 4)]
    assert all(math.isfinite(rate) and 0.0 <= rate <= 1e-2 for rate in rates)


def test_rebuilt_from_its_serialized_form():
    schedule = WarmupCosine(1e-2, 1e-4, warmup_steps=5, steps_per_epoch=3, total_steps=40)
    for factor in (1.0, 0.5):
        lowered = LoweredRate(schedule, factor)
        rebuilt = keras.optimizers.schedules.deserialize(keras.optimizers.schedules.serialize(lowered))
        expected = [factor * float(schedule(step)) for step in range(40)]
        assert [float(rebuilt(step)) for step in range(40)] == expected


def offered(guard, losses, gradient_norm=1.0):
    def offer(loss):
        accepted = guard.accepts(loss, tf.constant(gradient_norm))
        guard.observe(loss, accepted)
        return accepted

    offer_all = tf.function(lambda all: tf.map_fn(offer, all, fn_output_signature=tf.bool, parallel_iterations=1))
    return offer_all(tf.constant(losses, tf.float32)).numpy()


def noisy(level, count, spread=1.0, seed=0):
    return level + spread * np.random.default_rng(seed).standard_normal(count)


@pytest.mark.parametrize("guard", [StepGuard(), RunawayGuard()])
def test_what_is_not_finite_is_skipped(guard):
    assert offered(guard, [5.0, np.nan, np.inf, -np.inf, 6.0]).tolist() == [True, False, False, False, True]
    assert not offered(guard, [5.0], gradient_norm=np.nan).any()


def test_a_training_run_is_let_through():
    # A steep fall, a slow rise while the KL warms up, and a long slow fall.
    falling = 5000 * np.exp(-np.arange(300) / 40) + 100
    rising = np.linspace(100, 180, 1500)
    level = np.concatenate([falling, rising, np.linspace(180, 150, 2000)])
    assert offered(RunawayGuard(), level + noisy(0, len(level), 4.0)).all()
    # The negative logarithm of a density may fall below 0.
    guard = RunawayGuard()
    assert offered(guard, level - 150 + noisy(0, len(level), 4.0)).all() and offered(guard, noisy(-400, 900)).all()
    assert float(guard.level) == pytest.approx(-400, abs=1) and not offered(guard, [-200.0, 0.0]).any()


def test_a_runaway_loss_is_skipped_and_moves_nothing():
    guard = RunawayGuard()
    assert offered(guard, noisy(100, 500)).all()
    state = list(map(float, guard.variables[:3]))
    assert not offered(guard, [150.0, 1e4, 1e30]).any()
    assert list(map(float, guard.variables[:3])) == state
    assert float(guard.skipped_in_a_row) == 3
    assert offered(guard, [101.0]).all() and float(guard.skipped_in_a_row) == 0
    # Accepted outliers, just below the limit, hardly raise it.
    before, losses = float(guard.limit), noisy(100, 200, seed=1)
    losses[::10] = before - 1.0
    assert offered(guard, losses).all()
    assert float(guard.limit) < before + 0.5 * (before - 100)


def test_level_and_spread_are_those_of_the_losses_and_where_there_is_no_limit():
    guard = RunawayGuard()
    offered(guard, noisy(-30, 2000, 2.0))
    assert float(guard.level) == pytest.approx(-30, abs=1.0)
    # The mean distance from the mean of a Normal is 0.8 standard deviations.
    assert float(guard.spread) == pytest.approx(1.6, rel=0.25)
    # At first, at tolerance 0, and where losses are very even.
    assert offered(RunawayGuard(settling_steps=50), [1.0] * 49 + [1e6]).all()
    assert offered(RunawayGuard(tolerance=0.0), [1.0] * 300 + [1e6]).all()
    assert offered(RunawayGuard(), [100.0] * 300 + [105.0]).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [("use_ema", True), ("weight_decay", 1e-3), ("gradient_accumulation_steps", 2), ("loss_scale_factor", 8.0)]
    + [(name, 1.0) for name in ("clipnorm", "clipvalue", "global_clipnorm")],
)
def test_settings_of_keras_that_change_a_step_are_not_plain(name, value):
    assert NVAEAdamax().is_plain and not NVAEAdamax(**{name: value}).is_plain
