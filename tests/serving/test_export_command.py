"""The command: from a run folder to a version, and what it says to mistakes."""

import json
import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest

from nvae_tf.serving.saved_model import scores_of
from nvae_tf.training import loading

ROOT = pathlib.Path(__file__).resolve().parents[2]


class Run(NamedTuple):
    """What the command asks of a trained run."""

    model: str
    step: int = 1200


@pytest.mark.parametrize(
    ("flags", "checkpoint", "weights"),
    [([], "latest", "float32"), (["--checkpoint=best", "--weights=float16"], "best", "float16")],
)
def test_the_model_of_the_run_becomes_the_version_that_was_asked_for(
    tmp_path, monkeypatch, script, flags, checkpoint, weights
):
    from nvae_tf.serving import saved_model

    calls = []
    monkeypatch.setattr(loading, "load_run", lambda workdir, checkpoint: Run(f"{checkpoint} model of {workdir}"))
    monkeypatch.setattr(saved_model, "origin_of", lambda run, workdir: saved_model.Origin({"step": run.step}))

    def export(*given):
        calls.append(given)
        return saved_model.Exported(given[1] / "4", 0.004)

    monkeypatch.setattr(saved_model, "export_saved_model", export)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").touch()
    places = [f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'models'}"]
    _, printed, _ = script("export_saved_model", *places, "--version=4", *flags)
    model = f"{checkpoint} model of {tmp_path / 'run'}"
    assert calls == [(model, tmp_path / "models", 4, weights, saved_model.Origin({"step": 1200}))]
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


def test_a_missing_run_folder_is_told_and_nothing_written(tmp_path, refused):
    said = refused("export_saved_model", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'models'}")
    assert said.startswith("error: ") and "no such folder" in said and str(tmp_path / "run") in said
    assert not list(tmp_path.iterdir())


def test_an_existing_version_is_told_before_the_run_is_looked_at(tmp_path, refused):
    (tmp_path / "models" / "1").mkdir(parents=True)
    said = refused("export_saved_model", f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'models'}")
    assert "has a version 1 already" in said


def test_a_mistyped_flag_is_told_with_the_nearest_one(refused):
    assert refused("export_saved_model", "--wrkdir=x", "--output=y") == (
        "error: Unknown command line flag 'wrkdir'. Did you mean: workdir ? (see --help)\n"
    )


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--output=y"], "--workdir"),
        (["--workdir=x"], "--output"),
        (["--workdir=x", "--output=y", "--version=a"], "--version=a"),
        (["--workdir=x", "--output=y", "--checkpoint=bset"], "--checkpoint=bset: value should be one of"),
        (["--workdir=x", "--output=y", "--weights=int8"], "--weights=int8: value should be one of"),
    ],
)
def test_a_missing_or_senseless_flag_is_told(refused, arguments, message):
    assert message in refused("export_saved_model", *arguments)


def test_help_is_a_manual_page_and_does_not_wait_for_tensorflow():
    program = (
        "import atexit, runpy, sys; sys.argv.append('--help')\n"
        "atexit.register(lambda: print('tensorflow' in sys.modules))\n"
        "runpy.run_module('export.export_saved_model', run_name='__main__', alter_sys=True)\n"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.endswith("False\n")
    for word in ("--workdir", "--output", "--version", "--checkpoint", "kl_per_group", "TensorFlow Serving"):
        assert word in process.stdout
