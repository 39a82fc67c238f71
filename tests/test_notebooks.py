"""The notebooks of docs/: their blocks run in order, and what the text promises holds."""

import json
import re
import shlex

import jupytext
import keras
import nbformat
import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.config import REGISTERED
from nvae_tf.serving.signatures import Signatures
from tests import ROOT
from tests.command_fixtures import config_flags, output_of, quiet, run
from tests.tiny_model import assert_same, values

pytestmark = pytest.mark.slow
METRICS = ("loss", "reconstruction", "kl")
# Smaller models are traced sooner, and smaller batches are trained on sooner.
FEW_CELLS = '"model.num_cells_per_group_decoder": 1, "model.num_postprocess_cells": 1, "model.num_latent_scales"'
SMALLER = {
    "keras.md": {
        "num_groups_per_scale=2": "num_groups_per_scale=1",
        "batch_size, epochs = 96, 6": "batch_size, epochs = 48, 6",
        "steps_per_epoch(train.count, batch_size)": "steps_per_epoch(train.count, batch_size) // 3",
    },
    "python.md": {
        'experiment_config("digits")': f'experiment_config("digits", {{{FEW_CELLS}: 1}})',
        '{"model.num_classes": 10}': f'{{"model.num_classes": 10, {FEW_CELLS}: 2}}',
        "importance_samples=20": "importance_samples=5",
        "range(200)": "range(100)",
        "samples=4": "samples=2",
    },
    "extending.md": {
        "images / 16.0": "images[:480] / 16.0",
        "batch_size=128": "batch_size=32",
        "num_latent_scales=2": "num_latent_scales=1, num_preprocess_cells=1, num_postprocess_cells=1",
        "_per_group=4": "_per_group=4, num_cells_per_group_encoder=1, num_cells_per_group_decoder=1",
    },
    "uses.md": {"images[:20]": "images[:10]"},
}


def assert_same_models(one, others, images):
    expected = numbers_of(one, images)
    for other in others:
        assert_same(numbers_of(other, images), expected)


def numbers_of(model, images):
    return [model.score(images, 2, seed=1), model.generate(2, seed=1)]


def names_after(document):
    """What the cells of the notebook that Jupytext makes of a page define; it has the form that Jupyter opens."""
    assert all(text in (ROOT / "docs" / document).read_text() for text in SMALLER[document])
    notebook = jupytext.read(ROOT / "docs" / document)
    nbformat.validate(notebook)
    names = {"__name__": "notebook"}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            for text, other in SMALLER[document].items():
                cell.source = cell.source.replace(text, other)
            exec(compile(cell.source, f"{document}, cell {number}", "exec"), names)
    return names


