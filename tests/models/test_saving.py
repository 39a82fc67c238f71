import json
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf import command_line
from nvae_tf.config import ObjectiveConfig
from tests.tiny_model import PADDED, assert_same, shaken, tiny_config, tiny_model


def shaken_model():
    return shaken(tiny_model(**PADDED, num_flows=1))


def assert_same_model(first, second, images):
    assert type(second) is nvae_tf.NVAE and (second.config, second.seed) == (first.config, first.seed)
    assert_same(second.weights, first.weights)
    np.testing.assert_array_equal(first.generate(3, 0.7, seed=1), second.generate(3, 0.7, seed=1))
    np.testing.assert_array_equal(first.score(images, 2, seed=1), second.score(images, 2, seed=1))
    assert_same(first.encode(images), second.encode(images))


def test_rebuilt_from_its_settings():
    settings = dict(seed=7, recompute="groups", accumulate_steps=2, name="mine", dtype="mixed_bfloat16")
    model = nvae_tf.NVAE(tiny_config(num_flows=1), ObjectiveConfig(total_steps=17, regularization=0.3), **settings)
    for rebuilt in (keras.models.model_from_json(model.to_json()), keras.models.clone_model(model)):
        assert type(rebuilt) is nvae_tf.NVAE and rebuilt.get_config() == model.get_config()
        assert [weight.shape for weight in rebuilt.weights] == [weight.shape for weight in model.weights]


def rewritten(path, change):
    """Writes a .keras file anew, with other settings, checksums and all."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    change(config)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | {"config.json": json.dumps(config)}).items():
            archive.writestr(name, content)


@pytest.mark.slow
def test_a_keras_file_also_one_from_before_a_setting_existed(images, tmp_path):
    model, path = shaken_model(), tmp_path / "model.keras"
    model.save(path)
    assert_same_model(model, keras.models.load_model(path), images)

    def older(config):
        settings = config["config"]
        del settings["config"]["exact_edges"], settings["objective"]["kl_constant_weight"], settings["recompute"]

    rewritten(path, older)
    assert_same_model(model, keras.models.load_model(path), images)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (None, None),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "not a zip file, or cut off"),
        (lambda path: path.write_bytes(path.read_bytes().replace(b"num_flows", b"num_flowx")), "Bad CRC-32"),
        (
            lambda path: rewritten(path, lambda config: config["config"]["config"].update(num_flows=10**6)),
            "at least 2,000,005 layers",
        ),
        (lambda path: keras.Sequential([keras.Input((1,))]).save(path), "a Sequential, no NVAE"),
    ],
)
def test_a_keras_file_is_loaded_or_refused_in_one_line(tmp_path, damage, reason):
    model, path = shaken_model(), tmp_path / "model.keras"
    model.save(path)
    if damage is None:
        assert_same(nvae_tf.load(path).weights, model.weights)
        return
    damage(path)
    with pytest.raises(ValueError, match=rf"model\.keras: not a model .* read \(.*({reason}).*\); restore") as error:
        nvae_tf.load(path)
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"model\.keras: a file, not a run folder \(nvae_tf.load reads"):
        command_line.run_folder(str(path))


def test_a_checkpoint_of_tensorflow_has_all_weights(tmp_path):
    """Also those of layers in lists, which TensorFlow does not find by itself in a model of Keras."""
    model, other = shaken_model(), tiny_model(**PADDED, num_flows=1)
    file = tf.train.Checkpoint(model=model).save(tmp_path / "model")
    tf.train.Checkpoint(model=other).restore(file).assert_existing_objects_matched()
    assert_same(other.weights, model.weights)


def test_an_hdf5_file_lacks_the_optimizers_state_and_export_names_the_command(tmp_path):
    model = tiny_model()
    with pytest.raises(ValueError, match=r"model.h5: HDF5 .* lack the optimizer's state; give .* ends in \.keras$"):
        model.save(tmp_path / "model.h5")
    with pytest.raises(ValueError, match="nvae-export --workdir=RUN --output=DIR"):
        model.export(tmp_path / "exported")
    assert not list(tmp_path.iterdir())
