"""`train.evaluate` and `train.generate` on a finished run; the latter's modes are in test_generate_command.py."""

import json
import math
import shutil

import pytest


@pytest.mark.slow
def test_evaluation_prints_a_table_and_writes_the_figures(commands, finished_run):
    workdir, _ = finished_run
    process = commands.run(["-m", "train.evaluate", f"--workdir={workdir}", "--importance_samples=20"])
    assert process.returncode == 0, process.stderr
    figures = json.loads((workdir / "evaluation.json").read_text())
    assert figures["importance_weighted_nats"] < figures["nelbo_nats"]
    assert figures["nelbo_nats"] == pytest.approx(figures["reconstruction_nats"] + figures["kl_nats"])
    assert figures["kl_nats"] == pytest.approx(sum(figures["kl_per_group_nats"]))
    assert min(figures["kl_per_group_nats"]) >= 0.0 and len(figures["kl_per_group_nats"]) == 2
    assert figures["bits_per_dim"] == pytest.approx(figures["nelbo_nats"] / (256 * math.log(2)))
    expected = {"num_images": 360, "step": 60, "seed": 0, "importance_samples": 20, "split": "test"}
    assert {name: figures[name] for name in expected} == expected
    # Training has evaluated the same images with the same draws.
    last = (workdir / "metrics.csv").read_text().splitlines()[-1].split(",")
    assert f"{figures['nelbo_nats']:.4g}" == f"{float(last[8]):.4g}"
    assert "importance-weighted, 20 samples" in process.stdout
    assert f"{figures['nelbo_nats']:.3f}" in process.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train.generate", "--output=x.png", "--temperature=0"],
            "--temperature=0: must be greater than 0",
        ),
        (
            ["train.generate", "--output=x.png", "--temperature=-1"],
            "--temperature=-1: must be greater than 0",
        ),
        (["train.generate", "--output=x.png", "--count=0"], "flag --count=0"),
        (["train.generate"], "--output is missing"),
        (["train.evaluate", "--split=dev"], "flag --split=dev"),
        (["train.evaluate", "--importance_samples=-1"], "flag --importance_samples=-1"),
        (
            ["train.generate", "reconstruct", "--output=x.png", "--cuont=3"],
            "Unknown command line flag 'cuont'. Did you mean: count ?",
        ),
    ],
)
def test_a_wrong_flag_is_one_line(commands, tmp_path, arguments, message):
    (tmp_path / "config.json").touch()
    check_refusal(commands.run(["-m", *arguments, f"--workdir={tmp_path}"]), message)


@pytest.mark.parametrize("name", ["train.evaluate", "train.generate"])
def test_a_missing_folder_is_one_line(commands, name, tmp_path):
    output = [] if name == "train.evaluate" else [f"--output={tmp_path / 'x.png'}"]
    process = commands.run(["-m", name, f"--workdir={tmp_path / 'nowhere'}", *output])
    check_refusal(process, "nowhere: no such folder; give the --workdir of a run of train.main")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_architecture_is_one_line(commands, finished_run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finished_run[0], copy)
    config = json.loads((copy / "config.json").read_text())
    config["model"]["num_groups_per_scale"] = 2
    (copy / "config.json").write_text(json.dumps(config))
    process = commands.run(["-m", "train.generate", f"--workdir={copy}", f"--output={tmp_path / 'x.png'}"])
    check_refusal(process, "a checkpoint of another architecture than the settings")


@pytest.mark.parametrize("name", ["train.evaluate", "train.generate", "train.demo"])
def test_help_is_a_manual_page(commands, name):
    process = commands.run(["-m", name, "--help"])
    assert process.returncode == 0
    assert f"python -m {name} --workdir=" in process.stdout and "Exit code: 0 done" in process.stdout


def check_refusal(process, message):
    assert process.returncode == 2
    assert len(process.stderr.strip().splitlines()) == 1
    assert process.stderr.startswith("error: ") and message in process.stderr
