"""The two commands: what they say and refuse, and a training that goes on after both as if nothing had been."""

import argparse
import json
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from export import export_torch_checkpoint, import_torch_checkpoint
from nvae_tf.published.new_run_folder import new_run_folder
from nvae_tf.training.checkpoints import CheckpointNotWritten

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "normal_decoder_tiny.pt"


def refused(capsys, command, *arguments):
    """The one line on standard error of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        command.main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


def run(*arguments):
    """Runs `python -m ARGUMENTS` in the project's folder, which must end well, and returns what it printed."""
    command = [sys.executable, "-m", *map(str, arguments)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.torch
def test_there_and_back(tmp_path, capsys):
    runs = tmp_path / "my runs" / "cifar10"
    import_torch_checkpoint.main([f"--checkpoint={FIXTURE}", f"--output={runs}", f"--report={tmp_path}/map.csv"])
    printed = capsys.readouterr().out
    assert "cifar10, step 7, without the optimizer's state" in printed
    assert "does not follow from 7 steps in 3 epochs" in printed
    assert f"python -m train.evaluate --workdir='{runs}'\n" in printed and (tmp_path / "map.csv").is_file()
    export_torch_checkpoint.main([f"--workdir={runs}", f"--output={tmp_path / 'back.pt'}"])
    assert f"Exported step 7 to {tmp_path / 'back.pt'}, as a checkpoint of cifar10.\n" == capsys.readouterr().out


@pytest.mark.torch
def test_images_that_must_be_given_are_told(tmp_path, capsys):
    import torch

    with torch.serialization.safe_globals([argparse.Namespace]):
        content = torch.load(ROOT / "tests" / "fixtures" / "mnist_tiny.pt", weights_only=True)
    content["args"].dataset = "omniglot"
    torch.save(content, tmp_path / "x.pt")
    import_torch_checkpoint.main([f"--checkpoint={tmp_path / 'x.pt'}", f"--output={tmp_path / 'run'}"])
    printed = capsys.readouterr().out
    assert "chardata.mat" in printed and "--data_path=PATH" in printed and "--config.data.path=PATH" in printed


@pytest.mark.torch
def test_another_source_of_the_images(tmp_path, capsys):
    file = f"--checkpoint={ROOT / 'tests' / 'fixtures' / 'mnist_tiny.pt'}"
    run = tmp_path / "run"
    import_torch_checkpoint.main([file, f"--output={run}", "--data_source=idx", "--data_path=no/mnist"])
    assert "nothing at --data_path=no/mnist yet" in capsys.readouterr().out
    data = json.loads((run / "config.json").read_text())["data"]
    assert (data["name"], data["source"], data["path"]) == ("mnist", "idx", "no/mnist")


@pytest.mark.parametrize("text", ["", " ", "a\nb"])
def test_a_license_is_one_line(text, tmp_path, capsys):
    message = refused(
        capsys, import_torch_checkpoint, f"--checkpoint={tmp_path}", f"--output={tmp_path}", f"--license={text}"
    )
    assert "--license: must be one line" in message


def test_mistakes_are_told_before_anything_is_started(tmp_path, capsys, monkeypatch):
    for command in (import_torch_checkpoint, export_torch_checkpoint):
        monkeypatch.setattr(command, "start_tensorflow_quietly", lambda: pytest.fail("TensorFlow is started"))
    full = tmp_path / "full"
    full.mkdir()
    (full / "notes.txt").touch()
    file = tmp_path / "x.pt"
    file.touch()
    ours = import_torch_checkpoint
    new = f"--output={tmp_path / 'new'}"
    assert "no such file" in refused(capsys, ours, "--checkpoint=none.pt", new)
    assert "a folder" in refused(capsys, ours, f"--checkpoint={full}", new)
    message = refused(capsys, ours, f"--checkpoint={file}", new, "--data_source=idxx")
    assert "--data_source = 'idxx': not one of the choices" in message
    assert "holds notes.txt" in refused(capsys, ours, f"--checkpoint={file}", f"--output={full}")
    assert "a file; name a new" in refused(capsys, ours, f"--checkpoint={file}", f"--output={file}")
    assert "is a file" in refused(capsys, ours, f"--checkpoint={file}", f"--output={file}/below")
    assert "there already" in refused(capsys, ours, f"--checkpoint={file}", new, f"--report={file}")
    assert "there is no folder" in refused(capsys, ours, f"--checkpoint={file}", new, "--report=none/map.csv")
    assert "did you mean --checkpoint?" in refused(capsys, ours, f"--chekpoint={file}", new)
    theirs = export_torch_checkpoint
    assert "there already" in refused(capsys, theirs, f"--workdir={full}", f"--output={file}")
    assert "did you mean --workdir?" in refused(capsys, theirs, "--wrkdir=x", f"--output={file}")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "`make torch`" in refused(capsys, ours, f"--checkpoint={file}", new)
    assert "`make torch`" in refused(capsys, theirs, f"--workdir={full}", f"--output={tmp_path / 'y.pt'}")
    assert not (tmp_path / "new").exists()


def test_places_that_can_not_be_written_are_told_before_anything_is_started(tmp_path, capsys, monkeypatch):
    ours = import_torch_checkpoint
    monkeypatch.setattr(ours, "start_tensorflow_quietly", lambda: pytest.fail("TensorFlow is started"))
    monkeypatch.setattr(ours, "check_torch", lambda: pytest.fail("the places are not looked at first"))
    file, empty = tmp_path / "x.pt", tmp_path / "empty"
    file.touch()
    empty.mkdir()
    checkpoint, output = f"--checkpoint={file}", f"--output={empty}"
    for report in (empty, empty / "map.csv"):
        told = "is there already" if report == empty else f"in the way of --output={empty}"
        assert told in refused(capsys, ours, checkpoint, output, f"--report={report}")
    new = tmp_path / "new"
    for folder in (new, new / "run"):
        assert "in the way of" in refused(capsys, ours, checkpoint, f"--output={folder}", f"--report={new}")
    with monkeypatch.context() as patched:
        patched.chdir(empty)
        assert "--output=.: the folder that the command runs in" in refused(capsys, ours, f"{checkpoint}", "--output=.")
    with monkeypatch.context() as patched:
        patched.setattr(pathlib.Path, "is_mount", lambda path: path == empty)
        assert "a mount point, which can't be replaced" in refused(capsys, ours, checkpoint, output)
    # Where not even the superuser can make anything, whatever the permissions say.
    for place in ("--output=/proc/run", "--output=/proc/a/b/run"):
        assert f"{place}: can't be made, /proc can't be written to (" in refused(capsys, ours, checkpoint, place)
    long = f"--output={tmp_path / ('x' * 255)}"
    assert f"{tmp_path} can't be written to (File name too long)" in refused(capsys, ours, checkpoint, long)
    report = refused(capsys, ours, checkpoint, f"--output={new}", "--report=/proc/map.csv")
    assert "--report=/proc/map.csv: can't be made, /proc can't be written to (" in report
    theirs = export_torch_checkpoint
    monkeypatch.setattr(theirs, "check_torch", lambda: pytest.fail("the place is not looked at first"))
    message = refused(capsys, theirs, f"--workdir={empty}", "--output=/proc/x.pt")
    assert "--output=/proc/x.pt: can't be made, /proc can't be written to (" in message
    assert {entry.name for entry in tmp_path.iterdir()} == {"x.pt", "empty"}


def test_a_link_to_an_empty_folder_leads_to_the_run(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with new_run_folder(tmp_path / "link") as folder:
        (folder / "config.json").touch()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "config.json").is_file()


@pytest.mark.parametrize("error", [CheckpointNotWritten("{}/checkpoints: no room left"), OSError(28, "no room left")])
def test_a_full_disk_is_told_by_the_name_that_was_given(error, tmp_path):
    with pytest.raises(OSError, match=r"--output=\S+/run: could not be written.*no room left\)\. Make room") as caught:
        with new_run_folder(tmp_path / "run") as folder:
            raise error if error.errno else CheckpointNotWritten(str(error).format(folder))
    assert "partial" not in str(caught.value) and not list(tmp_path.iterdir())


@pytest.mark.torch
def test_a_file_that_is_none_and_a_run_that_is_none(tmp_path, capsys):
    file = tmp_path / "x.pt"
    file.write_bytes(b"<html>404</html>" * 100)
    assert "x.pt: is no torch file" in refused(
        capsys, import_torch_checkpoint, f"--checkpoint={file}", f"--output={tmp_path / 'run'}"
    )
    assert "not a run folder" in refused(
        capsys, export_torch_checkpoint, f"--workdir={tmp_path}", f"--output={tmp_path / 'y.pt'}"
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pt"]


@pytest.mark.parametrize("name", ["import_torch_checkpoint", "export_torch_checkpoint"])
def test_help_is_a_manual_page_and_does_not_wait_for_tensorflow(name):
    program = (
        "import atexit, runpy, sys; sys.argv.append('--help')\n"
        "atexit.register(lambda: print('tensorflow' in sys.modules or 'torch' in sys.modules))\n"
        f"runpy.run_module('export.{name}', run_name='__main__')\n"
    )
    process = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.endswith("False\n")
    for word in ("--without_optimizer", "--output", "make torch", "docs/published_weights.md"):
        assert word in process.stdout


@pytest.mark.slow
@pytest.mark.torch
def test_a_killed_import_leaves_no_run_folder(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from nvae_tf.training.checkpoints import TrainingState\n"
        "save = TrainingState.save\n"
        "def killed(self, step):\n"
        "    save(self, step)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "TrainingState.save = killed\n"
        "from export import import_torch_checkpoint\n"
        "import_torch_checkpoint.main(sys.argv[1:])\n"
    )
    arguments = [f"--checkpoint={FIXTURE}", f"--output={tmp_path / 'run'}"]
    process = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True)
    assert process.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".run.partial-") and not list(left.rglob("config.json"))
    # The same command works then.
    run("export.import_torch_checkpoint", *arguments)
    assert (tmp_path / "run" / "config.json").is_file()


