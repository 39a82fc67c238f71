import dataclasses
import json
import re
import shutil
import types

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from nvae_tf.config import INTERVALS, ExperimentConfig, OptimizerConfig, TrainConfig, resolve_lengths
from nvae_tf.models.training_step import RecentMetrics, RecentSteps, StepMetrics
from nvae_tf.optimization import RunawayGuard
from nvae_tf.presets import experiment_config
from nvae_tf.reports.evaluate import evaluate_run
from nvae_tf.runs.loading import model_for_training
from nvae_tf.runs.run_folder import RunFolder, open_for_training, read_run_config
from nvae_tf.training.loop import TrainingLoop, growth_in, reason_of_skips
from nvae_tf.training.run import run_of_folder
from nvae_tf.training.strategy import Replicas
from tests import refuses
from tests.command_fixtures import assert_same_tensors, metrics_rows, saved_steps, tensors
from tests.tiny_model import assert_same, tiny_config, tiny_model


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


def test_a_new_run_has_no_warm_up_of_one_step(tmp_path):
    config, folder = experiment_config("digits", {"optimizer.warmup_epochs": 0.1}), RunFolder(tmp_path)
    refuses("optimizer.warmup_epochs = 0.1: a warm-up of one step", run_of_folder, config, folder, Replicas())


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


# Puts something else in place of the loss where CONDITION holds; `count` is the number of the step that is tried.
INJECTED = """
import tensorflow as tf
from nvae_tf.models import training_step

original, tried = training_step.loss_terms, tf.Variable(0, dtype=tf.int32)

def poisoned(model, images, noise, step, forward, **how):
    count, factor = tried.assign_add(1), model.optimizer._learning_rate.factor
    metrics, *others = original(model, images, noise, step, forward, **how)
    return metrics._replace(loss=tf.where({condition}, {value}, metrics.loss)), *others

training_step.loss_terms = poisoned
from nvae_tf.training.loop import TrainingLoop
signal_at = TrainingLoop.signal_at
TrainingLoop.signal_at = lambda loop, step: 2 if step == {stop} else signal_at(loop, step)
from nvae_tf.train.main import run
run()
"""


@pytest.fixture
def train(commands, tmp_path):
    """`train(condition, value, **settings)` runs a tiny training with the fault; its process and folder."""

    def start(condition, value, stop=-1, **settings):
        script = tmp_path / "injected.py"
        script.write_text(INJECTED.format(condition=condition, value=value, stop=stop))
        # Scored at the end alone: a process that is stopped makes no graph for that.
        never = dict.fromkeys(("train__evaluate_every_steps", "train__sample_every_steps"), 1000)
        settings = never | {"train__checkpoint_every_steps": 20, "train__refused_steps": 10} | settings
        settings |= {"model__squeeze_excite": False}
        _, _, *flags = commands.tiny_training(tmp_path / "run", **settings)
        return commands.run([script, *flags]), tmp_path / "run"

    return start


@pytest.mark.slow
def test_divergence_that_nothing_cures(train):
    done, folder = train("count > 30", "float('inf')", train__rollbacks=2, model__num_groups_per_scale=1)
    assert done.returncode == 2
    assert done.stdout.count("Back to step 20") == 2 and "with 0.25 of the learning rate" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith("error: 10 steps in a row were skipped") and "after 2 returns to a checkpoint" in line
    assert "what grew first: " in line
    assert {file.name.partition(".")[0] for file in (folder / "checkpoints").glob("step-*")} == {"step-20"}


@pytest.mark.slow
def test_divergence_before_the_first_checkpoint_starts_again_with_half_the_rate(train):
    """The same numbers as of a run that has had half the learning rate from its first step on."""
    runs = []
    for condition, changes in (
        ("(count > 5) & (factor > 0.9)", {}),
        ("count < 0", {"optimizer__learning_rate": 1.5e-2, "optimizer__learning_rate_min": 5e-5}),
    ):
        changes |= {"train__checkpoint_every_steps": 1000, "train__steps": 30, "train__evaluate_every_steps": 20}
        done, folder = train(condition, "float('nan')", **changes)
        assert done.returncode == 0, done.stderr
        assert ("Back to step 0, with 0.5 of the learning rate." in done.stdout) == ("factor" in condition)
        assert saved_steps(folder / "checkpoints") == [30]
        assert [row["step"] for row in metrics_rows(folder)] == [20, 30]
        numbers = tensors(folder, 30).items()
        runs.append({name: value for name, value in numbers if name.startswith(("model/", "optimizer/"))})
        shutil.rmtree(folder)
    assert len(runs[0]) > 50
    assert_same(*runs)


