"""The notebook of docs/keras.md: its blocks run in order, and what the text promises of them holds."""

import dataclasses
import pathlib
import re

import keras
import numpy as np
import pytest

from tests.tiny_model import assert_same, values

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "keras.md"
METRICS = ("loss", "reconstruction", "kl")
OF_TRAINING = ("gradient_norm", "skipped_steps")

# Of Keras' own code that saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def blocks():
    """The blocks of Python, in order."""
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)


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
        (end,) = [len(blocks())] if text is None else [n for n, block in enumerate(blocks()) if text in block]
        for number in range(self._next, end):
            exec(compile(blocks()[number], f"{DOCUMENT.name}, block {number}", "exec"), self.names)
        self._next = end


@pytest.fixture
def new_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda: Notebook(tmp_path)


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


def test_a_model_is_fitted_scored_and_saved(new_notebook):
    """All of it that is about one model, but with the smallest model and few steps."""
    quick = new_notebook()
    quick.run_until("preset = nvae_tf.config.preset")
    smallest = dict(num_groups_per_scale=1, num_preprocess_blocks=0, num_postprocess_blocks=0)
    channels = dict(num_latent_per_group=2, num_channels_encoder=2, num_channels_decoder=2)
    quick.names["settings"] = dataclasses.replace(quick["settings"], **smallest, **channels)
    quick.run_until("keras.utils.set_random_seed(1)")
    quick.names["steps"] = 2
    quick.run_until("resumed = ")
    assert_history(quick, len(quick["history"]["loss"]))
    assert_inference(quick, groups=1)
    assert int(quick["loaded"].optimizer.iterations) == quick["steps"] * len(quick["history"]["loss"])
    assert_same_model(quick["model"], quick["loaded"], quick["some"])


@pytest.mark.slow
def test_the_whole_notebook_keeps_its_promises(new_notebook):
    whole = new_notebook()
    whole.run_until()
    model, history, resumed = whole["model"], whole["history"], whole["resumed"]
    assert_history(whole, epochs=6)
    assert history["loss"][-1] < 0.6 * history["loss"][0]
    assert_inference(whole, groups=2)
    assert [tuple(latent.shape) for latent in whole["latents"]] == [(20, 8, 8, 8)] * 2
    assert whole["larger"].config.num_latent_per_group == 10
    # Tighter by more than what differs between these draws.
    assert np.mean(whole["nats"]) < np.mean(model.score(whole["some"], 1, seed=1))
    assert_same_model(model, whole["same"], whole["some"])
    # The best checkpoint is the one with the lowest validation loss.
    best = keras.models.load_model(whole.folder / "best.keras")
    result = best.evaluate(whole["test_batches"], return_dict=True, verbose=0)
    assert result["loss"] == pytest.approx(min(history["val_loss"]), rel=1e-6)
    # A fit that goes on from a file ends with the same weights.
    assert whole["done"] == 2 * whole["steps"] and int(resumed.optimizer.iterations) == 6 * whole["steps"]
    assert_same(values([*resumed.weights, *resumed.optimizer.variables]), [*model.weights, *model.optimizer.variables])
    # An array and any optimizer; noise of 8 bits can't be described with fewer.
    assert whole["own_history"]["learning_rate"] == pytest.approx([0.01, 0.005, 0.0025, 0.00125])
    assert 8.0 < whole["bits_per_dim"] < 8.6
    # A trained model goes on from where it was: its losses lie far below those of the beginning.
    (loss,) = whole["trained"].history.history["loss"]
    assert int(whole["trained"].optimizer.iterations) == whole["steps"] and loss < 1.05 * history["loss"][-1]