SMALL = {
    "model.num_groups_per_scale": 2,
    "model.num_latent_per_group": 2,
    "model.num_channels_encoder": 2,
    "model.num_channels_decoder": 2,
    "model.num_cells_per_group_encoder": 1,
    "model.num_cells_per_group_decoder": 1,
    "model.num_mixtures": 2,
    "model.num_flows": 1,
    "optimizer.warmup_epochs": 0.25,
    "train.batch_size": 4,
    "train.steps": 6,
    "train.checkpoint_every_steps": 3,
    "train.keep_checkpoints": 3,
    "train.evaluate_every_steps": 6,
    "train.sample_every_steps": 1000,
    "train.log_every_steps": 2,
}


def tensors(workdir, step):
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / f"step-{step}"))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names if "save_counter" not in name}


@pytest.mark.slow
@pytest.mark.torch
def test_training_goes_on_after_both_as_if_nothing_had_been(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, [40, 32, 32, 3], dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    whole, half, back = tmp_path / "whole", tmp_path / "half", tmp_path / "back"
    flags = [f"--config.{name}={value}" for name, value in SMALL.items()]
    data = f"--config.data.path={tmp_path / 'images.npy'}"
    run("train.main", "--config=configs/own_images.py", f"--workdir={whole}", data, *flags)
    shutil.copytree(whole, half)
    for file in (half / "checkpoints").rglob("step-6.*"):
        file.unlink()
    run("export.export_torch_checkpoint", f"--workdir={half}", f"--output={tmp_path / 'x.pt'}")
    printed = run("export.import_torch_checkpoint", f"--checkpoint={tmp_path / 'x.pt'}", f"--output={back}")
    assert "step 3, with the optimizer's state" in printed
    assert ", from step 3 on" in run("train.main", f"--config={back}/config.py", f"--workdir={back}")
    expected, found = tensors(whole, 6), tensors(back, 6)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    last = [(folder / "metrics.csv").read_text().splitlines()[-1].split(",") for folder in (whole, back)]
    header = (whole / "metrics.csv").read_text().splitlines()[0].split(",")
    speed = header.index("images_per_second")
    assert [row[:speed] + row[speed + 1 :] for row in last][0] == [row[:speed] + row[speed + 1 :] for row in last][1]


@pytest.mark.slow
@pytest.mark.torch
def test_every_command_takes_an_imported_run(tmp_path):
    """Of images whose place is given: evaluation, samples, both exports, and a new run from its weights."""
    place, run_folder = tmp_path / "images", tmp_path / "run"
    place.mkdir()
    generator = np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 16)):
        np.save(place / f"{split}.npy", generator.integers(0, 256, [count, 32, 32, 3], dtype=np.uint8))
    run("export.import_torch_checkpoint", f"--checkpoint={FIXTURE}", f"--output={run_folder}")
    config = (run_folder / "config.json").read_text()
    # The published set itself can't be fetched in a test: the same run, with its images in array files.
    config = config.replace('"tfds"', '"arrays"').replace('"source_name": "cifar10"', '"source_name": null')
    (run_folder / "config.json").write_text(config.replace('"path": null', f'"path": "{place}"'))
    run("train.evaluate", f"--workdir={run_folder}", "--importance_samples=2", "--batch_size=8")
    assert (run_folder / "evaluation.json").is_file()
    run("train.generate", f"--workdir={run_folder}", f"--output={tmp_path / 'x.png'}", "--count=2")
    assert (tmp_path / "x.png").is_file()
    run("export.export_saved_model", f"--workdir={run_folder}", f"--output={tmp_path / 'saved'}")
    tflite = f"--output={tmp_path / 'x.tflite'}"
    run("export.export_tflite", f"--workdir={run_folder}", tflite, "--signature=decode")
    new = [f"--config={run_folder}/config.py", f"--workdir={tmp_path / 'new'}", "--config.train.steps=2"]
    printed = run("train.main", *new, f"--config.train.initialise_from={run_folder}")
    assert "weights taken" in printed and "step 2/2" in printed
