"""Commands as a user types them, on a model of the digits that is small enough for a test."""

import csv
import fcntl
import importlib.metadata
import os
import runpy
import shutil
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import tensorflow as tf
from absl import app, flags
from absl.testing import flagsaver

import nvae_tf
from nvae_tf.generation.image_grid import image_grid
from tests import ROOT, forked
from tests.tiny_model import ARCHITECTURE, assert_same

app.define_help_flags()
_FLAGS_OF_ABSL = set(flags.FLAGS)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOW_TO_INSTALL = "Chromium is not installed; scripts/install_chromium.sh does it"
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason=HOW_TO_INSTALL)
# How the first plain line of progress begins; the process is then inside the training loop.
TRAINING = "step "

# With one scale a graph is built in two thirds of the time, and with four channels there is something to learn.
_SMALLER = dict(num_latent_scales=1, num_groups_per_scale=2, num_channels_encoder=4, num_channels_decoder=4)
TINY = {f"model.{name}": value for name, value in (ARCHITECTURE | _SMALLER).items()} | {
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
    return ["-m", "train.main", "--config=configs/digits.py", f"--workdir={workdir}", *config_flags(settings)]


def config_flags(settings):
    return [f"--config.{name}={value}" for name, value in settings.items()]


# The module of each command, and the name that it is installed with.
CONSOLE_NAMES = {point.module: point.name for point in importlib.metadata.entry_points(group="console_scripts")}


def quiet():
    environment = {name: value for name, value in os.environ.items() if name != "NVAE_TF_TRACEBACK"}
    return environment | {"PYTHONUNBUFFERED": "1"}


def run(arguments, anew=False, **settings):
    """Runs `python ARGUMENTS` in the project's folder, as a fork but for `-c` and `anew`; returns the process."""
    settings = {"cwd": ROOT, "env": quiet()} | settings
    if anew or "-c" in arguments:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, **{"timeout": 600, "capture_output": True, "text": True} | settings)
    return forked.run(arguments, **settings)


def output_of(arguments, **settings):
    """What such a process prints, which must end well."""
    process = run(arguments, **settings)
    assert process.returncode == 0, process.stderr
    return process.stdout


def train(workdir, **changes):
    """What the training of the tiny model prints."""
    return output_of(tiny_training(workdir, **changes))


def refused_process(arguments):
    """The one line on standard error of a command that ends with exit code 2."""
    process = run(arguments)
    assert process.returncode == 2, process.stdout
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1, process.stderr
    return process.stderr


def started(arguments, **settings):
    """Such a process that is running; what it prints and its errors are one stream."""
    return forked.Forked(arguments, **{"cwd": ROOT, "env": quiet()} | settings)


def started_anew(arguments, **settings):
    """One that is no fork."""
    settings = {"stdout": subprocess.PIPE, "cwd": ROOT, "env": quiet(), "text": True} | settings
    return subprocess.Popen([sys.executable, *map(str, arguments)], **settings)


def run_until_training(arguments, then_send, line_start=TRAINING):
    """Runs a training, sends it a signal once it is in its loop, and returns its exit code and output."""
    process, output, sent = started(arguments), "", False
    for line in process.stdout:
        output += line
        if line.startswith(line_start) and not sent:
            process.send_signal(then_send)
            sent = True
    return process.wait(timeout=600), output


def until(condition):
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited for half a minute"
        time.sleep(0.02)


def saved_steps(place):
    return sorted(int(file.stem.removeprefix("step-")) for file in place.glob("step-*.index"))


def tensors(workdir, place):
    """All numbers of a checkpoint, of a step or by its name, but for how often TensorFlow has saved."""
    name = place if isinstance(place, str) else f"step-{place}"
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / name))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names if "save_counter" not in name}


def assert_same_tensors(one, other, place):
    """The same weights, optimizer, step and metrics in checkpoints of two runs, bit for bit."""
    numbers = tensors(other, place)
    assert len(numbers) > 100
    assert_same(numbers, tensors(one, place))


def metrics_rows(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def score_of(workdir, step):
    return next(row["test_nelbo_nats"] for row in metrics_rows(workdir) if row["step"] == step)


def assert_shown(picture, images, columns):
    """A different thread count of another process may round another way."""
    grid = image_grid(images, columns, enlarge=None)
    grid = grid[..., 0] if grid.shape[-1] == 1 else grid
    assert picture.shape == grid.shape and np.abs(picture.astype(int) - grid).max() <= 1


@pytest.fixture(scope="session")
def commands():
    """The functions of this module."""
    return sys.modules[__name__]


def made_once(tmp_path_factory, name, make):
    """A folder for all test processes that run side by side: the first that needs it fills it, with `make(folder)`."""
    place = tmp_path_factory.getbasetemp()
    # pytest-xdist gives each process a folder of its own in the one of the run.
    place = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "shared" / name
    place.parent.mkdir(exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        whole = place.with_suffix(".whole")
        if not whole.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            make(place)
            whole.touch()
    return place


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """The run folder of a tiny training that was not interrupted, and what it printed; not to be changed."""

    def train(folder):
        (folder / "output").write_text(output_of(tiny_training(folder / "whole")))

    folder = made_once(tmp_path_factory, "runs", train)
    return folder / "whole", (folder / "output").read_text()


CONDITIONAL = {"data.labels": True, "train.accumulate_steps": 2, "train.checkpoint_every_steps": 25}


@pytest.fixture(scope="session")
def conditional_run(tmp_path_factory):
    """The run folder of a tiny training that is conditional on classes, with its checkpoints of steps 50 and 60."""
    return made_once(tmp_path_factory, "conditional", lambda folder: train(folder / "run", **CONDITIONAL)) / "run"


@pytest.fixture(scope="session")
def finished_model(finished_run):
    """Its model; not to be trained or changed."""
    return nvae_tf.load(finished_run[0])


@pytest.fixture
def script(monkeypatch, capfd):
    """`script(MODULE, *arguments)` runs `python -m MODULE` in this process; gives exit code, output and errors."""
    tf.config.list_physical_devices()  # a command hides what TensorFlow notes when it looks for devices

    def run(module, *arguments):
        # As in a process of its own: without the flags of scripts that other tests have imported.
        hidden, code = {name: flags.FLAGS[name] for name in set(flags.FLAGS) - _FLAGS_OF_ABSL}, 0
        flags.FLAGS.remove_flag_values(hidden)
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        monkeypatch.delenv("NVAE_TF_TRACEBACK", raising=False)
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # the command replaces it
        capfd.readouterr()
        try:
            with flagsaver.flagsaver():
                runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stopped:
            code = stopped.code or 0
        finally:
            for name, flag in hidden.items():
                flags.FLAGS[name] = flag
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def done(script):
    """`done(MODULE, *arguments)`: what such a command prints, which must end well."""

    def run(module, *arguments):
        code, printed, errors = script(module, *map(str, arguments))
        assert code == 0, errors
        return printed

    return run


@pytest.fixture(name="refused")
def refused_in_process(script):
    """`refused(MODULE, *arguments)`: the one line on standard error of a command that ends with exit code 2."""

    def run(module, *arguments):
        code, _, errors = script(module, *map(str, arguments))
        assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1, errors
        return errors

    return run
