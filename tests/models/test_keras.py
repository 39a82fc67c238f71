import csv
import json
import pydoc
import random
import shutil
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf import command_line
from nvae_tf.optimization import NVAEAdamax
from tests import refuses
from tests.tiny_model import PADDED, assert_same, images_of, shaken, tiny_config, tiny_model, values

pytestmark = pytest.mark.usefixtures("few_power_iterations")
SMALLEST = tiny_config(num_latent_scales=1, squeeze_excite=False)
IMAGES = images_of(SMALLEST, 8)
BRIGHT = 255.0 * IMAGES
WRONG_RANGE = r"^images .*must be in \[0, 1\]: divide 8-bit values by 255$"
METHODS = ["train_on_batch", "test_on_batch", "predict_on_batch", "fit", "evaluate", "predict"]


def compiled(**settings):
    model = nvae_tf.NVAE(SMALLEST, seed=3)
    model.compile(**dict(optimizer=NVAEAdamax(0.01)) | settings)
    return model


@pytest.fixture(scope="module")
def eager():
    """A model without graphs, whose weights no test of this file may change."""
    return compiled(run_eagerly=True)


def fit(model, images, **settings):
    return model.fit(images, **dict(batch_size=4, shuffle=False, verbose=0) | settings).history


@pytest.mark.slow
@pytest.mark.parametrize("settings", [dict(steps_per_execution=2), dict(jit_compile=True)], ids=["two steps", "XLA"])
def test_a_refused_fit_leaves_no_trace_however_the_step_is_compiled(settings, tmp_path):
    model = compiled(**settings)
    before, one_pixel = values(model.weights), IMAGES.copy()
    one_pixel[2, 1, 3] = -0.1
    for images, message in (
        (np.uint8(BRIGHT), "of type uint8"),
        (IMAGES[:, :3], r"shape \(4, 3, 4, 1\)"),
        (one_pixel, "must be in"),
        (0.5 * IMAGES, "other than 0 and 1"),
    ):
        refuses(message, fit, model, images)
        assert_same(values(model.weights), before)
    history = fit(model, IMAGES)
    assert history["skipped_steps"] == [0.0] and int(model.optimizer.iterations) == 2
    model.save(tmp_path / "fitted.keras")
    loaded = keras.models.load_model(tmp_path / "fitted.keras")
    assert_same(values(loaded.weights), values(model.weights))
    assert_same(values(loaded.optimizer.variables), values(model.optimizer.variables))
    assert history == fit(compiled(**settings), IMAGES)
    for method in (model.evaluate, model.predict):
        refuses(WRONG_RANGE, method, BRIGHT, batch_size=4, verbose=0)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_refuses_another_range_and_those_that_score_gray_pixels(eager, name):
    before = values(eager.weights)
    refuses(WRONG_RANGE, getattr(eager, name), BRIGHT)
    if name not in ("train_on_batch", "fit"):  # which skip such steps
        refuses("^images have NaN .* comes from$", getattr(eager, name), np.where(IMAGES > 0, np.nan, IMAGES))
    if "predict" not in name:
        refuses("values other than 0 and 1; this model scores images of 1 bit", getattr(eager, name), 0.5 * IMAGES)
    assert_same(values(eager.weights), before)


def test_what_has_no_effect_is_warned_of():
    for weights in (dict(sample_weight=np.ones(8)), dict(class_weight={0: 1.0, 1: 2.0})):
        with pytest.warns(UserWarning, match="sample weights have no effect"):
            compiled(run_eagerly=True).train_on_batch(IMAGES, np.arange(8) % 2, **weights)
    model = compiled(run_eagerly=True, loss="mse", metrics=["mae"])
    with pytest.warns(UserWarning, match="loss and metrics of `compile` have no effect"):
        model.make_train_function()


def test_a_dataset_of_dictionaries_and_a_model_without_an_optimizer_are_refused(eager):
    dataset = tf.data.Dataset.from_tensor_slices({"image": IMAGES, "label": np.arange(8)}).batch(4)
    with pytest.raises(ValueError, match="^a batch is a dictionary of image, label; this model takes the images alone"):
        eager.fit(dataset, shuffle=False, verbose=0)
    model = compiled()
    model.compile(optimizer=None)
    refuses("the model has no optimizer", fit, model, IMAGES)


def test_a_model_is_made_of_the_right_settings():
    for name, value in dict(config={}, objective={}, seed=2**31, recompute="group", accumulate_steps=0).items():
        refuses(f"^{name} (is of type dict|= .*): ", nvae_tf.NVAE, **dict(config=SMALLEST) | {name: value})
    for settings in (dict(dtype="float64"), dict(label_dropout=1.5)):
        refuses("not one of|must be from 0 to 1", nvae_tf.NVAE, SMALLEST, **settings)


def test_the_seed_decides_the_initial_weights():
    state = random.getstate()
    weights = [values(tiny_model(seed=seed, num_groups_per_scale=2).weights) for seed in (3, 3, 4)]
    assert random.getstate() == state
    assert_same(weights[0], weights[1])
    # No two layers of one form have the same kernel, in a stack, in two of them or with another seed.
    kernels = [kernel for each in (*weights[0], *weights[2]) if each.ndim == 5 for kernel in each]
    assert len({(kernel.shape, kernel.tobytes()) for kernel in kernels}) == len(kernels) > 40


