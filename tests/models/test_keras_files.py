"""What becomes of a model in Keras' files and copies, beside what test_saving.py has."""

import json
import zipfile

import keras
import numpy as np
import pytest

import nvae_tf

# Of Keras' own code that saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALLEST = dict(num_latent_scales=1, squeeze_excite=False, num_flows=1)


@pytest.fixture
def model(tiny):
    return tiny.shaken(tiny.model(3, **SMALLEST))


def rewritten(path, change):
    """The file, its settings changed."""
    with zipfile.ZipFile(path) as before:
        files = {name: before.read(name) for name in before.namelist()}
    config = json.loads(files["config.json"])
    change(config["config"])
    files["config.json"] = json.dumps(config)
    with zipfile.ZipFile(path, "w") as after:
        for name, content in files.items():
            after.writestr(name, content)


def test_a_file_from_before_a_setting_existed_is_loaded(model, images, tmp_path):
    model.save(tmp_path / "model.keras")

    def without_newer_settings(config):
        del config["config"]["exact_edges"], config["objective"]["kl_constant_weight"], config["seed"]

    rewritten(tmp_path / "model.keras", without_newer_settings)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.config.exact_edges, loaded.seed) == (False, 0)
    np.testing.assert_array_equal(loaded.score(images, 2, seed=1), model.score(images, 2, seed=1))


def test_a_clone_has_the_settings_and_weights_of_its_own(model):
    clone = keras.models.clone_model(model)
    assert type(clone) is nvae_tf.NVAE
    assert (clone.config, clone.objective, clone.seed) == (model.config, model.objective, model.seed)
    assert clone.count_params() == model.count_params()
    assert not {id(weight) for weight in clone.weights} & {id(weight) for weight in model.weights}


def test_json_has_the_settings(model):
    rebuilt = keras.models.model_from_json(model.to_json())
    assert type(rebuilt) is nvae_tf.NVAE
    assert rebuilt.config == model.config


def test_predict_gives_mean_reconstructions(model, images):
    model.compile()
    predicted = model.predict(np.concatenate([images, images]), batch_size=4, verbose=0)
    assert predicted.shape == (8, *images.shape[1:])
    assert predicted.min() >= 0.0 and predicted.max() <= 1.0
    # The draws depend on the place in a batch.
    np.testing.assert_allclose(predicted[:4], predicted[4:], rtol=1e-5)
    np.testing.assert_allclose(predicted[:4], model(images), rtol=1e-4, atol=1e-6)
