import contextlib
import shutil
import types

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from nvae_tf.config import ExperimentConfig, TrainConfig
from nvae_tf.models.metrics import RecentMetrics, RecentSteps, StepMetrics
from nvae_tf.optimization import LoweredRate, RunawayGuard
from nvae_tf.training.profiler import StepProfiler
from nvae_tf.training.recovery import Recovery, divergence_sentence, layer_names
from tests.command_fixtures import metrics_rows, saved_steps, tensors
from tests.tiny_model import assert_same, tiny_model

# Puts something else in place of the loss where CONDITION holds; `count` is the number of the step that is tried.
INJECTED = """
import tensorflow as tf
from nvae_tf.models import training_step

original, tried = training_step.training_loss, tf.Variable(0, dtype=tf.int32)

def poisoned(model, images, noise, step, forward):
    count, factor = tried.assign_add(1), model.optimizer._learning_rate.factor
    terms, spectral_norms = original(model, images, noise, step, forward)
    return terms._replace(loss=tf.where({condition}, {value}, terms.loss)), spectral_norms

training_step.training_loss = poisoned
from nvae_tf.train.main import run
run()
"""


@pytest.fixture
def train(commands, tmp_path):
    """`train(condition, value, **settings)` runs a tiny training with the fault; its process and folder."""

    def start(condition, value, **settings):
        script = tmp_path / "injected.py"
        script.write_text(INJECTED.format(condition=condition, value=value))
        settings = {"train__checkpoint_every_steps": 20, "train__refused_steps": 10} | settings
        _, _, *flags = commands.tiny_training(tmp_path / "run", **settings)
        return commands.run([script, *flags]), tmp_path / "run"

    return start


@pytest.mark.slow
def test_divergence_that_nothing_cures(train):
    done, folder = train("count > 30", "float('inf')", train__rollbacks=2)
    assert done.returncode == 2
    assert done.stdout.count("Back to step 20") == 2 and "with 0.25 of the learning rate" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert line.startswith("error: 10 steps in a row were skipped") and "after 2 returns to a checkpoint" in line
    assert "In the last " in line and " spectral norm" in line
    assert {file.name.partition(".")[0] for file in (folder / "checkpoints").glob("step-*")} == {"step-20"}


@pytest.mark.slow
def test_a_single_bad_step_costs_one_step(train):
    # After the 100 steps that the limit is learned from.
    done, folder = train("count == 120", "1e6 * terms.loss", train__steps=150, train__evaluate_every_steps=150)
    assert done.returncode == 0, done.stderr
    assert "Back to" not in done.stdout
    assert [int(value) for name, value in tensors(folder, 150).items() if "optimizer/0/" in name] == [149]


@pytest.mark.slow
def test_divergence_before_the_first_checkpoint_starts_again_with_half_the_rate(train):
    """The same numbers as of a run that has had half the learning rate from its first step on."""
    runs = []
    for condition, changes in (
        ("(count > 5) & (factor > 0.9)", {}),
        ("count < 0", {"optimizer__learning_rate": 1.5e-2, "optimizer__learning_rate_min": 5e-5}),
    ):
        changes |= {"train__checkpoint_every_steps": 1000, "train__steps": 30, "train__sample_every_steps": 30}
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


