"""Training on several replicas and in several processes: the same numbers as on one device, whatever happens."""

import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import numpy as np
import pytest
import tensorflow as tf

from nvae_tf.config import ExperimentConfig
from nvae_tf.models import NVAE
from nvae_tf.training.loop import TrainingLoop
from nvae_tf.training.stopping import StopRequest
from nvae_tf.training.strategy import Replicas
from nvae_tf.training.worker_environments import tf_configs
from tests.tiny_model import tiny_config

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = {
    "train__steps": 5,
    "train__batch_size": 16,
    "optimizer__warmup_epochs": 2,
    "train__log_every_steps": 100,
    "train__evaluate_every_steps": 5,
    "train__sample_every_steps": 5,
    "model__num_latent_scales": 2,
    "model__num_channels_encoder": 4,
    "model__num_channels_decoder": 4,
    "objective__kl_anneal_portion": 0.9,
}
TWO_PARTS = {"train__replicas": 2, "train__batch_size": 8}
# Alone on its replica a step knows its own gradients only, see `StepMetrics.gradient_norm`.
OF_ONE_REPLICA = "gradient_norm"


def tensors(workdir, step):
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / f"step-{step}"))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names if OF_ONE_REPLICA not in name}


def assert_close_runs(one, other, step, tolerance=1e-5):
    expected, found = tensors(one, step), tensors(other, step)
    assert set(found) == set(expected) and len(found) > 100
    for name, value in expected.items():
        if name.startswith(("model/", "averages/")):
            np.testing.assert_allclose(found[name], value, atol=tolerance, rtol=0.0, err_msg=name)
        elif name.startswith("metrics/"):
            np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
        elif name.startswith("optimizer/"):
            # The moments show also gradients of a wrong size, which Adamax hides.
            size = max(1.0, float(np.max(np.abs(value), initial=0.0)))
            np.testing.assert_allclose(found[name] / size, value / size, atol=1e-3, err_msg=name)


def finished(commands, workdir, **changes):
    process = commands.run(commands.tiny_training(workdir, **SETTINGS | changes))
    assert process.returncode == 0, process.stderr
    return workdir


def launched(arguments, *flags):
    """Two worker processes of a training, started by `train.launch`."""
    _, _, *rest = map(str, arguments)
    command = [sys.executable, "-m", "train.launch", "--processes=2", *flags, "--", *rest]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )


def workers_of(launcher):
    """The process ids of the workers, in order; found where a person would look, in the list of processes."""
    found = {}
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            environment = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
            is_worker = b"train.main" in (entry / "cmdline").read_bytes()
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        setting = [value for value in environment if value.startswith("TF_CONFIG=")]
        if is_worker and setting and parent == launcher.pid:
            found[setting[0].rpartition('"index": ')[2]] = int(entry.name)
    return [found[index] for index in sorted(found)]


@pytest.fixture(scope="module")
def on_one_device(commands, tmp_path_factory):
    return finished(commands, tmp_path_factory.mktemp("replicas") / "one", train__strategy="one_device")


@pytest.mark.slow
def test_two_replicas_do_what_one_device_does(commands, on_one_device, tmp_path):
    workdir = finished(commands, tmp_path / "two", train__strategy="mirrored", **TWO_PARTS)
    assert_close_runs(on_one_device, workdir, 5)
    assert (workdir / "samples" / "step-00000005.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"model__cell_set": "res_elu"},
        {"train__recompute": "all", "optimizer__ema_momentum": 0.5, "model__num_flows": 1},
    ],
    ids=["scales from the first batch", "recomputed, averaged, with flows"],
)
def test_with_other_settings_too(commands, tmp_path, changes):
    one = finished(commands, tmp_path / "one", **changes)
    two = finished(commands, tmp_path / "two", **changes | TWO_PARTS)
    assert_close_runs(one, two, 5)


@pytest.mark.slow
def test_parts_of_a_batch_on_two_replicas(commands, tmp_path):
    # Each part has its own batch statistics: those of two replicas' first parts are not those of one device's.
    alone = finished(commands, tmp_path / "one", train__accumulate_steps=2)
    both = finished(commands, tmp_path / "two", train__accumulate_steps=2, **TWO_PARTS)
    assert set(tensors(alone, 5)) == set(tensors(both, 5))
    losses = [tensors(run, 5)["metrics/loss/0/.ATTRIBUTES/VARIABLE_VALUE"] for run in (alone, both)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)


@pytest.mark.slow
def test_half_precision_on_two_replicas(commands, tmp_path):
    workdir = finished(commands, tmp_path / "two", train__precision="mixed_float16", train__steps=30, **TWO_PARTS)
    assert all(np.all(np.isfinite(value)) for value in tensors(workdir, 30).values())


