"""`python -m train.main` from outside: what it leaves, how it stops and goes on, what it refuses."""

import csv
import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image


def tensors(workdir, step):
    """All numbers of a checkpoint by name: weights, optimizer, step and running means."""
    reader = tf.train.load_checkpoint(str(workdir / "checkpoints" / f"step-{step}"))
    names = [name for name in reader.get_variable_to_shape_map() if name.endswith("VARIABLE_VALUE")]
    return {name: reader.get_tensor(name) for name in names if "save_counter" not in name}


def rows(workdir):
    with (workdir / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def without_speed(found):
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in found]


def assert_same_run(one, other, step):
    expected, found = tensors(one, step), tensors(other, step)
    assert set(found) == set(expected) and len(found) > 100
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert without_speed(rows(other)) == without_speed(rows(one))


def test_a_run_leaves_its_records(finished_run):
    workdir, output = finished_run
    assert "step 60/60" in output and "nats" in output and "images/s" in output
    assert "1,437 training and 360 test images" in output
    assert json.loads((workdir / "config.json").read_text())["objective"]["total_steps"] == 60
    found = rows(workdir)
    assert [row["step"] for row in found] == [20, 40, 60]
    for row in found:
        assert row["test_nelbo_nats"] == pytest.approx(row["test_reconstruction_nats"] + row["test_kl_nats"], abs=1e-3)
        assert row["test_bits_per_dim"] == pytest.approx(row["test_nelbo_nats"] / np.log(2) / 256, rel=1e-4)
        assert row["test_kl_nats"] >= 0.0 and row["epoch"] == pytest.approx(row["step"] / 14, rel=1e-4)
    assert found[-1]["test_nelbo_nats"] < found[0]["test_nelbo_nats"] < 256 * np.log(2) + 1
    assert found[0]["kl_weight"] == 1.0 and found[-1]["learning_rate"] == pytest.approx(1e-4, rel=1e-3)
    pictures = sorted(file.name for file in (workdir / "samples").iterdir())
    assert pictures == ["step-00000040.png", "step-00000060.png"]
    assert Image.open(workdir / "samples" / pictures[0]).size == (8 * 70 - 6, 8 * 70 - 6)
    assert (workdir / "checkpoints" / "step-60.index").is_file()


@pytest.mark.slow
def test_a_short_run_warms_up_and_is_measured_on_its_way(commands, tmp_path):
    settings = {"train.steps": 40, "train.batch_size": 100, "data.path": "", "data.source_name": "digits"}
    settings |= {"data.source": "bundled", "data.height": 16, "data.channels": 1, "data.num_bits": 1}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    small = [flag for flag in commands.tiny_training(tmp_path / "short") if "config.model" in flag]
    command = ["-m", "train.main", "--config=configs/own_images.py", f"--workdir={tmp_path / 'short'}", *flags, *small]
    process = commands.run(command)
    assert process.returncode == 0, process.stderr
    assert "Warning" not in process.stdout + process.stderr
    found = rows(tmp_path / "short")
    assert [row["step"] for row in found] == [10, 20, 30, 40]
    # The warm-up is of 4 steps, of which the last has three quarters of the rate.
    assert max(row["learning_rate"] for row in found) == pytest.approx(0.0075)
    settings = json.loads((tmp_path / "short" / "config.json").read_text())
    assert settings["optimizer"]["warmup_epochs"] == pytest.approx(4 / 14)
    assert {settings["train"][f"{what}_every_steps"] for what in ("checkpoint", "evaluate", "sample")} == {10}
    assert len(list((tmp_path / "short" / "samples").iterdir())) == 4


@pytest.mark.slow
def test_a_warm_up_longer_than_the_run_is_warned_about_once(commands, tmp_path):
    changes = {"train__steps": 10, "train__sample_every_steps": 1000, "optimizer__warmup_epochs": 1}
    process = commands.run(commands.tiny_training(tmp_path / "run", **changes))
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("Warning: optimizer.warmup_epochs = 1 is 14 steps, more than the run's 10") == 1
    assert process.stdout.count("Warning: train.evaluate_every_steps = 20 is more than the run's 10 steps") == 1


