"""A step with NaN or infinity in it leaves no trace; the next sound step is as if it had not been."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.optimization import NVAEAdamax


def state_of(model):
    """All that a step may change, but for the count of skipped steps."""
    skipped = model.running.skipped_steps.variables
    variables = [v for v in (*model.variables, *model.optimizer.variables) if all(v is not s for s in skipped)]
    return {variable.path: variable.numpy() for variable in variables}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def compiled(tiny, **changes):
    keras.utils.set_random_seed(3)
    model = tiny.model(3, **changes)
    model.compile(optimizer=NVAEAdamax(0.01))
    model.optimizer.build(model.trainable_variables)
    return model, tf.function(model.train_step, autograph=False)


@pytest.fixture(scope="module")
def runs(tiny):
    """A model and its step, and the images."""
    model, step = compiled(tiny, num_flows=1)
    return model, step, tiny.images_of(model.config)


@pytest.mark.parametrize("poison", [np.nan, pytest.param(np.inf, marks=pytest.mark.slow)])
def test_bad_images_change_nothing(runs, poison):
    model, step, images = runs
    step(images)
    before = state_of(model)
    bad = images.copy()
    bad[1, 2, 3] = poison
    skipped = float(model.running.skipped_steps.result())
    step(bad)
    assert_same(state_of(model), before)
    assert float(model.running.skipped_steps.result()) == skipped + 1


@pytest.mark.slow
def test_gradients_that_overflow_change_nothing_though_the_loss_is_finite(runs, monkeypatch):
    model, _, images = runs
    before = state_of(model)
    huge = model.objective.__class__(regularisation=3e38)
    monkeypatch.setattr(model, "objective", huge)
    results = tf.function(model.train_step, autograph=False)(images)
    assert_same(state_of(model), before)
    assert float(results["skipped_steps"]) > 0


@pytest.mark.slow
def test_the_step_after_a_bad_one_is_as_if_it_had_not_been(tiny):
    (with_bad, step), (without, other_step) = (compiled(tiny) for _ in range(2))
    images = tiny.images_of(with_bad.config)
    for batch in (images, np.full_like(images, np.nan), images[::-1]):
        step(batch)
    for batch in (images, images[::-1]):
        other_step(batch)
    one, other = state_of(with_bad), state_of(without)
    for value, expected in zip(one.values(), other.values(), strict=True):
        np.testing.assert_array_equal(value, expected)
    assert any(np.any(value) for value in one.values())


@pytest.mark.slow
def test_fit_goes_on_after_a_bad_batch(tiny):
    model = tiny.model(3)
    model.compile(optimizer=NVAEAdamax(0.01))
    images = tiny.images_of(model.config, count=12)
    images[5] = np.nan
    history = model.fit(images, batch_size=4, epochs=2, shuffle=False, verbose=0).history
    assert history["skipped_steps"] == [1.0, 1.0]
    assert np.all(np.isfinite(history["loss"]))
    assert int(model.optimizer.iterations) == 4


@pytest.mark.slow
def test_scales_are_not_set_from_a_bad_first_batch(tiny):
    """Self-normalizing layers take their scales from the first batch that is sound."""
    (with_bad, step), (without, other_step) = (compiled(tiny, cell_set="res_elu") for _ in range(2))
    images = tiny.images_of(with_bad.config)
    before = state_of(with_bad)
    step(np.full_like(images, np.nan))
    assert_same(state_of(with_bad), before)
    step(images)
    other_step(images)
    assert float(with_bad.data_initialised) == 1.0
    for value, expected in zip(state_of(with_bad).values(), state_of(without).values(), strict=True):
        np.testing.assert_array_equal(value, expected)
