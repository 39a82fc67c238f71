"""Training runs of models that are conditional on classes."""

import json
import shutil

import pytest

from nvae_tf.reports.evaluate import evaluate_run
from nvae_tf.runs.run_folder import RunFolder, read_run_config
from nvae_tf.training.run import run_of_folder
from nvae_tf.training.strategy import Replicas
from tests.command_fixtures import assert_same_tensors


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
