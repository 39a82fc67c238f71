"""The notebook of docs/keras.md: its blocks run in order, and what the text promises of them holds."""

import re

import keras
import numpy as np
import pytest

from tests import ROOT
from tests.tiny_model import assert_same, values

DOCUMENT = ROOT / "docs" / "keras.md"
METRICS = ("loss", "reconstruction", "kl")


def assert_same_model(one, other, images):
    np.testing.assert_array_equal(one.score(images, 2, seed=1), other.score(images, 2, seed=1))
    np.testing.assert_array_equal(one.generate(2, seed=1), other.generate(2, seed=1))


@pytest.mark.slow
def test_the_notebook_keeps_its_promises(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "notebook"}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)):
        exec(compile(block, f"{DOCUMENT.name}, block {number}", "exec"), names)
    model, history, some, steps = (names[name] for name in ("model", "history", "some", "steps"))
    assert set(history) == {*METRICS, "gradient_norm", "skipped_steps", *(f"val_{name}" for name in METRICS)}
    assert all(len(metric) == 6 and np.all(np.isfinite(metric)) for metric in history.values())
    assert sum(history["skipped_steps"]) == 0 and history["loss"][-1] < 0.6 * history["loss"][0]
    np.testing.assert_allclose(names["bounds"], history["val_loss"], rtol=1e-5)
    assert names["result"]["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-6)
    assert tuple(names["images"].shape) == (16, 16, 16, 1)
    np.testing.assert_allclose(names["images"][:3], model.generate(3, temperature=0.7, seed=1), atol=1e-5)
    assert [tuple(latent.shape) for latent in names["latents"]] == [(20, 8, 8, 8)] * 2
    assert tuple(names["reconstructed"].shape) == (20, 16, 16, 1)
    assert names["nats"].shape == (20,) and np.all(np.isfinite(names["nats"]))
    assert np.mean(names["nats"]) < np.mean(model.score(some, 1, seed=1))
    assert names["larger"].config.num_latent_per_group == 10
    # Saved: the model, the best checkpoint, and a fit that goes on from a file and ends with the same weights.
    assert_same_model(model, names["loaded"], some)
    assert_same_model(model, names["same"], some)
    best = keras.models.load_model(tmp_path / "best.keras")
    result = best.evaluate(names["test_batches"], return_dict=True, verbose=0)
    assert result["loss"] == pytest.approx(min(history["val_loss"]), rel=1e-6)
    resumed = names["resumed"]
    assert names["done"] == 2 * steps and int(resumed.optimizer.iterations) == 6 * steps
    assert_same(values([*resumed.weights, *resumed.optimizer.variables]), [*model.weights, *model.optimizer.variables])
    # An array and any optimizer; noise of 8 bits can't be described with fewer.
    assert names["own_history"]["learning_rate"] == pytest.approx([0.01, 0.005, 0.0025, 0.00125])
    assert 8.0 < names["bits_per_dim"] < 8.6
    # A trained model goes on from where it was: its losses lie far below those of the beginning.
    (loss,) = names["trained"].history.history["loss"]
    assert int(names["trained"].optimizer.iterations) == steps and loss < 1.05 * history["loss"][-1]
