"""Commands as a user types them, on a model of the digits that is small enough for a test."""

import csv
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parents[1]
# How the first plain line of progress begins; the process is then inside the training loop.
TRAINING = "step "

TINY = {
    "model.num_latent_scales": 2,
    "model.num_groups_per_scale": 1,
    "model.num_latent_per_group": 2,
    "model.num_channels_encoder": 2,
    "model.num_channels_decoder": 2,
    "model.num_preprocess_blocks": 0,
    "model.num_postprocess_blocks": 0,
    "model.num_cells_per_group_encoder": 1,
    "model.num_cells_per_group_decoder": 1,
    "optimizer.warmup_epochs": 1,
    "train.batch_size": 100,
    "train.steps": 60,
    "train.seed": 5,
    "train.checkpoint_every_steps": 1000,
    "train.evaluate_every_steps": 20,
    "train.sample_every_steps": 40,
    "train.log_every_steps": 8,
}


def tiny_training(workdir, **changes):
    settings = TINY | {name.replace("__", "."): value for name, value in changes.items()}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    return ["-m", "train.main", "--config=configs/digits.py", f"--workdir={workdir}", *flags]


def run_command(arguments):
    """Runs `python ARGUMENTS` in the project's folder and returns the finished process."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet(), timeout=600)


def refused(arguments):
    """The one line on standard error of a command that ends with exit code 2."""
    process = run_command(arguments)
    assert process.returncode == 2, process.stdout
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1, process.stderr
    return process.stderr


def run_until_training(arguments, then_send):
    """Runs a training, sends it a signal once it is in its loop, and returns its exit code and output."""
    command = [sys.executable, *map(str, arguments)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=quiet()
    )
    output, sent = "", False
    for line in process.stdout:
        output += line
        if line.startswith(TRAINING) and not sent:
            process.send_signal(then_send)
            sent = True
    return process.wait(timeout=600), output


def quiet():
    environment = {name: value for name, value in os.environ.items() if name != "NVAE_TF_TRACEBACK"}
    return environment | {"PYTHONUNBUFFERED": "1"}


def tensors(workdir, place):
    """All numbers of a checkpoint, of a step or by its name, but for how often TensorFlow has saved."""
    name = place if isinstance(place, str) else f"step-{place}"
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / name))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names if "save_counter" not in name}


def assert_same_tensors(one, other, place):
    """The same weights, optimizer, step and metrics in checkpoints of two runs, bit for bit."""
    expected, found = tensors(one, place), tensors(other, place)
    assert set(found) == set(expected) and len(found) > 100
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def metrics_rows(workdir):
    """The lines of `metrics.csv`."""
    with (workdir / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def score_of(workdir, step):
    """The test images' bound after a step."""
    return next(row["test_nelbo_nats"] for row in metrics_rows(workdir) if row["step"] == step)


class Commands:
    """What the tests of commands need; a fixture, because tests are no package to import from."""

    tiny_training = staticmethod(tiny_training)
    run = staticmethod(run_command)
    refused = staticmethod(refused)
    run_until_training = staticmethod(run_until_training)
    SIGINT, SIGTERM = signal.SIGINT, signal.SIGTERM


@pytest.fixture(scope="session")
def commands():
    return Commands


@pytest.fixture(scope="session")
def finished_run(commands, tmp_path_factory):
    """The run folder of a tiny training that was not interrupted, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    process = commands.run(commands.tiny_training(workdir))
    assert process.returncode == 0, process.stderr
    return workdir, process.stdout
