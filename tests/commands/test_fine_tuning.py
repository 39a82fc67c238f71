"""`train.initialise_from` from outside: a run starts with the weights of another, stops, and goes on without it."""

import json
import shutil

import pytest

from tests.command_fixtures import assert_same_tensors, score_of

# Low enough for what was learned to stay, with other scores at the steps of the first run.
CHANGES = {"train__seed": 6, "train__steps": 30, "optimizer__learning_rate": 1e-3}


@pytest.mark.slow
def test_a_run_from_anothers_weights_stops_and_goes_on_without_them(commands, finished_run, tmp_path):
    source = shutil.copytree(finished_run[0], tmp_path / "source")
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    process = commands.run(commands.tiny_training(whole, **CHANGES, train__initialise_from=source))
    assert process.returncode == 0, process.stderr
    assert f"Starts from {source}, step 60: all " in process.stdout and "step 30/30" in process.stdout
    assert json.loads((whole / "config.json").read_text())["train"]["initialise_from"] == str(source)
    assert score_of(whole, 20) < score_of(source, 20)

    command = commands.tiny_training(interrupted, **CHANGES, train__initialise_from=source)
    code, output = commands.run_until_training(command, commands.SIGINT)
    assert code == 130 and "Starts from" in output
    shutil.rmtree(source)
    process = commands.run(command)
    assert process.returncode == 0, process.stderr
    assert ", from step " in process.stdout and "Starts from" not in process.stdout
    assert_same_tensors(whole, interrupted, 30)