def test_tensorboard_has_curves_of_every_group_and_pictures(finished_run):
    workdir, _ = finished_run
    tags = set()
    for file in (workdir / "tensorboard").iterdir():
        for record in tf.data.TFRecordDataset(str(file)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            tags |= {(value.tag, event.step) for value in event.summary.value}
    assert {
        ("kl_per_group/00", 20),
        ("kl_per_group/01", 60),
        ("test/nelbo_nats", 40),
        ("train/loss", 8),
    } <= tags
    assert {("schedule/learning_rate", 56), ("samples/temperature_0.7", 40)} <= tags


@pytest.mark.slow
def test_interrupted_and_continued_is_the_same_run(commands, finished_run, tmp_path):
    workdir = tmp_path / "interrupted"
    # Checkpoints of other steps make no difference.
    command = commands.tiny_training(workdir, train__checkpoint_every_steps=7)
    code, output = commands.run_until_training(command, commands.SIGINT)
    assert code == 130
    assert "checkpoint saved. The same command goes on from there" in output
    assert "python -m train.main --config=configs/digits.py" in output
    process = commands.run(command)
    assert process.returncode == 0 and ", from step " in process.stdout
    assert_same_run(finished_run[0], workdir, 60)


@pytest.mark.slow
def test_sigterm_does_the_same_and_another_seed_is_another_run(commands, finished_run, tmp_path):
    command = commands.tiny_training(tmp_path, train__seed=6)
    code, output = commands.run_until_training(command, commands.SIGTERM)
    assert code == 143 and "by SIGTERM; checkpoint saved" in output
    assert commands.run(command).returncode == 0
    expected, found = tensors(finished_run[0], 60), tensors(tmp_path, 60)
    assert any((found[name] != expected[name]).any() for name in expected)


@pytest.mark.slow
def test_a_finished_run_is_not_done_again(commands, finished_run):
    workdir, _ = finished_run
    before = {file: file.stat().st_mtime_ns for file in workdir.rglob("*") if file.is_file()}
    process = commands.run(commands.tiny_training(workdir))
    assert process.returncode == 0 and "a finished run" in process.stdout
    after = {file: file.stat().st_mtime_ns for file in workdir.rglob("*") if file.is_file()}
    changed = {file.name for file in after if after[file] != before.get(file)}
    assert not changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__batch_sise": 3}, "no such setting; did you mean --config.train.batch_size?"),
        ({"trian__batch_size": 3}, "no such setting; did you mean --config.train.batch_size?"),
        ({"train__batch_size": "many"}, "train.batch_size=many: 'many' is not a whole number"),
        ({"train__batch_size": 0}, "train.batch_size = 0: must be at least 1"),
        ({"data__num_bits": 9}, "data.num_bits = 9: must be from 1 to 8"),
        ({"model__num_latent_scales": 6, "data__padded_height": 16}, "model.padded_height = 16: not divisible by 32"),
        ({"model__cell_set": "res_mbcon"}, "did you mean 'res_mbconv'?"),
    ],
)
def test_a_wrong_setting_is_one_line(commands, tmp_path, changes, message):
    check_refusal(commands.run(commands.tiny_training(tmp_path / "new", **changes)), message)
    assert not (tmp_path / "new").exists()


def test_settings_that_do_not_fit_the_data_are_one_line(commands, tmp_path):
    check_refusal(
        commands.run(commands.tiny_training(tmp_path / "new", train__batch_size=1438)),
        "A batch of 1438 is larger than the training split of 1437 images",
    )
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_foreign_folder_and_other_settings_are_refused(commands, finished_run, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    check_refusal(commands.run(commands.tiny_training(tmp_path)), "not empty and not a run folder")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    process = commands.run(commands.tiny_training(finished_run[0], train__batch_size=50))
    check_refusal(process, "makes 50 images a step; this run was begun with 100: set train.batch_size=100")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/digts.py", "--workdir=x"], "no such preset or file; did you mean configs/digits.py?"),
        (
            ["--config=configs/digits.py", "--wrkdir=x"],
            "Unknown command line flag 'wrkdir'. Did you mean: workdir ?",
        ),
        (["--config=configs/digits.py"], "--workdir is missing"),
        (["--workdir=x"], "--config is missing"),
        (["--config=configs/digits.py", "--workdir=x", "more"], "'more': not a flag"),
    ],
)
def test_a_wrong_command_is_one_line(commands, flags, message):
    check_refusal(commands.run(["-m", "train.main", *flags]), message)


def test_help_is_a_manual_page(commands):
    process = commands.run(["-m", "train.main", "--help"])
    assert process.returncode == 0
    for text in (
        "python -m train.main --config=",
        "metrics.csv",
        "--workdir",
        "train.batch_size",
        "Exit code: 0 done",
    ):
        assert text in process.stdout


def check_refusal(process, message):
    assert process.returncode == 2
    assert len(process.stderr.strip().splitlines()) == 1
    assert process.stderr.startswith("error: ") and message in process.stderr
