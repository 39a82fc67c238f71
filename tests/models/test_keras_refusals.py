"""What `fit` and its relatives refuse, in one line, and that a refusal leaves the model as it was."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.optimization import NVAEAdamax
from tests.tiny_model import tiny_config

# Of Keras' own code that saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SMALLEST = dict(num_latent_scales=1, squeeze_excite=False)
IMAGES = np.random.default_rng(0).integers(0, 2, (8, 4, 4, 1)).astype(np.float32)
BRIGHT = 255.0 * IMAGES
WRONG_RANGE = r"^images have values from 0 to 255; they must be in \[0, 1\]: divide 8-bit values by 255$"


def compiled(**settings):
    """A model ready for `fit`; all have the same weights."""
    keras.utils.set_random_seed(3)
    model = nvae_tf.NVAE(tiny_config(**SMALLEST))
    model.compile(NVAEAdamax(0.01), **settings)
    return model


@pytest.fixture(scope="module")
def eager():
    """A model without graphs, whose weights no test of this file may change."""
    return compiled(run_eagerly=True)


def fit(model, images, **settings):
    """What `fit` reports; the batches are of 4."""
    return model.fit(images, batch_size=4, shuffle=False, verbose=0, **settings).history


def values_of(model):
    return [weight.numpy() for weight in model.weights]


def assert_same(values, others):
    for value, other in zip(values, others, strict=True):
        np.testing.assert_array_equal(value, other)


def assert_refusals_leave_no_trace(model, refusals, tmp_path):
    """Refuses these images, and is then a model like one that never saw them."""
    before = values_of(model)
    for images, message in refusals:
        with pytest.raises(ValueError, match=message):
            fit(model, images)
        assert_same(values_of(model), before)
    model.save(tmp_path / "refused.keras")
    assert_same(values_of(keras.models.load_model(tmp_path / "refused.keras")), before)
    history = fit(model, IMAGES)
    assert history["skipped_steps"] == [0.0] and int(model.optimizer.iterations) == 2
    model.save(tmp_path / "fitted.keras")
    loaded = keras.models.load_model(tmp_path / "fitted.keras")
    assert_same(values_of(loaded), values_of(model))
    assert_same([v.numpy() for v in loaded.optimizer.variables], [v.numpy() for v in model.optimizer.variables])
    return history


def test_after_a_refused_fit_the_corrected_one_works(without_rewriting, tmp_path):
    refusals = [(np.uint8(BRIGHT), "of type uint8"), (IMAGES[:, :3], r"shape \(4, 3, 4, 1\)")]
    assert_refusals_leave_no_trace(compiled(), refusals, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{}, dict(steps_per_execution=2), dict(jit_compile=True)],
    ids=["graph", "two steps at once", "XLA"],
)
def test_another_range_is_refused_however_the_step_is_compiled(settings, tmp_path):
    model = compiled(**settings)
    one_pixel = IMAGES.copy()
    one_pixel[2, 1, 3] = -0.1
    refusals = [(BRIGHT, WRONG_RANGE), (one_pixel, "values from -0.1 to 1;")]
    history = assert_refusals_leave_no_trace(model, refusals, tmp_path)
    assert history == fit(compiled(**settings), IMAGES)
    for method in (model.evaluate, model.predict):
        with pytest.raises(ValueError, match=WRONG_RANGE):
            method(BRIGHT, batch_size=4, verbose=0)


@pytest.mark.parametrize("name", ["train_on_batch", "test_on_batch", "predict_on_batch", "fit", "evaluate", "predict"])
def test_every_method_refuses_another_range(eager, name):
    before = values_of(eager)
    with pytest.raises(ValueError, match=WRONG_RANGE):
        getattr(eager, name)(BRIGHT)
    assert_same(values_of(eager), before)


def test_images_with_nan_are_not_scored(eager):
    """`fit` skips their steps and counts them."""
    images = IMAGES.copy()
    images[1, 2, 3] = np.nan
    for method in (eager.evaluate, eager.predict):
        with pytest.raises(ValueError, match="values from nan to nan"):
            method(images, verbose=0)


@pytest.mark.parametrize("dtype", ["float16", "float64", "bool"])
def test_rounding_and_other_types_are_no_other_range(eager, dtype):
    expected = eager.evaluate(IMAGES, return_dict=True, verbose=0)
    images = IMAGES.astype(dtype)
    if dtype != "bool":
        images = images * (1 + np.finfo(dtype).eps)
    assert eager.evaluate(images, return_dict=True, verbose=0) == pytest.approx(expected, rel=1e-2)


def test_class_weights_are_refused(eager):
    for labels in (None, np.arange(8) % 2):
        with pytest.raises(ValueError, match="^class_weight has no effect"):
            eager.fit(IMAGES, labels, class_weight={0: 1.0, 1: 2.0})
        with pytest.raises(ValueError, match="^class_weight has no effect"):
            eager.train_on_batch(IMAGES, labels, class_weight={0: 1.0, 1: 2.0})


def test_weights_and_losses_without_effect_are_warned_of(eager):
    with pytest.warns(UserWarning, match="sample weights have no effect"):
        eager.evaluate(IMAGES, np.arange(8), sample_weight=np.ones(8), verbose=0)
    model = compiled(run_eagerly=True, loss="mse", metrics=["mae"])
    with pytest.warns(UserWarning, match="loss and metrics of `compile` have no effect"):
        model.make_train_function()


def test_a_dataset_of_dictionaries_says_what_to_take_of_them(eager):
    dataset = tf.data.Dataset.from_tensor_slices({"image": IMAGES, "label": np.arange(8)}).batch(4)
    with pytest.raises(ValueError, match="^a batch is a dictionary of image, label; this model takes the images alone"):
        eager.fit(dataset, shuffle=False, verbose=0)


def test_without_an_optimizer_there_is_no_fit():
    model = compiled()
    model.compile(optimizer=None)
    with pytest.raises(ValueError, match="the model has no optimizer"):
        fit(model, IMAGES)


def test_export_names_the_command(eager, tmp_path):
    with pytest.raises(ValueError, match="python -m export.export_saved_model --workdir=RUN --output=DIR"):
        eager.export(tmp_path / "exported")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(config={"image_height": 4}), "config is of type dict: must be a nvae_tf.ModelConfig"),
        (dict(config=nvae_tf.ExperimentConfig()), "config is of type ExperimentConfig"),
        (dict(objective={"total_steps": 3}), "objective is of type dict: must be a nvae_tf.ObjectiveConfig"),
        (dict(seed="one"), "seed = 'one': must be a whole number"),
        (dict(seed=2**31), "seed = 2147483648: must be a whole number up to 2147483647"),
    ],
)
def test_a_model_is_made_of_the_right_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        nvae_tf.NVAE(**dict(config=tiny_config(**SMALLEST)) | settings)
