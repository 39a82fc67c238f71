"""The model rebuilt from its settings and from Keras' own file: the same numbers."""


import keras
import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.config import ObjectiveConfig
from nvae_tf.optimization import NVAEAdamax, WarmupCosine

# Of Keras' own code that saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def assert_same_numbers(first, second, images):
    np.testing.assert_array_equal(first.generate(3, 0.7, seed=1), second.generate(3, 0.7, seed=1))
    np.testing.assert_array_equal(first.score(images, 2, seed=1), second.score(images, 2, seed=1))
    for mine, theirs in zip(first.encode(images), second.encode(images), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_rebuilt_from_its_settings(tiny):
    objective = ObjectiveConfig(total_steps=17, regularisation=0.3)
    model = tiny.model(seed=3, objective=objective, num_flows=1)
    rebuilt = nvae_tf.NVAE.from_config(model.get_config())
    assert (rebuilt.config, rebuilt.objective, rebuilt.seed) == (model.config, objective, 3)
    assert rebuilt.name == model.name
    assert [weight.shape for weight in rebuilt.weights] == [weight.shape for weight in model.weights]


def test_saved_and_loaded(tiny, images, tmp_path):
    model = tiny.shaken(tiny.model(seed=3, num_flows=1))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is nvae_tf.NVAE
    assert (loaded.config, loaded.seed) == (model.config, 3)
    for mine, theirs in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert_same_numbers(model, loaded, images)


def test_weights_alone(tiny, images, tmp_path):
    model, other = tiny.shaken(tiny.model(num_flows=1)), tiny.model(num_flows=1)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    assert_same_numbers(model, other, images)


def test_a_checkpoint_of_tensorflow_has_all_weights(tiny, tmp_path):
    """Also those of layers in lists, which TensorFlow does not find by itself in a model of Keras."""
    model, other = tiny.shaken(tiny.model(num_flows=1)), tiny.model(num_flows=1)
    file = tf.train.Checkpoint(model=model).save(tmp_path / "model")
    tf.train.Checkpoint(model=other).restore(file).assert_existing_objects_matched()
    for mine, theirs in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_a_compiled_model_trains_on_where_it_was_saved(tiny, tmp_path):
    images = tf.constant(tiny.images_of(tiny.config()))
    model = tiny.model(seed=3)
    model.compile(optimizer=NVAEAdamax(WarmupCosine(0.01, 0.001, 1, 2, 10)), run_eagerly=True)
    model.train_step(images)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 1
    reports = []
    for each in (model, loaded):
        each.reset_metrics()
        each.train_step(images)
        reports.append({name: float(value) for name, value in each.train_step(images).items()})
    assert reports[0] == pytest.approx(reports[1], rel=1e-6)
