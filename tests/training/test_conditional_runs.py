"""Training runs of models that are conditional on classes."""

import json
import signal

import numpy as np
import pytest

from nvae_tf.evaluation.evaluate import evaluate_run
from nvae_tf.training.run import run_of_folder
from nvae_tf.training.run_folder import RunFolder, read_run_config
from nvae_tf.training.strategy import ONE_DEVICE
from tests.command_fixtures import assert_same_tensors, metrics_rows, tensors

SETTINGS = {"data.labels": True, "train.accumulate_steps": 2}
SETTINGS |= {"model.num_latent_scales": 1, "model.num_groups_per_scale": 2}


@pytest.fixture(scope="module")
def whole(commands, tmp_path_factory):
    """A run that was not interrupted."""
    workdir = tmp_path_factory.mktemp("conditional") / "whole"
    commands.output_of(commands.tiny_training(workdir, **SETTINGS))
    return workdir


@pytest.mark.slow
def test_interrupted_and_continued_is_the_same_run(commands, whole, tmp_path):
    workdir = tmp_path / "run"
    command = commands.tiny_training(workdir, **SETTINGS)
    code, output = commands.run_until_training(command, signal.SIGINT)
    assert code == 130 and "interrupted at step" in output
    assert ", from step " in commands.output_of(command)
    assert_same_tensors(whole, workdir, 60)
    counts = json.loads((workdir / "images.json").read_text())
    assert counts["class_names"] == [*"0123456789"] and counts["a_step"] == 100
    # With other classes it would be another run, and another score.
    (workdir / "images.json").write_text(json.dumps(counts | {"class_names": [*"012345678", "nine"]}))
    folder = RunFolder(workdir)
    with pytest.raises(ValueError, match="bundled digits: not the classes .*: class 9 was 'nine' and is now '9'"):
        run_of_folder(read_run_config(folder), folder, ONE_DEVICE)
    with pytest.raises(ValueError, match="class 9 was 'nine' and is now '9'"):
        evaluate_run(workdir, ["elbo"])


@pytest.mark.slow
def test_two_replicas_train_with_as_many_images_a_step(commands, whole, tmp_path):
    workdir = tmp_path / "run"
    settings = SETTINGS | {"train.replicas": 2, "train.batch_size": 50}
    commands.output_of(commands.tiny_training(workdir, **settings))
    assert (workdir / "images.json").read_text() == (whole / "images.json").read_text()
    assert tensors(workdir, 60).keys() == tensors(whole, 60).keys()
    (expected, found) = (metrics_rows(folder)[-1] for folder in (whole, workdir))
    assert found["step"] == 60 and all(np.isfinite(value) for value in found.values())
    assert found["test_nelbo_nats"] == pytest.approx(expected["test_nelbo_nats"], rel=0.15)
