"""Runs with injected faults: a single bad step, trouble that smaller steps cure, and trouble that nothing cures."""

import csv
import shutil

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf

# Puts something else in place of the loss where CONDITION holds; `count` is the number of the step that is tried.
INJECTED = """
import tensorflow as tf
from nvae_tf.models import NVAE

original, tried = NVAE.training_loss, tf.Variable(0, dtype=tf.int32)

def poisoned(self, images, noise, step, forward):
    count, factor = tried.assign_add(1), self.optimizer._learning_rate.factor
    {also}
    found = original(self, images, noise, step, forward)
    return found._replace(loss=found.loss._replace(loss=tf.where({condition}, {value}, found.loss.loss)))

NVAE.training_loss = poisoned
from nvae_tf.train.main import run
run()
"""


@pytest.fixture
def train(commands, tmp_path):
    """`train(condition, value, **settings)` runs a tiny training with the fault; its process and folder."""

    def start(condition, value, also="", **settings):
        script = tmp_path / "injected.py"
        script.write_text(INJECTED.format(condition=condition, value=value, also=also))
        settings = {"train__checkpoint_every_steps": 20, "train__refused_steps": 10} | settings
        _, _, *flags = commands.tiny_training(tmp_path / "run", **settings)
        return commands.run([script, *flags]), tmp_path / "run"

    return start


def saved_steps(folder):
    return sorted(file.stem for file in (folder / "checkpoints").glob("step-*.index"))


def values_of(folder, step, part):
    """The tensors of a checkpoint whose name contains `part`."""
    reader = tf.train.load_checkpoint(str(folder / "checkpoints" / f"step-{step}"))
    return [reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if part in name]


@pytest.mark.slow
def test_trouble_that_smaller_steps_cure(train):
    done, folder = train("(count > 30) & (factor > 0.9)", "float('nan')")
    assert done.returncode == 0, done.stderr
    assert "10 steps in a row were refused" in done.stdout
    assert "Back to step 20, with 0.5 of the learning rate." in done.stdout
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["20", "40", "60"]
    rates = [float(row["learning_rate"]) for row in rows]
    assert rates[1] < 0.7 * rates[0]


@pytest.mark.slow
def test_trouble_that_nothing_cures(train):
    done, folder = train("count > 30", "float('inf')", train__rollbacks=2)
    assert done.returncode == 2
    assert done.stdout.count("Back to step 20") == 2 and "with 0.25 of the learning rate" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith("error: 10 steps in a row were refused") and "after 2 returns to a checkpoint" in line
    assert {file.name.partition(".")[0] for file in (folder / "checkpoints").glob("step-*")} == {"step-20"}


@pytest.mark.slow
def test_the_report_names_what_grew_first(train):
    grows = (
        "norm = self.top_down.scales[1].combiners.log_norm; norm.assign(norm + 0.3 * tf.cast(count > 24, tf.float32))"
    )
    done, _ = train("count > 30", "float('inf')", grows, train__rollbacks=0)
    assert done.returncode == 2
    assert "the spectral norm of top_down/scales/1/combiners[0] grew first, from" in done.stderr
    assert "after 0 returns to a checkpoint" in done.stderr and "In the last 40 steps: " in done.stderr


@pytest.mark.slow
def test_a_single_bad_step_costs_one_step(train):
    # After the 100 steps that the limit is learned from.
    done, folder = train("count == 120", "1e6 * found.loss.loss", train__steps=150, train__evaluate_every_steps=150)
    assert done.returncode == 0, done.stderr
    assert "Back to" not in done.stdout
    assert max(int(value) for value in values_of(folder, 150, "optimizer/0/")) == 149


@pytest.mark.slow
def test_divergence_before_the_first_checkpoint_starts_again_with_half_the_rate(train):
    """The same numbers as of a run that has had half the learning rate from its first step on."""
    found = []
    for condition, changes in (
        ("(count > 5) & (factor > 0.9)", {}),
        ("count < 0", {"optimizer__learning_rate": 1.5e-2, "optimizer__learning_rate_min": 5e-5}),
    ):
        done, folder = train(condition, "float('nan')", train__checkpoint_every_steps=1000, **changes)
        assert done.returncode == 0, done.stderr
        assert ("Back to step 0, with 0.5 of the learning rate." in done.stdout) == (not changes)
        assert saved_steps(folder) == ["step-60"]
        reader = tf.train.load_checkpoint(str(folder / "checkpoints" / "step-60"))
        names = [name for name in reader.get_variable_to_shape_map() if name.startswith(("model/", "optimizer/"))]
        found.append({name: reader.get_tensor(name) for name in names})
        shutil.rmtree(folder)
    assert set(found[0]) == set(found[1]) and len(found[0]) > 50
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)


@pytest.mark.slow
def test_a_far_too_large_learning_rate_leaves_the_first_weights_and_says_what_is_true(commands, tmp_path):
    changes = {"optimizer__learning_rate": 1000.0, "train__rollbacks": 1, "train__evaluate_every_steps": 1000}
    done = commands.run(commands.tiny_training(tmp_path / "run", **changes))
    assert done.returncode == 2 and done.stdout.count("Back to step 0") == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "their loss or gradients are not finite, after 1 returns" in line
    assert "The latest checkpoint is that of step 0, where the run began." in line
    assert "nan to nan" not in line and "limit of inf" not in line
    assert saved_steps(tmp_path / "run") == ["step-0"]
    with pytest.warns(UserWarning, match="step-0 is used, the weights before the first training step"):
        loaded = nvae_tf.load(tmp_path / "run")
    assert all(np.isfinite(weight.numpy()).all() for weight in loaded.weights)
