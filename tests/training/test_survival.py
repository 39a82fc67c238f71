"""Runs that are killed, that find damaged checkpoints, or that meet another: what is lost, and what is reported."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = {
    "train__steps": 40,
    "train__evaluate_every_steps": 15,
    "train__sample_every_steps": 1000,
    "train__log_every_steps": 6,
}
OF_PHOTOS = {"train__batch_size": 16, "optimizer__ema_momentum": 0.9}
TENS = {"train__checkpoint_every_steps": 10, "train__keep_checkpoints": 4}


def training(commands, preset, workdir, **changes):
    """The command of a tiny training of digits, or of photos with averages of the weights (EMA)."""
    changes = SETTINGS | (OF_PHOTOS if preset == "photos" else {}) | changes
    arguments = commands.tiny_training(workdir, **changes)
    return [f"--config=configs/{preset}.py" if name.startswith("--config=") else name for name in arguments]


def tensors(checkpoint):
    """All numbers of a checkpoint by name: weights, optimizer, step and metrics."""
    reader = tf.train.load_checkpoint(str(checkpoint))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names}


def assert_same_run(one, other, step):
    """The same numbers at a step, and in the best checkpoint."""
    (best,) = (one / "checkpoints" / "best").glob("*.index")
    for place in (f"step-{step}", f"best/{best.stem}"):
        expected, found = (tensors(workdir / "checkpoints" / place) for workdir in (one, other))
        assert set(found) == set(expected) and len(found) > 100
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def saved_steps(workdir):
    return sorted(int(file.stem.removeprefix("step-")) for file in (workdir / "checkpoints").glob("step-*.index"))


def half_written_steps(workdir):
    """Steps whose checkpoints a process is writing, or was when it was killed."""
    found = (workdir / "checkpoints").glob(".step-*.partial")
    return [int(entry.name.removeprefix(".step-").removesuffix(".partial")) for entry in found]


class StartedCommand:
    """A command that runs beside the test."""

    def __init__(self, arguments, output, **options):
        self._output = output
        with output.open("w") as stream:
            self._process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                cwd=ROOT,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                **options,
            )

    @property
    def output(self):
        return self._output.read_text()

    def wait_until(self, happened):
        """Looks as often as it can; a process that ends meanwhile is a failure."""
        while not happened():
            assert self._process.poll() is None, self.output
            time.sleep(0.0005)

    def wait_for_step(self, workdir, step):
        self.wait_until(lambda: max(saved_steps(workdir), default=0) >= step)

    @property
    def pid(self):
        return self._process.pid

    def send(self, number):
        self._process.send_signal(number)

    def kill(self):
        self.send(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL, self.output

    def wait(self):
        return self._process.wait(timeout=600)


@pytest.fixture(scope="module")
def whole_runs(commands, tmp_path_factory):
    """Makes the run of a preset that nothing interrupted, once, with checkpoints of the steps 10, 20, 30 and 40."""
    made = {}

    def run_of(preset):
        if preset not in made:
            workdir = tmp_path_factory.mktemp("whole") / preset
            process = commands.run(training(commands, preset, workdir, **TENS))
            assert process.returncode == 0, process.stderr
            made[preset] = workdir
        return made[preset]

    return run_of


@pytest.mark.slow
def test_killed_three_times_is_the_same_run(commands, whole_runs, tmp_path):
    workdir, preset = tmp_path / "killed", "photos"
    saves = {"train__checkpoint_every_steps": 1, "train__checkpoint_every_minutes": 0}
    command = training(commands, preset, workdir, **saves)
    draw = random.Random(preset)
    reached, half_written = 0, []
    for number, earliest in enumerate((1, 12, 23)):
        started = StartedCommand(command, tmp_path / f"output-{number}")
        started.wait_for_step(workdir, earliest + draw.randrange(8))
        time.sleep(draw.uniform(0.0, 0.05))
        if number == 1:
            # Within a save, whatever the machine's speed.
            started.wait_until(lambda: half_written_steps(workdir))
        started.kill()
        if reached:
            assert f", from step {reached:,} on" in started.output
        for step in half_written:
            assert f"passed over step-{step} (half-written); step-{reached} is used" in started.output
        reached, half_written = max(saved_steps(workdir)), half_written_steps(workdir)
        assert earliest <= reached < 40
    process = commands.run(command)
    assert process.returncode == 0 and f", from step {reached} on" in process.stdout, process.stderr
    assert_same_run(whole_runs(preset), workdir, 40)
    assert saved_steps(workdir) == [39, 40]
    assert not list((workdir / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(commands, whole_runs, tmp_path):
    copied_run = shutil.copytree(whole_runs("digits"), tmp_path / "copied")
    checkpoints = copied_run / "checkpoints"
    (checkpoints / "checkpoint").unlink()
    os.truncate(next(checkpoints.glob("step-40.data*")), 2000)
    passed_over, used = f"{checkpoints}: passed over step-40 (", "); step-30 is used"
    evaluation = commands.run(["-m", "train.evaluate", f"--workdir={copied_run}", "--metrics=elbo"])
    assert evaluation.returncode == 0, evaluation.stderr
    assert ", step 30," in evaluation.stdout and len(evaluation.stderr.splitlines()) == 1
    process = commands.run(training(commands, "digits", copied_run, **TENS))
    assert process.returncode == 0 and ", from step 30 on" in process.stdout, process.stderr
    for output in (evaluation.stderr, process.stdout):
        assert passed_over in output and used in output
    assert_same_run(whole_runs("digits"), copied_run, 40)
    assert saved_steps(copied_run) == [10, 20, 30, 40]


@pytest.mark.slow
def test_a_second_training_is_refused_and_changes_nothing(commands, whole_runs, tmp_path):
    workdir = tmp_path / "run"
    command = training(commands, "digits", workdir, **TENS)
    first = StartedCommand(command, tmp_path / "output")
    first.wait_for_step(workdir, 10)
    # It would be at its end before the second has begun.
    first.send(signal.SIGSTOP)
    before = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}
    second = commands.run(command)
    assert second.returncode == 2
    (line,) = [line for line in second.stderr.splitlines() if line.startswith("error:")]
    assert f"{workdir}: another training writes into this folder: process {first.pid} on " in line
    assert {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()} == before
    first.send(signal.SIGCONT)
    assert first.wait() == 0, first.output
    assert_same_run(whole_runs("digits"), workdir, 40)
    assert not (workdir / ".lock").exists()
