"""The notebook of docs/keras.md: its blocks run in order, and what the text promises of them holds."""

import dataclasses
import pathlib
import re

import keras
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "keras.md"
METRICS = ("loss", "reconstruction", "kl")
OF_TRAINING = ("gradient_norm", "skipped_steps")

# Of Keras' own code that saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def blocks():
    """The blocks of Python, in order."""
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


def number_of_block(text):
    """Which block has these words; they are a landmark, of which there is one."""
    (number,) = [number for number, block in enumerate(blocks()) if text in block]
    return number


class Notebook:
    """The blocks' common names, in a folder of their own."""

    def __init__(self, folder):
        self.folder = folder
        self.names = {"__name__": "notebook"}
        self._next = 0

    def __getitem__(self, name):
        return self.names[name]

    def run_until(self, text=None):
        """Runs the blocks that have not been run, before the one with these words, or all."""
        end = len(blocks()) if text is None else number_of_block(text)
        for number in range(self._next, end):
            exec(compile(blocks()[number], f"{DOCUMENT.name}, block {number}", "exec"), self.names)
        self._next = end


@pytest.fixture(scope="module")
def new_notebook(tmp_path_factory):
    """Makes notebooks; the working folder is that of the latest."""
    with pytest.MonkeyPatch.context() as patch:

        def make():
            folder = tmp_path_factory.mktemp("notebook")
            patch.chdir(folder)
            return Notebook(folder)

        yield make


@pytest.fixture(scope="module")
def quick(new_notebook):
    """All of it that is about one model, but with the smallest model and few steps."""
    notebook = new_notebook()
    notebook.run_until("preset = nvae_tf.config.preset")
    smallest = dict(num_groups_per_scale=1, num_preprocess_blocks=0, num_postprocess_blocks=0)
    channels = dict(num_latent_per_group=2, num_channels_encoder=2, num_channels_decoder=2)
    notebook.names["settings"] = dataclasses.replace(notebook["settings"], **smallest, **channels)
    notebook.run_until("keras.utils.set_random_seed(1)")
    notebook.names["steps"] = 2
    notebook.run_until("resumed = ")
    return notebook


@pytest.fixture(scope="module")
def whole(new_notebook):
    """All of it, as it is written, in an empty folder."""
    notebook = new_notebook()
    notebook.run_until()
    return notebook


def assert_history(notebook, epochs):
    history = notebook["history"]
    assert set(history) == {*METRICS, *OF_TRAINING, *(f"val_{name}" for name in METRICS)}
    assert all(len(values) == epochs and np.all(np.isfinite(values)) for values in history.values())
    assert sum(history["skipped_steps"]) == 0
    np.testing.assert_allclose(notebook["bounds"], history["val_loss"], rtol=1e-5)
    assert notebook["result"]["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-6)


def assert_same_model(one, other, images):
    np.testing.assert_array_equal(one.score(images, 2, seed=1), other.score(images, 2, seed=1))
    np.testing.assert_array_equal(one.generate(2, seed=1), other.generate(2, seed=1))


def assert_inference(notebook, groups):
    model, size = notebook["model"], (16, 16, 1)
    assert tuple(notebook["images"].shape) == (16, *size)
    np.testing.assert_allclose(notebook["images"][:3], model.generate(3, temperature=0.7, seed=1), atol=1e-5)
    assert len(notebook["latents"]) == groups
    assert tuple(notebook["reconstructed"].shape) == (20, *size)
    assert notebook["nats"].shape == (20,) and np.all(np.isfinite(notebook["nats"]))


def test_a_model_is_fitted_scored_and_saved(quick):
    assert_history(quick, len(quick["history"]["loss"]))
    assert_inference(quick, groups=1)
    assert int(quick["loaded"].optimizer.iterations) == quick["steps"] * len(quick["history"]["loss"])
    assert_same_model(quick["model"], quick["loaded"], quick["some"])


@pytest.mark.slow
def test_the_whole_notebook_keeps_its_promises(whole):
    history = whole["history"]
    assert_history(whole, epochs=6)
    assert history["loss"][-1] < 0.6 * history["loss"][0]
    assert history["val_loss"][-1] < 0.7 * history["val_loss"][0]
    assert_inference(whole, groups=2)
    assert [tuple(latent.shape) for latent in whole["latents"]] == [(20, 8, 8, 8)] * 2
    assert whole["larger"].config.num_latent_per_group == 10
    # Tighter by more than what differs between these draws.
    assert np.mean(whole["nats"]) < np.mean(whole["model"].score(whole["some"], 1, seed=1))
    assert_same_model(whole["model"], whole["same"], whole["some"])


@pytest.mark.slow
def test_the_best_checkpoint_is_the_one_with_the_lowest_validation_loss(whole):
    best = keras.models.load_model(whole.folder / "best.keras")
    result = best.evaluate(whole["test_batches"], return_dict=True, verbose=0)
    lowest = np.argmin(whole["history"]["val_loss"])
    for name in METRICS:
        assert result[name] == pytest.approx(whole["history"][f"val_{name}"][lowest], rel=1e-6)


@pytest.mark.slow
def test_a_fit_that_goes_on_from_a_file_ends_with_the_same_weights(whole):
    resumed, model = whole["resumed"], whole["model"]
    assert whole["done"] == 2 * whole["steps"] and int(resumed.optimizer.iterations) == 6 * whole["steps"]
    for mine, theirs in zip(resumed.weights, model.weights, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    for mine, theirs in zip(resumed.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_an_array_and_any_optimizer(whole):
    own, history = whole["own"], whole["own_history"]
    assert history["val_loss"][-1] < history["val_loss"][0]
    assert history["learning_rate"] == pytest.approx([0.01, 0.005, 0.0025, 0.00125])
    # Noise of 8 bits can't be described with fewer.
    assert 8.0 < whole["bits_per_dim"] < 8.6
    assert int(own.optimizer.iterations) == 256 // 16 // 2


@pytest.mark.slow
def test_a_trained_model_goes_on_with_the_full_weight_of_the_kl(whole):
    (loss,) = whole["trained"].history.history["loss"]
    assert int(whole["trained"].optimizer.iterations) == whole["steps"]
    # From where the model was, not from the beginning: its losses lie far below.
    assert loss < 1.05 * whole["history"]["loss"][-1]
    (parts,) = np.add(whole["trained"].history.history["reconstruction"], whole["trained"].history.history["kl"])
    assert loss >= parts