@pytest.mark.parametrize(
    ("accepted_steps", "or_above", "latest", "place"),
    [
        # Before the guard has a limit, and before the first checkpoint.
        (0, "", 0, "step 0, where the run began. Try "),
        (100, ", or their loss is above the limit of 110", 20, "step 20. Try "),
    ],
)
def test_a_rollback_has_a_number_and_a_reason_and_one_too_many_is_an_error(accepted_steps, or_above, latest, place):
    model, rate, guard = tiny_model(num_latent_scales=1), LoweredRate(None), RunawayGuard()
    for variable, value in zip(guard.variables, (100.0, 0.0, accepted_steps, 10.0), strict=True):
        variable.assign(value)
    model.step_guard = guard
    config = ExperimentConfig(train=TrainConfig(rollbacks=1))
    recovery = Recovery(types.SimpleNamespace(model=model, schedule=rate, config=config))
    reason = f"10 steps in a row were skipped: their loss or gradients are not finite{or_above}"
    assert recovery.next_rollback(latest) == (1, reason)
    rate.rollbacks.assign(1.0)
    with pytest.raises(ValueError) as error:
        recovery.next_rollback(latest)
    assert str(error.value).startswith(f"{reason}, after 1 returns to a checkpoint")
    assert f"No step is remembered. The latest checkpoint is that of {place}" in str(error.value)


GROUPS = ["group 0 (2x2)", "group 1 (4x4)"]
LAYERS = ["stem[0]", "cells[0]", "cells[1]"]


def steps(count=20):
    """Even metrics of steps that were all taken."""
    noise = np.random.default_rng(3).uniform(1.0, 1.02, (count, 5))
    return RecentSteps(np.full(count, True), 4.0 * noise[:, :2], 2.0 * noise[:, 2:])


def test_the_first_that_triples_is_named_and_not_the_largest():
    recent = steps()
    recent.kl_per_group[15:, 1] = 13.0
    recent.kl_per_group[17:, 0] = 1e6
    recent.spectral_norms[12:, 2] = 7.0
    recent.spectral_norms[14:, 0] = 1e4
    sentence = divergence_sentence(recent, GROUPS, LAYERS)
    assert "In the last 20 steps: the KL of group 1 (4x4) grew first, from 4" in sentence
    assert "to 13 nats 4 steps before the last" in sentence
    assert "the spectral norm of cells[1] grew first, from 2" in sentence and "to 7 7 steps before the last" in sentence


def test_what_is_not_finite_has_grown_and_skipped_steps_do_not_say_what_is_usual():
    recent = steps()
    recent.kl_per_group[-1, 0] = np.nan
    sentence = divergence_sentence(recent, GROUPS, LAYERS)
    assert "the KL of group 0 (2x2) grew first" in sentence and "to nan nats at the last step" in sentence
    assert "no spectral norm has tripled, that of" in sentence
    recent.accepted[4:] = False
    recent.kl_per_group[4:, 1] = 50.0
    assert "the KL of group 1 (4x4) grew first, from 4" in divergence_sentence(recent, GROUPS, LAYERS)


def test_what_was_never_finite_has_not_grown_from_nan_to_nan():
    recent = steps()
    recent.accepted[:] = False
    recent.kl_per_group[:, 1] = np.nan
    # Finite once, and usual is NaN.
    recent.spectral_norms[0, 1] = np.nan
    assert divergence_sentence(recent, GROUPS, LAYERS) == (
        "In the last 20 steps: the KL of group 1 (4x4) was nan 19 steps before the last; the spectral norm of cells[0] "
        "was nan 19 steps before the last"
    )


def test_the_model_remembers_its_last_steps_in_order():
    recent = RecentMetrics(2, 1)
    for step in range(recent.STEPS + 7):
        value = tf.constant(float(step))
        metrics = StepMetrics(value, value, tf.stack([value, -value]), tf.reshape(value, [1]), value)
        recent.keep(metrics, tf.constant(step % 2 == 0))
    read = recent.read()
    expected = np.arange(7, recent.STEPS + 7)
    np.testing.assert_array_equal(read.kl_per_group, np.stack([expected, -expected], axis=1))
    np.testing.assert_array_equal(read.spectral_norms[:, 0], expected)
    np.testing.assert_array_equal(read.accepted, expected % 2 == 0)
    recent.forget()
    assert len(recent.read().accepted) == 0


def test_every_layer_has_a_name_of_its_own():
    model = tiny_model()
    names = layer_names(model)
    assert len(names) == len(set(names)) == sum(stack.count for stack in model.convolutions)
    assert "bottom_up/stem[0]" in names


