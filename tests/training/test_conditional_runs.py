"""Training runs of models that are conditional on classes."""

import json
import shutil

import numpy as np
import pytest

from nvae_tf.reports.evaluate import evaluate_run
from nvae_tf.runs.run_folder import RunFolder, read_run_config
from nvae_tf.training.run import run_of_folder
from nvae_tf.training.strategy import Replicas
from tests.command_fixtures import assert_same_tensors, metrics_rows, tensors


@pytest.mark.slow
def test_continued_it_is_the_same_run_and_other_classes_are_refused(commands, conditional_run, tmp_path):
    workdir = shutil.copytree(conditional_run, tmp_path / "run")
    for file in workdir.glob("checkpoints/step-60.*"):
        file.unlink()
    assert ", from step 50 on" in commands.train(workdir, **commands.CONDITIONAL)
    assert_same_tensors(conditional_run, workdir, 60)
    counts = json.loads((workdir / "images.json").read_text())
    assert counts["class_names"] == [*"0123456789"] and counts["a_step"] == 100
    # With other classes it would be another run, and another score.
    (workdir / "images.json").write_text(json.dumps(counts | {"class_names": [*"012345678", "nine"]}))
    folder = RunFolder(workdir)
    with pytest.raises(ValueError, match="bundled digits: not the classes .*: class 9 was 'nine' and is now '9'"):
        run_of_folder(read_run_config(folder), folder, Replicas())
    with pytest.raises(ValueError, match="class 9 was 'nine' and is now '9'"):
        evaluate_run(workdir, ["elbo"])


@pytest.mark.slow
def test_two_replicas_with_all_that_saves_memory_take_as_many_images_a_step(commands, conditional_run, tmp_path):
    workdir = tmp_path / "run"
    # Each microbatch has its own batch statistics: those of two replicas are not those of one device.
    settings = {"train.replicas": 2, "train.batch_size": 50, "train.precision": "mixed_float16"}
    settings |= {"train.recompute": "all"}
    commands.output_of(commands.tiny_training(workdir, **commands.CONDITIONAL | settings))
    assert (workdir / "images.json").read_text() == (conditional_run / "images.json").read_text()
    assert tensors(workdir, 60).keys() > tensors(conditional_run, 60).keys()  # the scale of the loss is there too
    (expected, actual) = (metrics_rows(folder)[-1] for folder in (conditional_run, workdir))
    assert actual["step"] == 60 and all(np.isfinite(value) for value in actual.values())
    assert actual["test_nelbo_nats"] == pytest.approx(expected["test_nelbo_nats"], rel=0.15)