@pytest.mark.slow
def test_two_processes_do_what_one_device_does(commands, on_one_device, tmp_path):
    workdir = tmp_path / "processes"
    launcher = launched(commands.tiny_training(workdir, **SETTINGS | {"train__batch_size": 8}))
    output, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, output
    assert_close_runs(on_one_device, workdir, 5)
    assert "has all its 5 steps" in (tmp_path / "processes-logs" / "worker-1.log").read_text()


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_replicas(commands, tmp_path):
    workdir = tmp_path / "run"
    # What depends on the length of a run is the same after three steps and after five.
    even = {"objective__kl_anneal_portion": 0.0, "objective__kl_constant_portion": 0.0, "optimizer__warmup_epochs": 2}
    finished(commands, workdir, train__steps=3, **even)
    whole = finished(commands, tmp_path / "whole", **even)
    wrong = commands.run(commands.tiny_training(workdir, **SETTINGS | even | {"train__replicas": 2}))
    assert wrong.returncode == 2 and "makes 32 images a step; this run was begun with 16" in wrong.stderr
    finished(commands, workdir, **even, **TWO_PARTS)
    assert_close_runs(whole, workdir, 5)


@pytest.mark.slow
def test_a_worker_that_ends_before_the_first_step_is_one_line(commands, tmp_path):
    """The chief refuses the folder: the other, which waits for it, ends within seconds and says why."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    workers = []
    for setting in tf_configs(2):
        command = [sys.executable, *map(str, commands.tiny_training(tmp_path / "run", **SETTINGS))]
        environment = os.environ | {"TF_CONFIG": setting}
        workers.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment))
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [2, 75], errors
    (line,) = [line for line in errors[1].splitlines() if line.startswith("error:")]
    assert "another worker has ended or can't be reached" in line and "Traceback" not in errors[1]


def test_a_signal_that_comes_while_workers_agree_is_not_lost():
    """It comes when this worker has said already that it was told nothing."""
    stop = StopRequest()

    class Slow(Replicas):
        def agreed_signal(self, number):
            answer = number
            stop.signal_number = signal.SIGTERM
            return answer

    run = types.SimpleNamespace(
        replicas=Slow(tf.distribute.get_strategy()), config=ExperimentConfig(), model=NVAE(tiny_config())
    )
    loop = TrainingLoop(run, None, None, None, stop, None, False)
    assert loop.agreed_signal(0) is None
    assert loop.agreed_signal(10) == signal.SIGTERM


@pytest.mark.slow
def test_two_workers_killed_three_times_end_as_if_nothing_had_happened(commands, tmp_path):
    """SIGKILL at a random moment, to one worker or the other: bit for bit the run that was not touched."""
    settings = SETTINGS | {
        "train__steps": 60,
        "train__batch_size": 8,
        "train__checkpoint_every_steps": 5,
        "train__deterministic": True,
    }
    whole = launched(commands.tiny_training(tmp_path / "whole", **settings))
    output, _ = whole.communicate(timeout=600)
    assert whole.returncode == 0, output
    command = commands.tiny_training(tmp_path / "killed", **settings)
    moments = np.random.default_rng()
    for victim in (1, 0, 1):
        launcher = launched(command)
        for line in launcher.stdout:
            if line.startswith("step "):
                break
        delay = moments.uniform(0.0, 0.5)
        time.sleep(delay)
        for process in workers_of(launcher)[victim : victim + 1]:
            os.kill(process, signal.SIGKILL)
        launcher.communicate(timeout=120)
        assert launcher.returncode in (0, 137), f"after {delay} s"
    launcher = launched(command)
    output, _ = launcher.communicate(timeout=600)
    assert launcher.returncode == 0, output
    expected, found = tensors(tmp_path / "whole", 60), tensors(tmp_path / "killed", 60)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.slow
def test_sigterm_to_the_launcher_stops_both_with_one_checkpoint(commands, tmp_path):
    launcher = launched(
        commands.tiny_training(
            tmp_path / "run", **SETTINGS | {"train__steps": 100_000, "train__sample_every_steps": 1000}
        )
    )
    for line in launcher.stdout:
        if line.startswith("step "):
            launcher.send_signal(signal.SIGTERM)
            break
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 143, output
    assert "by SIGTERM; checkpoint saved" in output
    assert list((tmp_path / "run" / "checkpoints").glob("step-*.index"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__strategy": "miror"}, "train.strategy = 'miror': not one of the choices"),
        pytest.param(
            {"train__strategy": "mirrored"},
            "there is one device only; set train.strategy=one_device",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"train__strategy": "one_device", "train__replicas": 2},
            "strategy one_device has one",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"train__strategy": "multi_worker"}, "TF_CONFIG must name at least two workers", marks=pytest.mark.slow
        ),
        ({"train__replicas": 2, "train__xla": "jit"}, "not possible with 2 replicas; set train.xla=cluster"),
    ],
)
def test_devices_that_are_not_there_are_one_line(commands, tmp_path, changes, message):
    process = commands.run(commands.tiny_training(tmp_path / "run", **changes))
    assert process.returncode == 2 and process.stderr.count("\n") == 1 and message in process.stderr
    assert not (tmp_path / "run").exists()