@pytest.fixture
def lines():
    return []


def take_steps(profiler, numbers):
    for number in numbers:
        with profiler.step(number):
            tf.ones(4)


def profiled_steps(folder):
    profiles = []
    for file in sorted(folder.glob("plugins/profile/*/*.xplane.pb")):
        planes = xplane_pb2.XSpace.FromString(file.read_bytes()).planes
        events = [(plane, event) for plane in planes for line in plane.lines for event in line.events]
        stats = [(plane, stat) for plane, event in events for stat in event.stats]
        numbered = (stat for plane, stat in stats if plane.stat_metadata[stat.metadata_id].name == "step_num")
        profiles.append(sorted(stat.int64_value for stat in numbered))
    return profiles


@pytest.mark.parametrize("steps", [(3, 5), (2, 2)])
def test_the_asked_for_steps_are_profiled(tmp_path, lines, steps):
    first, last = steps
    with StepProfiler(steps, tmp_path, lines.append) as profiler:
        take_steps(profiler, range(1, last + 1))
        # Already written: what comes between this step and the next, as an evaluation, is not in it.
        assert profiled_steps(tmp_path) == [[*range(first, last + 1)]]
        take_steps(profiler, range(last + 1, last + 4))
    assert lines == [f"A profile of steps {first} to {last} is in {tmp_path}."]
    assert len(profiled_steps(tmp_path)) == 1


def test_a_run_that_ends_in_between_leaves_what_there_is(tmp_path, lines):
    with pytest.raises(KeyboardInterrupt), StepProfiler((2, 9), tmp_path, lines.append) as profiler:
        take_steps(profiler, range(1, 4))
        with profiler.step(4):
            raise KeyboardInterrupt
    assert lines == [f"A profile of steps 2 to 4 is in {tmp_path}."]
    assert profiled_steps(tmp_path) == [[2, 3, 4]]


@pytest.mark.parametrize(("back_to", "expected"), [(1, [3, 4, 5]), (4, [3, 4, 4, 5, 5, 6, 7])])
def test_a_run_that_goes_back_gets_one_profile(tmp_path, lines, back_to, expected):
    with StepProfiler((3, 7), tmp_path, lines.append) as profiler:
        take_steps(profiler, range(1, 6))
        take_steps(profiler, range(back_to, 10))
    assert profiled_steps(tmp_path) == [expected] and len(lines) == 1


@pytest.mark.parametrize(
    ("problem", "reason"), [("busy", "Another profiler is running. The run goes on."), ("a file in the way", "")]
)
def test_a_profile_that_can_not_be_made_is_reported_once(tmp_path, lines, problem, reason):
    other = contextlib.nullcontext()
    if problem == "busy":
        other = tf.profiler.experimental.Profile(str(tmp_path / "other"))
    else:
        (tmp_path / "run").write_text(problem)
    with other, StepProfiler((2, 3), tmp_path / "run", lines.append) as profiler:
        take_steps(profiler, [*range(1, 5), *range(1, 5)])
    assert len(lines) == 1 and lines[0].startswith(f"No profile of steps 2 to 3: {reason}")
    assert not (tmp_path / "run").is_dir()


def test_a_run_that_never_takes_the_first_step_says_so(tmp_path, lines):
    for steps, numbers in (((), range(1, 4)), ((3, 5), range(4, 8))):
        with StepProfiler(steps, tmp_path, lines.append) as profiler:
            take_steps(profiler, numbers)
    profiler = StepProfiler((10, 20), tmp_path, lines.append)
    profiler.note_steps(1, 30)
    profiler.note_steps(31, 30)
    assert not lines and not list(tmp_path.iterdir())
    profiler.note_steps(1, 9)
    profiler.note_steps(11, 30)
    assert [line.startswith("No profile: train.profile_steps begin with 10") for line in lines] == [True, True]
