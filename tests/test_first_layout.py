"""Files written by the first layout of the project (version 0.1.0, before November 2026's redesign) still load.

`fixtures/first_layout` holds a run of 60 steps with its checkpoint of step 30, the same model as a `.keras` file and as
a SavedModel, and what that version generated, decoded and scored. `run_at_32` is what that version made of step 30.
"""

import shutil

import keras
import numpy as np
import pytest

import nvae_tf
from tests import FIXTURES
from tests.command_fixtures import metrics_rows, tensors, train
from tests.serving.model_servers import PROTOCOLS, served, with_few_warm_ups
from tests.tiny_model import ARCHITECTURE

FILES = FIXTURES / "first_layout"


@pytest.fixture(scope="module")
def expected():
    with np.load(FILES / "expected.npz") as file:
        return dict(file)


@pytest.mark.parametrize("form", ["run folder", pytest.param("keras file", marks=pytest.mark.slow)])
def test_a_model_gives_the_same_numbers(form, expected):
    model = nvae_tf.load(FILES / "run") if form == "run folder" else keras.models.load_model(FILES / "model.keras")
    images = expected["images"]
    close = dict(rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.generate(4, temperature=0.7, seed=1), expected["generated"], **close)
    np.testing.assert_allclose(model.decode(model.encode(images, seed=3)), expected["decoded"], **close)
    np.testing.assert_allclose(model.score(images, importance_samples=3, seed=2), expected["score"], rtol=1e-5)


@pytest.mark.slow
def test_a_saved_model_is_served(expected, tmp_path):
    export = with_few_warm_ups(FILES / "saved_model" / "1", tmp_path, "sample", "encode", "decode")
    with served("old", export.parent) as servers:
        for protocol in PROTOCOLS:
            with servers.client(protocol, "old") as client:
                np.testing.assert_allclose(client.sample(4, seed=1, temperature=0.7), expected["generated"], atol=1e-5)
                decoded = client.decode(client.encode(expected["images"], seed=3))
                np.testing.assert_allclose(decoded, expected["decoded"], atol=1e-5)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path):
    run = shutil.copytree(FILES / "run", tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "best")
    for file in run.glob("checkpoints/step-60.*"):
        file.unlink()
    (run / "checkpoints" / "checkpoint").unlink()
    changes = {"train.seed": 0, "train.checkpoint_every_steps": 2, "train.keep_checkpoints": 15}
    architecture = {f"model.{name}": value for name, value in ARCHITECTURE.items()}
    train(run, **changes, **architecture, optimizer__ema_momentum=0.9, train__sample_every_steps=60)
    # Not of step 60: what batch norm cancels has gradients that are rounding alone, which Adamax makes steps of full
    # size, so that weights of different processors drift apart. What the network computes of them does not.
    before, after = tensors(FILES / "run_at_32", 32), tensors(run, 32)
    names = [name for name in before if name.startswith(("model/", "optimizer/", "averages/"))]
    assert len(names) > 100
    for name in names:
        np.testing.assert_allclose(after[name], before[name], rtol=1e-4, atol=1e-6, err_msg=name)
    for before, after in zip(metrics_rows(FILES / "run"), metrics_rows(run), strict=True):
        tested = [name for name in before if name.startswith("test_")]
        assert [after[name] for name in tested] == pytest.approx([before[name] for name in tested], rel=1e-5)