def test_callbacks_get_the_numbers(tmp_path):
    model = compiled(run_eagerly=True)
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
        keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.1, patience=1, min_delta=1e9),
        keras.callbacks.TensorBoard(tmp_path / "logs", histogram_freq=1, update_freq=1),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
    ]
    history = fit(model, IMAGES, y=np.arange(8), epochs=2, validation_split=0.5, callbacks=callbacks)
    # The second epoch is no better by so much: a tenth of a quarter.
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01 / 4 / 10)
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("loss", "reconstruction", "kl", "skipped_steps", "val_loss", "val_reconstruction", "val_kl"):
        assert [float(row[name]) for row in rows] == pytest.approx(history[name])
    assert len(list((tmp_path / "logs").rglob("events.*"))) == 2


def test_accumulated_gradients_of_the_optimizer_count_as_one_step():
    model = compiled(optimizer=NVAEAdamax(0.01, gradient_accumulation_steps=2), run_eagerly=True)
    changes, steps = [], []
    for _ in range(4):
        before = values(model.trainable_weights)
        model.train_on_batch(IMAGES)
        pairs = zip(before, values(model.trainable_weights), strict=True)
        changes.append(any(np.any(old != new) for old, new in pairs))
        steps.append(int(model.optimizer.iterations))
    assert (changes, steps) == ([False, True, False, True], [0, 1, 1, 2])


def assert_same_model(first, second, images):
    assert type(second) is nvae_tf.NVAE and (second.config, second.seed) == (first.config, first.seed)
    assert_same(second.weights, first.weights)
    np.testing.assert_array_equal(first.generate(3, 0.7, seed=1), second.generate(3, 0.7, seed=1))
    np.testing.assert_array_equal(first.score(images, 2, seed=1), second.score(images, 2, seed=1))
    assert_same(first.encode(images), second.encode(images))


def rewritten(path, change):
    """Writes a .keras file anew, with other settings, checksums and all."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    change(config)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | {"config.json": json.dumps(config)}).items():
            archive.writestr(name, content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model and its file."""
    model, path = shaken(tiny_model(**PADDED, num_flows=1)), tmp_path_factory.mktemp("saved") / "model.keras"
    model.save(path)
    return model, path


@pytest.mark.slow
def test_a_keras_file_also_one_from_before_a_setting_existed(images, saved, tmp_path):
    model, path = saved[0], shutil.copy(saved[1], tmp_path / "model.keras")
    assert_same_model(model, keras.models.load_model(path), images)

    def older(config):
        settings = config["config"]
        del settings["config"]["exact_edges"], settings["objective"]["kl_constant_weight"], settings["recompute"]

    rewritten(path, older)
    assert_same_model(model, keras.models.load_model(path), images)


def test_a_keras_file_is_loaded_or_refused_in_one_line(saved, tmp_path):
    path = tmp_path / "model.keras"
    assert_same(nvae_tf.load(saved[1]).weights, saved[0].weights)
    for damage, reason in (
        (lambda: path.write_bytes(path.read_bytes()[:-100]), "not a zip file, or cut off"),
        (lambda: path.write_bytes(path.read_bytes().replace(b"num_flows", b"num_flowx")), "Bad CRC-32"),
        (lambda: rewritten(path, lambda file: file["config"]["config"].update(num_flows=10**6)), "least 2,000,005"),
        (lambda: keras.Sequential([keras.Input((1,))]).save(path), "a Sequential, no NVAE"),
    ):
        shutil.copy(saved[1], path)
        damage()
        refuses(rf"model\.keras: not a model .* read \(.*({reason}).*\); restore", nvae_tf.load, path)
        not_a_run = r"model\.keras: a file, not a run folder \(nvae_tf.load reads"
        refuses(not_a_run, command_line.run_folder, str(path), error=FileNotFoundError)


def test_an_hdf5_file_lacks_the_optimizers_state_and_export_names_the_command(tmp_path):
    model = tiny_model()
    with pytest.raises(ValueError, match=r"model.h5: HDF5 .* lack the optimizer's state; give .* ends in \.keras$"):
        model.save(tmp_path / "model.h5")
    refuses("nvae-export --workdir=RUN --output=DIR", model.export, tmp_path / "exported")
    assert not list(tmp_path.iterdir())


def test_help_shows_what_a_user_calls():
    methods = {"classify", "decode", "encode", "features", "generate", "infer", "outlier_score", "restore", "score"}
    methods |= {"compress", "decompress", "denoise"}
    added = {name for name in dir(nvae_tf.NVAE) if not name.startswith("_")} - {*dir(keras.Model)}
    others = {"batch_norms", "convolutions", "outlier_calibration", "reweighted_prior", "statistics"}
    assert added == methods | others
    assert all("Example: `" in getattr(nvae_tf.NVAE, name).__doc__ for name in methods)
    assert len(pydoc.render_doc(nvae_tf).splitlines()) < 80
