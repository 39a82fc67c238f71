"""Running means of the weights: their values, where they are saved, and that training knows nothing of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.config import ExperimentConfig
from nvae_tf.optimization import NVAEAdamax, average_of_weights, averaged_weights
from nvae_tf.training.run_folder import open_for_training
from nvae_tf.training.training_state import TrainingState
from tests.tiny_model import tiny_config

MODEL = tiny_config(num_latent_scales=1, squeeze_excite=False)
MOMENTUM = 0.9
IMAGES = np.float32(np.random.default_rng(0).integers(0, 2, (4, 4, 4, 1)))
PRECISIONS = ("float32", "mixed_float16")


def model_with(optimizer=None, dtype="float32", **compilation):
    """A new model, the same each time; its optimizer keeps means unless another is given."""
    keras.utils.set_random_seed(3)
    model = nvae_tf.NVAE(MODEL, dtype=dtype)
    model.compile(optimizer=optimizer or NVAEAdamax(use_ema=True, ema_momentum=MOMENTUM), **compilation)
    model.optimizer.build(model.trainable_variables)
    return model


def weights_of(model):
    return [weight.numpy() for weight in model.trainable_variables]


def means_of(model):
    averages = average_of_weights(model)
    return [averages[id(weight)].numpy() for weight in model.trainable_variables]


def train(model, steps):
    """Takes steps and returns the weights after each."""
    after = []
    for _ in range(steps):
        model.train_step(tf.constant(IMAGES))
        after.append(weights_of(model))
    return after


def recursion(weights_after_steps):
    """The means by their definition; the first weights are the first means."""
    means = weights_after_steps[0]
    for weights in weights_after_steps[1:]:
        means = [MOMENTUM * mean + (1.0 - MOMENTUM) * weight for mean, weight in zip(means, weights, strict=True)]
    return means


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def assert_differ(found, other):
    assert max(np.abs(one - two).max() for one, two in zip(found, other, strict=True)) > 1e-3


def state_of(folder, model):
    return TrainingState(folder.checkpoints, model, model.optimizer, 2)


@pytest.fixture
def folder(tmp_path):
    return open_for_training(tmp_path / "run", ExperimentConfig(model=MODEL))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_loading_gives_the_means_and_training_the_weights(folder, precision):
    model = model_with(dtype=precision)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "mixed_float16")
    after = train(model, 3)
    assert_close(means_of(model), recursion(after))
    assert_differ(means_of(model), after[-1])
    state = state_of(folder, model)
    state.save(3)
    state.save_if_best(3, 1.0)
    for checkpoint in ("latest", "best"):
        assert_same(weights_of(nvae_tf.load(folder.path, checkpoint)), means_of(model))
    # The process that goes on has both, and goes on as this one does.
    other = model_with(dtype=precision)
    assert state_of(folder, other).restore() == 3
    assert_same(weights_of(other), after[-1])
    assert_same(means_of(other), means_of(model))
    assert_same(train(other, 1)[-1], train(model, 1)[-1])
    assert_same(means_of(other), means_of(model))


def test_training_is_not_changed_by_the_means_nor_by_their_use():
    plain, averaged = model_with(NVAEAdamax()), model_with()
    for _ in range(3):
        train(plain, 1)
        train(averaged, 1)
        with averaged_weights(averaged):
            averaged.test_step(tf.constant(IMAGES))
        assert_same(weights_of(averaged), weights_of(plain))
    assert_same([norm.numpy() for norm in averaged.weights], [norm.numpy() for norm in plain.weights])


def test_inside_the_block_the_model_has_the_means_and_after_an_error_the_weights():
    model = model_with()
    (*_, weights) = train(model, 3)
    means = means_of(model)
    with pytest.raises(KeyboardInterrupt):
        with averaged_weights(model):
            assert_same(weights_of(model), means)
            raise KeyboardInterrupt
    assert_same(weights_of(model), weights)
    assert_same(means_of(model), means)


def test_without_means_the_block_changes_nothing():
    for model in (model_with(NVAEAdamax()), nvae_tf.NVAE(MODEL)):
        assert average_of_weights(model) == {}
        before = weights_of(model)
        with averaged_weights(model):
            assert_same(weights_of(model), before)


def test_a_refused_step_leaves_the_means_and_before_the_first_step_they_are_the_weights(folder):
    model = model_with()
    before = weights_of(model)
    bad = tf.constant(np.where(IMAGES > 0.0, np.float32("nan"), IMAGES))
    model.train_step(bad)
    with averaged_weights(model):
        assert_same(weights_of(model), before)
    state_of(folder, model).save(1)
    assert_same(weights_of(nvae_tf.load(folder.path)), before)
    after = train(model, 2)
    means = means_of(model)
    assert_close(means, recursion(after))
    model.train_step(bad)
    assert_same(means_of(model), means)


def test_a_step_whose_gradients_overflow_leaves_the_means():
    model = model_with(dtype="mixed_float16")
    scale = model.optimizer.dynamic_scale
    scale.assign(3e38)
    before = weights_of(model)
    train(model, 1)
    with averaged_weights(model):
        assert_same(weights_of(model), before)
    scale.assign(1024.0)
    after = train(model, 2)
    means = means_of(model)
    assert_close(means, recursion(after))
    scale.assign(3e38)
    train(model, 1)
    assert_same(means_of(model), means)


class InsideFit(keras.callbacks.Callback):
    """Uses the means and saves them while `fit` goes on."""

    def __init__(self, folder):
        super().__init__()
        self._folder, self.after = folder, []

    def on_train_batch_end(self, batch, logs=None):
        self.after.append(weights_of(self.model))
        with averaged_weights(self.model):
            self.inside = weights_of(self.model)
        assert_same(weights_of(self.model), self.after[-1])
        state_of(self._folder, self.model).save(batch + 1)


def test_keras_own_optimizer_in_fit(folder):
    optimizer = keras.optimizers.Adam(1e-2, use_ema=True, ema_momentum=MOMENTUM)
    model = model_with(optimizer, run_eagerly=True)
    callback = InsideFit(folder)
    model.fit(np.concatenate([IMAGES] * 3), batch_size=4, shuffle=False, verbose=0, callbacks=[callback])
    assert len(callback.after) == 3
    assert_close(callback.inside, recursion(callback.after))
    assert_differ(callback.inside, callback.after[-1])
    assert_same(weights_of(nvae_tf.load(folder.path)), callback.inside)
    # Keras itself ends with them.
    assert_same(weights_of(model), callback.inside)