def test_the_page_of_keras_keeps_its_promises(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = names_after("keras.md")
    model, history, some, steps = (names[name] for name in ("model", "history", "some", "steps"))
    assert set(history) == {*METRICS, "gradient_norm", "skipped_steps", *(f"val_{name}" for name in METRICS)}
    assert all(len(metric) == 6 and np.all(np.isfinite(metric)) for metric in history.values())
    assert sum(history["skipped_steps"]) == 0 and history["loss"][-1] < 0.6 * history["loss"][0]
    np.testing.assert_allclose(names["bounds"], history["val_loss"], rtol=1e-5)
    assert names["result"]["loss"] == pytest.approx(history["val_loss"][-1], rel=1e-6)
    np.testing.assert_allclose(names["images"][:3], model.generate(3, temperature=0.7, seed=1), atol=1e-5)
    assert np.mean(names["nats"]) < np.mean(model.score(some, 1, seed=1))
    # Saved: the model, the best checkpoint, and a fit that goes on from a file and ends with the same weights.
    assert_same_models(model, [names["loaded"], names["same"]], some)
    best = keras.models.load_model(tmp_path / "best.keras")
    result = best.evaluate(names["test_batches"], return_dict=True, verbose=0)
    assert result["loss"] == pytest.approx(min(history["val_loss"]), rel=1e-6)
    resumed = names["resumed"]
    assert names["done"] == 2 * steps and int(resumed.optimizer.iterations) == 6 * steps
    assert_same(values([*resumed.weights, *resumed.optimizer.variables]), [*model.weights, *model.optimizer.variables])
    # An array and any optimizer; noise of 8 bits can't be described with fewer.
    assert names["own_history"]["learning_rate"] == pytest.approx([0.01, 0.005, 0.0025, 0.00125])
    assert 8.0 < names["bits_per_dim"] < 8.6
    # A trained model goes on from where it was: its losses lie far below the first ones.
    (loss,) = names["trained"].history.history["loss"]
    assert int(names["trained"].optimizer.iterations) == steps and loss < 1.05 * history["loss"][-1]


def test_the_page_of_the_model_in_python_keeps_its_promises(done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = names_after("python.md")
    model, images, labels = (names[name] for name in ("model", "images", "labels"))
    parts = names["parts"]
    kl = np.stack([np.sum(group.kl, axis=(1, 2, 3)) for group in model.infer(images[:50])], axis=1)
    np.testing.assert_allclose(parts.kl, kl, rtol=1e-3)
    assert np.mean(names["nats"]) < np.mean(parts.nelbo)
    (batch,) = names["dataset"].take(1)
    np.testing.assert_allclose(batch[0], model.encode(images[:32])[0], atol=1e-4)
    assert names["features"].shape == (50, 40) and names["accuracy"] > 0.8
    # The loop takes the steps of `fit`.
    model = nvae_tf.NVAE(names["mine"].config, names["mine"].objective, seed=1)
    model.compile(optimizer=nvae_tf.NVAEAdamax(0.01))
    step = tf.function(model.train_step)
    for first in range(0, 360, 18):
        assert step(images[first : first + 18])["skipped_steps"] == 0.0
    assert_same(values(names["mine"].weights), values(model.weights))
    assert_same(values(names["same"].weights), values(model.weights))
    assert "360 images of the test part of digits" in done("train.evaluate", "--workdir=runs/mine", "--metrics=elbo")
    model = names["model"]
    # Gradient descent finds better latents than the encoder.
    by_encoder = model.decode([latent[:1] for latent in model.encode(images[:1], mean=True)])
    assert names["differences"][-1] < np.sum(np.square(by_encoder - images[:1])) < names["differences"][0]
    # Threes that have moved are more like eights.
    eight = images[labels == 8].mean(axis=0)
    distances = [np.square(names["moved"][:, place] - eight).sum() for place in (0, 1)]
    assert distances[1] < distances[0]
    np.testing.assert_allclose(np.sum(names["probabilities"], axis=1), np.ones(10), rtol=1e-5)


def test_the_page_of_extensions_keeps_its_promises(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for setting, kinds in REGISTERED.items():
        monkeypatch.setitem(REGISTERED, setting, dict(kinds))  # the page's classes are no other test's
    monkeypatch.setattr(Signatures, "names", ("sample", "score"))  # test_saved_model.py has the others
    names = names_after("extending.md")
    model, losses = names["model"], names["history"]["loss"]
    assert losses[-1] < losses[0] - 20.0 and model.config.likelihood == "notebook:laplace"
    assert_same_models(model, [names["loaded"], nvae_tf.load("mine.keras")], names["images"][:4])
    assert_same(values(names["loaded"].weights), values(model.weights))
    served = tf.saved_model.load("exports/saved/1").signatures["score"]
    scores = served(image=tf.constant(names["images"][:4]), seed=tf.range(4, dtype=tf.int64) * 2**32 + 1)
    np.testing.assert_allclose(scores["nats"], model.score(names["images"][:4], seed=1, per_group=True).nelbo, 1e-4)
    assert "bits_per_dim" not in scores
    # The commands, with the page's classes in a module of the current folder.
    page = (ROOT / "docs/extending.md").read_text().replace("\\\n", "")
    blocks = re.findall("```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_parts.py").write_text("\n".join(blocks[:2]))
    train, evaluate = re.findall(r"^nvae-(?:train|evaluate) (.*)$", page, re.MULTILINE)
    train = shlex.split(train) + config_flags(
        {"train.steps": 2, "train.evaluate_every_steps": 2, "size": "tiny"}
        | {"model.num_latent_scales": 1, "model.num_groups_per_scale": 1}
    )
    environment = {"cwd": tmp_path, "env": quiet() | {"PYTHONPATH": str(ROOT)}}
    printed = output_of(["-m", "train.main", *train], **environment)
    assert "nats per image (" in printed and "bits/dim" not in printed
    printed = output_of(["-m", "train.evaluate", *shlex.split(evaluate), "--importance_samples=1"], **environment)
    assert "no bits/dim: the likelihood my_parts:laplace is a density" in printed
    assert not [name for name in json.loads((tmp_path / "runs/mine/evaluation.json").read_text()) if "bits" in name]
    refused = run(["-m", "train.evaluate", "--workdir=runs/mine"], **environment)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "model.likelihood = 'my_parts:laplace': not registered here; import my_parts first" in refused.stderr


def test_the_page_of_uses_keeps_its_promises(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = names_after("uses.md")
    upside_down, mirrored, noise = np.split(names["scores"].mahalanobis_p_value, 3)
    assert np.all(noise == np.float32(1 / 361)) and max(np.median(upside_down), np.median(mirrored)) < 0.2
    images, hole = names["images"][:10], names["hole"]

    def error(name, region=slice(None)):
        return np.mean(np.square(names[name] - images)[:, region])

    # Against the image of equal pixels, and gray in the hole.
    assert error("enlarged") < 0.1 * np.var(images)
    assert error("filled", hole) < 0.8 * 0.25 and error("filled", ~hole) < 1e-4
    assert error("from_sums") < 0.5 * np.var(images)
    about, model = names["about"], names["model"]
    assert about["groups"] == 1 and about["cross_entropy"][0] < 2.0 * np.log(2.0)
    np.testing.assert_allclose(names["better"][:3], model.generate(3, prior="reweighted", seed=1), atol=1e-5)