@pytest.mark.slow
def test_an_interruption_among_skipped_steps_does_not_show(train, tmp_path):
    fault = "(step >= 30) & (factor > 0.9)", "float('nan')"
    done, folder = train(*fault)
    assert done.returncode == 0 and "Back to step 20" in done.stdout
    folder.rename(tmp_path / "whole")
    done, folder = train(*fault, stop=35)
    assert done.returncode == 130 and "interrupted at step 20 by SIGINT; checkpoint saved" in done.stdout
    assert train(*fault)[0].returncode == 0
    assert_same_tensors(tmp_path / "whole", folder, 60)


def test_the_reason_of_skipped_steps():
    model = tiny_model(num_latent_scales=1)
    model.step_guard = RunawayGuard()
    for variable, value in zip(model.step_guard.variables, (100.0, 0.0, 100, 10.0), strict=True):
        variable.assign(value)
    reason = reason_of_skips(model)
    assert reason.startswith("10 steps in a row were skipped") and reason.endswith("limit of 110")
    assert growth_in(model) == "what grew first: no KL or spectral norm of the latest steps"


def test_the_first_that_triples_is_named_and_skipped_steps_do_not_say_what_is_usual(monkeypatch):
    model = tiny_model()
    layers = [stack for stack in model.convolutions for _ in range(stack.count)]
    stem = layers.index(model.bottom_up.stem)
    noise = np.random.default_rng(3).uniform(1.0, 1.02, (20, 2 + len(layers)))
    recent = RecentSteps(np.full(20, True), 4.0 * noise[:, :2], 2.0 * noise[:, 2:])
    monkeypatch.setattr(RecentMetrics, "read", lambda self: recent)
    recent.kl_per_group[15:, 1] = np.nan
    recent.kl_per_group[17:, 0] = 1e6
    recent.spectral_norms[12:, stem] = 7.0
    recent.spectral_norms[14:, stem - 1] = 1e4
    clause = growth_in(model)
    assert re.search(r"the KL of group 1 \(4x4\) from 4\S* to nan, 4 steps before the last and", clause)
    assert re.search(r"spectral norm of bottom_up/stem\[0\] from 2\S* to 7, 7 steps before the last$", clause)
    recent.accepted[4:] = False
    recent.kl_per_group[4:, 1] = 50.0
    assert "the KL of group 1 (4x4) from 4" in growth_in(model)
    # Neither the jitter of a collapsed group nor an earlier outlier has grown.
    recent.accepted[:] = True
    recent.kl_per_group[:] = 1e-5, 4.0
    recent.kl_per_group[15, 0], recent.kl_per_group[2, 1], recent.kl_per_group[17:, 1] = 4e-5, 50.0, 20.0
    assert "the KL of group 1 (4x4) from 4 to 20, 2 steps before the last" in growth_in(model)


def test_the_model_remembers_its_last_steps_in_order():
    recent = RecentMetrics(2, 1)
    for step in range(recent.STEPS + 7):
        value = tf.constant(float(step))
        metrics = StepMetrics(value, value, tf.stack([value, -value]), tf.reshape(value, [1]), value)
        recent.record(metrics, tf.constant(step % 2 == 0))
    read = recent.read()
    expected = np.arange(7, recent.STEPS + 7)
    np.testing.assert_array_equal(read.kl_per_group, np.stack([expected, -expected], axis=1))
    np.testing.assert_array_equal(read.spectral_norms[:, 0], expected)
    np.testing.assert_array_equal(read.accepted, expected % 2 == 0)
    recent.forget()
    assert len(recent.read().accepted) == 0


def test_profile_steps_are_profiled_also_where_a_run_goes_back_and_not_where_it_begins_later(tmp_path):
    config = ExperimentConfig(train=TrainConfig(profile_steps=(3, 5)))
    run, folder = types.SimpleNamespace(config=config, replicas=Replicas()), RunFolder(tmp_path)
    loop = TrainingLoop(folder, run, *[None] * 4)
    for steps, profiled in (((4, 5, 6), []), ((1, 2, 3, 4, 3, 4, 5, 6), [3, 3, 4, 4, 5])):
        for step in steps:
            with loop.profiled(step):
                tf.ones(4)
        assert profiled_steps(folder.tensorboard) == profiled


def profiled_steps(folder):
    numbers = []
    for file in folder.glob("plugins/profile/*/*.xplane.pb"):
        for plane in xplane_pb2.XSpace.FromString(file.read_bytes()).planes:
            stats = (stat for line in plane.lines for event in line.events for stat in event.stats)
            named = ((plane.stat_metadata[stat.metadata_id].name, stat.int64_value) for stat in stats)
            numbers += [value for name, value in named if name == "step_num"]
    return sorted(numbers)
