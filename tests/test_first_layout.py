"""Files written by the first layout of the project (version 0.1.0, before November 2026's redesign) still load.

`fixtures/first_layout` holds a run of 60 steps with its checkpoint of step 30, the same model as a `.keras` file and as
a SavedModel, and what that version generated, decoded and scored.
"""

import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import nvae_tf

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = ROOT / "tests" / "fixtures" / "first_layout"
SETTINGS = """
--config.model.num_latent_scales=2 --config.model.num_groups_per_scale=1 --config.model.num_latent_per_group=2
--config.model.num_channels_encoder=2 --config.model.num_channels_decoder=2 --config.model.num_preprocess_blocks=0
--config.model.num_postprocess_blocks=0 --config.model.num_cells_per_group_encoder=1
--config.model.num_cells_per_group_decoder=1 --config.optimizer.warmup_epochs=1 --config.optimizer.ema_momentum=0.9
--config.train.batch_size=100 --config.train.steps=60 --config.train.checkpoint_every_steps=30
--config.train.evaluate_every_steps=20 --config.train.sample_every_steps=60
"""


@pytest.fixture(scope="module")
def expected():
    with np.load(FILES / "expected.npz") as file:
        return dict(file)


@pytest.mark.parametrize("form", ["run folder", "keras file"])
def test_a_model_gives_the_same_numbers(form, expected):
    model = nvae_tf.load(FILES / "run") if form == "run folder" else keras.models.load_model(FILES / "model.keras")
    images = expected["images"]
    close = dict(rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(model.generate(4, temperature=0.7, seed=1), expected["generated"], **close)
    np.testing.assert_allclose(model.decode(model.encode(images, seed=3)), expected["decoded"], **close)
    np.testing.assert_allclose(model.score(images, importance_samples=3, seed=2), expected["score"], rtol=1e-5)


def test_a_saved_model_passes_its_own_check():
    command = [sys.executable, "-m", "export.verify", str(FILES / "saved_model" / "1")]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr


def test_an_interrupted_run_goes_on_to_the_same_weights(tmp_path):
    run = shutil.copytree(FILES / "run", tmp_path / "run")
    before = tf.train.load_checkpoint(str(FILES / "run" / "checkpoints" / "step-60"))
    shutil.rmtree(run / "checkpoints" / "best")
    for file in run.glob("checkpoints/step-60.*"):
        file.unlink()
    (run / "checkpoints" / "checkpoint").unlink()
    command = [sys.executable, "-m", "train.main", "--config=configs/digits.py", f"--workdir={run}", *SETTINGS.split()]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    after = tf.train.load_checkpoint(str(run / "checkpoints" / "step-60"))
    names = [
        name for name in before.get_variable_to_shape_map() if name.startswith(("model/", "optimizer/", "averages/"))
    ]
    assert names
    for name in names:
        np.testing.assert_allclose(after.get_tensor(name), before.get_tensor(name), rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_a_keras_file_is_read_in_a_process_that_has_only_imported_the_model():
    program = (
        f"import keras; from nvae_tf import NVAE; print(keras.models.load_model({str(FILES / 'model.keras')!r}).config)"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0 and process.stdout.startswith("ModelConfig("), process.stderr
