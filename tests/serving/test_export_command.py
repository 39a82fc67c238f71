"""The command: from a run folder to a version, and what it says to mistakes."""

import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest

from export import export_saved_model as command
from nvae_tf.serving.saved_models.run_source import scores_of
from nvae_tf.training import loading

ROOT = pathlib.Path(__file__).resolve().parents[2]


def refused(capsys, *arguments):
    """The one line on standard error of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


class Run(NamedTuple):
    """What the command asks of a trained run."""

    model: str
    step: int = 1200


@pytest.mark.parametrize(
    ("flags", "checkpoint", "weights"),
    [([], "latest", "float32"), (["--checkpoint=best", "--weights=float16"], "best", "float16")],
)
def test_the_model_of_the_run_becomes_the_version_that_was_asked_for(
    tmp_path, monkeypatch, capsys, flags, checkpoint, weights
):
    from nvae_tf.serving.saved_models import run_source, saved_model

    calls = []
    monkeypatch.setattr(loading, "load_run", lambda workdir, checkpoint: Run(f"{checkpoint} model of {workdir}"))
    monkeypatch.setattr(run_source, "origin_of", lambda run, workdir: run_source.Origin({"step": run.step}))

    def export(*given):
        calls.append(given)
        return saved_model.Exported(given[1] / "4", 0.004)

    monkeypatch.setattr(saved_model, "export_saved_model", export)
    command.main([f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'models'}", "--version=4", *flags])
    model = f"{checkpoint} model of {tmp_path / 'run'}"
    assert calls == [(model, tmp_path / "models", 4, weights, run_source.Origin({"step": 1200}))]
    printed = capsys.readouterr().out
    assert str(tmp_path / "models" / "4") in printed and ", step 1,200," in printed
    assert ("the model's numbers" if weights == "float32" else "0.004 of the largest off at most") in printed


def test_scores_are_taken_if_they_are_of_this_checkpoint(tmp_path):
    file = tmp_path / "evaluation.json"
    source = {"checkpoint_sha256": "ab"}
    assert scores_of(tmp_path, source) is None
    file.write_text(json.dumps({"checkpoint_sha256": "cd", "nelbo_nats": 1.0}))
    assert scores_of(tmp_path, source) is None
    # Where the data lay is a folder of the machine that has exported.
    file.write_text(json.dumps(source | {"nelbo_nats": 1.0, "data": "/home/someone/data"}))
    assert scores_of(tmp_path, source) == source | {"nelbo_nats": 1.0}
    file.write_text("{")
    assert scores_of(tmp_path, source) is None


def test_a_missing_run_folder_is_told_and_nothing_written(tmp_path, capsys):
    said = refused(capsys, f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'models'}")
    assert said.startswith("error: ") and "no such folder" in said and str(tmp_path / "run") in said
    assert not list(tmp_path.iterdir())


def test_an_existing_version_is_told_before_the_run_is_looked_at(tmp_path, capsys):
    (tmp_path / "models" / "1").mkdir(parents=True)
    said = refused(capsys, f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'models'}")
    assert "has a version 1 already" in said


def test_a_mistyped_flag_is_told_with_the_nearest_one(capsys):
    assert refused(capsys, "--wrkdir=x", "--output=y") == "error: --wrkdir: no such flag; did you mean --workdir?\n"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--output=y"], "--workdir"),
        (["--workdir=x"], "--output"),
        (["--workdir=x", "--output=y", "--version=a"], "'a'"),
        (["--workdir=x", "--output=y", "--checkpoint=bset"], "'bset' (choose from "),
        (["--workdir=x", "--output=y", "--weights=int8"], "'int8' (choose from "),
    ],
)
def test_a_missing_or_senseless_flag_is_told(capsys, arguments, message):
    assert message in refused(capsys, *arguments)


def test_help_is_a_manual_page_and_does_not_wait_for_tensorflow():
    program = (
        "import atexit, runpy, sys; sys.argv.append('--help')\n"
        "atexit.register(lambda: print('tensorflow' in sys.modules))\n"
        "runpy.run_module('export.export_saved_model', run_name='__main__')\n"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.endswith("False\n")
    for word in ("--workdir", "--output", "--version", "--checkpoint", "kl_per_group", "TensorFlow Serving"):
        assert word in process.stdout
