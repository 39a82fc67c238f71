import dataclasses
import json

import numpy as np

from nvae_tf.config import INTERVALS, ExperimentConfig, OptimizerConfig, TrainConfig, resolve_lengths
from nvae_tf.runs.new_model import model_for_training
from nvae_tf.runs.run_folder import open_for_training, read_run_config
from tests.tiny_model import tiny_config


def lengths(config):
    intervals = {getattr(config.train, name) for name in INTERVALS}
    return round(config.optimizer.warmup_epochs, 9), *sorted(intervals)


def test_what_is_not_set_scales_with_the_run():
    for steps_per_epoch, total_steps, expected in (
        (100, 40_000, (5.0, 1000)),
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
