"""`train.evaluate`, `train.generate` and `train.reconstruct` on a finished run."""

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

import nvae_tf
from nvae_tf.generation import image_grid


def pixels(path):
    return np.asarray(Image.open(path))


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


def test_generation_is_seeded_and_does_not_depend_on_the_count(commands, finished_run, tmp_path):
    workdir, _ = finished_run
    command = ["-m", "train.generate", f"--workdir={workdir}", "--temperature=0.8", "--seed=3", "--columns=4"]
    for name, count in (("few", 8), ("many", 20)):
        process = commands.run([*command, f"--output={tmp_path / name}.png", f"--count={count}"])
        assert process.returncode == 0, process.stderr
    few, many = pixels(tmp_path / "few.png"), pixels(tmp_path / "many.png")
    assert few.shape == (2 * 70 - 6, 4 * 70 - 6)
    np.testing.assert_array_equal(many[: len(few)], few)
    images = nvae_tf.load(workdir).generate(8, temperature=0.8, seed=3)
    assert np.abs(image_grid(images, 4, enlarge=None)[..., 0].astype(int) - few).max() <= 1


def test_an_output_file_is_not_replaced_unless_told(commands, finished_run, tmp_path):
    workdir, _ = finished_run
    output = tmp_path / "samples.png"
    output.write_bytes(b"precious")
    command = ["-m", "train.generate", f"--workdir={workdir}", f"--output={output}", "--count=1"]
    check_refusal(commands.run(command), "there is such a file; give another name, or --overwrite")
    assert output.read_bytes() == b"precious"
    assert commands.run([*command, "--overwrite"]).returncode == 0
    assert pixels(output).shape == (64, 64)


def test_reconstructions_stand_below_originals(commands, finished_run, tmp_path):
    workdir, _ = finished_run
    output = tmp_path / "reconstructions.png"
    command = [
        "-m",
        "train.reconstruct",
        f"--workdir={workdir}",
        f"--output={output}",
        "--count=7",
        "--columns=5",
    ]
    process = commands.run(command)
    assert process.returncode == 0, process.stderr
    picture = pixels(output)
    assert picture.shape == (4 * 70 - 6, 5 * 70 - 6)
    assert set(np.unique(picture[:64])) <= {0, 128, 255}
    assert len(np.unique(picture[70:134, :64])) > 2
    # The places that no image fills are grey.
    assert (picture[140:204, 2 * 70 :] == 128).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train.generate", "--output=x.png", "--temperature=0"],
            "--temperature=0.0: must be greater than 0",
        ),
        (
            ["train.generate", "--output=x.png", "--temperature=-1"],
            "--temperature=-1.0: must be greater than 0",
        ),
        (["train.generate", "--output=x.png", "--count=0"], "flag --count=0"),
        (["train.generate"], "--output is missing"),
        (["train.evaluate", "--split=dev"], "flag --split=dev"),
        (["train.evaluate", "--importance_samples=-1"], "flag --importance_samples=-1"),
        (
            ["train.reconstruct", "--output=x.png", "--cuont=3"],
            "Unknown command line flag 'cuont'. Did you mean: count ?",
        ),
    ],
)
def test_a_wrong_flag_is_one_line(commands, arguments, message):
    check_refusal(commands.run(["-m", *arguments, "--workdir=nowhere"]), message)


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


@pytest.mark.parametrize("name", ["train.evaluate", "train.generate", "train.reconstruct", "train.demo"])
def test_help_is_a_manual_page(commands, name):
    process = commands.run(["-m", name, "--help"])
    assert process.returncode == 0
    assert f"python -m {name} --workdir=" in process.stdout and "Exit code: 0 done" in process.stdout


def check_refusal(process, message):
    assert process.returncode == 2
    assert len(process.stderr.strip().splitlines()) == 1
    assert process.stderr.startswith("error: ") and message in process.stderr
