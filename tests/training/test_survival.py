import random
import signal
import time

import pytest

from tests.command_fixtures import assert_same_tensors, saved_steps

SETTINGS = dict(train__steps=40, train__batch_size=16, optimizer__ema_momentum=0.9, train__log_every_steps=6)
SETTINGS |= dict(train__evaluate_every_steps=15, train__sample_every_steps=1000)
# A network of two scales takes each of the processes twice the time.
SETTINGS |= dict(model__num_latent_scales=1, model__num_groups_per_scale=2)


def training(commands, workdir, **changes):
    arguments = commands.tiny_training(workdir, **SETTINGS | changes)
    return ["--config=photos" if name.startswith("--config=") else name for name in arguments]


def half_written_steps(workdir):
    """Steps whose checkpoints a process is writing, or was when it was killed."""
    folders = (workdir / "checkpoints").glob(".step-*.partial")
    return [int(entry.name.removeprefix(".step-").removesuffix(".partial")) for entry in folders]


@pytest.mark.slow
def test_killed_twice_is_the_same_run(commands, tmp_path):
    whole, workdir = tmp_path / "whole", tmp_path / "killed"
    commands.output_of(training(commands, whole))
    command = training(commands, workdir, train__checkpoint_every_steps=1, train__checkpoint_every_minutes=0)
    draw, reached, half_written = random.Random("photos"), 0, []
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
        reached = max(saved_steps(workdir / "checkpoints"))
        # What is left of one that is whole already is not passed over.
        half_written = [step for step in half_written_steps(workdir) if step > reached]
        assert earliest <= reached < 40
    assert_continued(commands.output_of(command), reached, half_written)
    (best,) = (whole / "checkpoints" / "best").glob("*.index")
    for place in ("step-40", f"best/{best.stem}"):
        assert_same_tensors(whole, workdir, place)
    assert saved_steps(workdir / "checkpoints") == [39, 40]
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
