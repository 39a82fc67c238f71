import dataclasses
import json
import shutil

import numpy as np
import pytest

from nvae_tf.config import INTERVALS, ExperimentConfig, OptimizerConfig, TrainConfig, resolve_lengths
from nvae_tf.reports.evaluate import evaluate_run
from nvae_tf.runs.new_model import model_for_training
from nvae_tf.runs.run_folder import RunFolder, open_for_training, read_run_config
from nvae_tf.training.run import run_of_folder
from nvae_tf.training.strategy import Replicas
from tests.command_fixtures import assert_same_tensors
from tests.tiny_model import tiny_config


def lengths(config):
    intervals = {getattr(config.train, name) for name in INTERVALS}
    return round(config.optimizer.warmup_epochs, 9), *sorted(intervals)


def test_what_is_not_set_scales_with_the_run():
    for steps_per_epoch, total_steps, expected in (
        (100, 10_000, (5.0, 1000)),
        # A tenth of the run is shorter than what is usual.
        (100, 4_000, (4.0, 400)),
        (100, 105, (0.1, 10)),
        (7, 25, (0.285714286, 10)),
        # No warm-up of one step; no ten evaluations of a run of some steps.
        (100, 19, (0.0, 10)),
        (1, 4, (0.0, 4)),
    ):
        config = resolve_lengths(ExperimentConfig(), steps_per_epoch, total_steps)
        assert lengths(config) == expected and config.objective.total_steps == total_steps
    train = TrainConfig(evaluate_every_steps=70, sample_every_steps=80, checkpoint_every_steps=90)
    config = ExperimentConfig(optimizer=OptimizerConfig(warmup_epochs=0.0), train=train)
    assert lengths(resolve_lengths(config, 10, 100)) == (0.0, 70, 80, 90)


def test_a_run_that_goes_on_keeps_its_settings(tmp_path):
    begun = resolve_lengths(ExperimentConfig(), 10, 100)
    assert lengths(begun) == (1.0, 10)
    # An older version wrote these, whatever the length.
    old = dataclasses.replace(begun, optimizer=OptimizerConfig(warmup_epochs=5.0))
    old = dataclasses.replace(old, train=TrainConfig(**dict.fromkeys(INTERVALS, 1000)))
    folder = open_for_training(tmp_path / "old", old)
    before = folder.config_file.read_bytes()
    now = resolve_lengths(ExperimentConfig(), 10, 100, read_run_config(folder))
    assert now == old and open_for_training(folder.path, now) and folder.config_file.read_bytes() == before
    # Longer: its warm-up may be over, but it need not be evaluated as often.
    folder = open_for_training(tmp_path / "new", begun)
    longer = resolve_lengths(ExperimentConfig(), 10, 4000, read_run_config(folder))
    assert lengths(longer) == (1.0, 400) and open_for_training(folder.path, longer)
    assert json.loads(folder.config_file.read_text())["train"]["evaluate_every_steps"] == 400


def test_another_seed_gives_other_weights_and_draws():
    configs = [ExperimentConfig(model=tiny_config(), train=TrainConfig(seed=seed)) for seed in (3, 4)]
    one, other = (model_for_training(config, 10, 100).model for config in configs)
    assert (one.seed, other.seed) == (3, 4)
    assert np.any(one.convolutions[0].kernel != other.convolutions[0].kernel)


@pytest.mark.slow
def test_a_conditional_run_continued_is_the_same_run_and_other_classes_are_refused(commands, conditional_run, tmp_path):
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
