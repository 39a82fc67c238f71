"""Flags of configs, manual pages and errors of one line, without starting TensorFlow."""

import subprocess
import sys

import pytest

from nvae_tf import command_line
from nvae_tf.errors import exit_on_user_error


def test_every_setting_is_known_but_the_derived_one():
    valid = command_line.valid_settings()
    assert {"train.batch_size", "model.num_flows", "data.path"} <= set(valid)
    assert "objective.total_steps" not in valid


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config=configs/digits.py", "--config.train.batch_size=3"],
        ["--config", "configs/digits.py", "--config.train.batch_size", "3"],
        ["-config=configs/digits.py:some-argument", "--noconfig.model.squeeze_excite", "--workdir=x"],
    ],
)
def test_right_flags_pass(arguments):
    command_line.check_config_flags(arguments)


@pytest.mark.parametrize(
    ("argument", "nearest"),
    [
        ("--config.train.batch_sise=3", "--config.train.batch_size"),
        ("--config.trian.batch_size=3", "--config.train.batch_size"),
        ("--config.num_flows=3", "--config.model.num_flows"),
        ("--config=config/digits.py", "digits"),
        ("--config=configs/cifar.py", "configs/cifar10.py"),
    ],
)
def test_a_wrong_name_is_reported_with_the_nearest(argument, nearest):
    with pytest.raises(ValueError, match=f"did you mean {nearest}"):
        command_line.check_config_flags([argument])


# Access is denied to root, too.
UNWRITABLE = """
import os, sys
os.access = lambda place, mode: False
import importlib
command = importlib.import_module(f"train.{sys.argv.pop(1)}")
try:
    command.run()
finally:
    print("tensorflow" in sys.modules)
"""


@pytest.mark.parametrize(
    "command",
    [
        "main --config=configs/digits.py --workdir={}/new/run",
        "inspect_data --config=configs/digits.py --output={}/new.png",
        "estimate --config=configs/digits.py --json={}/new.json",
        "evaluate --workdir={}",
        "report --workdir={}",
        "launch --processes=2 --log_dir={}/logs -- --workdir=elsewhere",
    ],
)
def test_a_place_that_cannot_be_written_to_is_reported_at_once(tmp_path, command):
    (tmp_path / "config.json").write_text("{}")
    arguments = command.format(tmp_path).split()
    process = subprocess.run([sys.executable, "-c", UNWRITABLE, *arguments], capture_output=True, text=True)
    assert process.returncode == 2 and process.stdout == "False\n", process.stderr
    (line,) = process.stderr.splitlines()
    assert f": nothing can be written in {tmp_path}; make that folder writable" in line and line.startswith("error: --")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("main", "--config= --workdir train.batch_size"),
        ("evaluate", "--workdir= --metrics"),
        ("report", "--workdir= --output --checkpoint --overwrite --seed --data_path"),
        ("demo", "--workdir="),
    ],
)
def test_help_is_a_manual_page(commands, name, words):
    process = commands.run(["-m", f"train.{name}", "--help"])
    assert process.returncode == 0 and f"python -m train.{name} {words.split()[0]}" in process.stdout
    assert "Exit code: 0 done" in process.stdout
    assert [word for word in words.split() if word not in process.stdout] == []


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, ConnectionError, PermissionError])
def test_a_users_mistake_is_one_line(error, capsys, monkeypatch):
    monkeypatch.delenv("NVAE_TF_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as exit_, exit_on_user_error():
        raise error("no such thing")
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: no such thing\n"


def test_the_traceback_is_there_for_those_who_ask(capsys, monkeypatch):
    monkeypatch.setenv("NVAE_TF_TRACEBACK", "1")
    with pytest.raises(SystemExit), exit_on_user_error():
        raise ValueError("no such thing")
    assert "Traceback" in capsys.readouterr().err


def test_other_errors_are_bugs_and_keep_their_traceback():
    with pytest.raises(TypeError), exit_on_user_error():
        raise TypeError("a bug")


@pytest.mark.parametrize("name", ["main", "evaluate", "generate", "demo", "launch"])
def test_a_command_starts_without_tensorflow(name):
    program = f"import sys, train.{name}; print('tensorflow' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output == "False\n"
