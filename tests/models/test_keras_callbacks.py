"""Keras' own callbacks, and a fit that is interrupted and goes on."""

import csv

import keras
import numpy as np
import pytest

from nvae_tf.config import ObjectiveConfig
from nvae_tf.optimization import NVAEAdamax

# Of Keras' own code that saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALLEST = dict(num_latent_scales=1, squeeze_excite=False)


@pytest.fixture
def compiled(tiny):
    """A function that makes equal models, ready for `fit`."""

    def make():
        keras.utils.set_random_seed(3)
        model = tiny.model(3, ObjectiveConfig(total_steps=8), **SMALLEST)
        model.compile(optimizer=NVAEAdamax(0.01))
        return model

    return make


class Interruption(keras.callbacks.Callback):
    """A user's Ctrl-C in the third epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations) == 5:
            raise KeyboardInterrupt


def test_callbacks_get_the_numbers(compiled, tiny, tmp_path):
    model = compiled()
    images = tiny.images_of(model.config, count=8)
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
        keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.1, patience=1, min_delta=1e9),
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.TensorBoard(tmp_path / "logs", histogram_freq=1, update_freq=1),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
    ]
    history = model.fit(
        images, np.arange(8), batch_size=4, epochs=2, validation_split=0.5, callbacks=callbacks, verbose=0
    ).history
    # The second epoch is no better by so much: a tenth of a quarter.
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01 / 4 / 10)
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("loss", "reconstruction", "kl", "skipped_steps", "val_loss", "val_reconstruction", "val_kl"):
        assert [float(row[name]) for row in rows] == pytest.approx(history[name])
    assert len(list((tmp_path / "logs").rglob("events.*"))) == 2


@pytest.mark.slow
def test_backup_and_restore_ends_with_the_same_weights(compiled, tiny, tmp_path):
    whole, interrupted = compiled(), compiled()
    images = tiny.images_of(whole.config, count=8)
    settings = dict(batch_size=4, epochs=4, shuffle=False, verbose=0)
    whole.fit(images, **settings)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(KeyboardInterrupt):
        interrupted.fit(images, callbacks=[backup, Interruption()], **settings)
    restored = compiled()
    history = restored.fit(images, callbacks=[keras.callbacks.BackupAndRestore(tmp_path / "backup")], **settings)
    assert history.epoch == [2, 3]
    for mine, theirs in zip(restored.weights, whole.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_accumulated_gradients_count_as_one_step(compiled, tiny):
    model = compiled()
    model.compile(optimizer=NVAEAdamax(0.01, gradient_accumulation_steps=2), run_eagerly=True)
    images = tiny.images_of(model.config)
    states = [[weight.numpy() for weight in model.trainable_weights]]
    steps = []
    for _ in range(4):
        model.train_on_batch(images)
        states.append([weight.numpy() for weight in model.trainable_weights])
        steps.append(int(model.optimizer.iterations))
    changes = [
        any(np.any(before != after) for before, after in zip(*pair, strict=True))
        for pair in zip(states, states[1:], strict=False)
    ]
    assert changes == [False, True, False, True]
    assert steps == [0, 1, 1, 2]


def test_labels_in_a_generator_and_a_dataset_of_tuples_are_passed_over(compiled, tiny):
    model = compiled()
    model.run_eagerly = True
    images = tiny.images_of(model.config)
    losses = []
    for batch in ((images,), (images, np.arange(4)), (images, np.arange(4), np.zeros(4))):
        generator = (batch for _ in range(2))
        losses.append(model.evaluate(generator, steps=1, return_dict=True, verbose=0)["loss"])
    assert len(set(losses)) == 1 and np.isfinite(losses[0])
