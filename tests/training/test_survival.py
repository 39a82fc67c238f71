import os
import random
import signal
import time

import pytest

from nvae_tf.training.run_folder import RunFolder, lock_for_training
from tests.command_fixtures import assert_same_tensors, saved_steps


def half_written_steps(workdir):
    """Steps whose checkpoints a process is writing, or was when it was killed."""
    found = (workdir / "checkpoints").glob(".step-*.partial")
    return [int(entry.name.removeprefix(".step-").removesuffix(".partial")) for entry in found]


@pytest.mark.slow
def test_killed_twice_is_the_same_run(commands, finished_run, tmp_path):
    whole, workdir = finished_run[0], tmp_path / "killed"
    often = dict(train__checkpoint_every_steps=1, train__checkpoint_every_minutes=0)
    command = commands.tiny_training(workdir, **often)
    draw = random.Random("digits")
    reached, half_written = 0, []
    for number, earliest in enumerate((1, 12)):
        log = tmp_path / f"output-{number}"
        with log.open("w") as stream:
            started = commands.started(command, stdout=stream)
        step = earliest + draw.randrange(8)
        wait_until(started, log, lambda step=step: max(saved_steps(workdir / "checkpoints"), default=0) >= step)
        time.sleep(draw.uniform(0.0, 0.05))
        if number == 1:
            # Within a save, whatever the machine's speed.
            wait_until(started, log, lambda: half_written_steps(workdir))
        started.kill()
        assert started.wait() == -signal.SIGKILL, log.read_text()
        if number:
            assert_continued(log.read_text(), reached, half_written)
        reached, half_written = max(saved_steps(workdir / "checkpoints")), half_written_steps(workdir)
        assert earliest <= reached < 60
    assert_continued(commands.output_of(command), reached, half_written)
    (best,) = (whole / "checkpoints" / "best").glob("*.index")
    for place in ("step-60", f"best/{best.stem}"):
        assert_same_tensors(whole, workdir, place)
    assert saved_steps(workdir / "checkpoints") == [59, 60]
    assert not list((workdir / "checkpoints").glob(".*"))


def assert_continued(printed, reached, half_written):
    assert f", from step {reached} on" in printed
    for step in half_written:
        assert f"passed over step-{step} (half-written); step-{reached} is used" in printed


def wait_until(process, log, happened):
    """Looks as often as it can; a process that ends meanwhile is a failure."""
    while not happened():
        assert process.poll() is None, log.read_text()
        time.sleep(0.0005)


def test_a_second_training_is_refused_and_changes_nothing(commands, tmp_path):
    workdir = tmp_path / "run"
    with lock_for_training(RunFolder(workdir), pytest.fail):
        before = {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()}
        line = commands.refused_process(commands.tiny_training(workdir))
        assert f"{workdir}: another training writes into this folder: process {os.getpid()} on " in line
        assert {file: file.read_bytes() for file in workdir.rglob("*") if file.is_file()} == before
