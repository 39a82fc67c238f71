import json
import re
import signal

import numpy as np
import pytest

from nvae_tf.generation.image_grid import read_images
from tests.command_fixtures import assert_same_tensors, metrics_rows, saved_steps, score_of


def test_a_run_leaves_its_records(finished_run):
    workdir, output = finished_run
    assert "step 60/60" in output and "nats" in output and "images/s" in output
    assert "1,437 training and 360 test images" in output
    assert json.loads((workdir / "config.json").read_text())["objective"]["total_steps"] == 60
    actual = metrics_rows(workdir)
    assert [row["step"] for row in actual] == [20, 40, 60]
    for row in actual:
        assert row["test_nelbo_nats"] == pytest.approx(row["test_reconstruction_nats"] + row["test_kl_nats"], abs=1e-3)
        assert row["test_bits_per_dim"] == pytest.approx(row["test_nelbo_nats"] / np.log(2) / 256, rel=1e-4)
        assert row["test_kl_nats"] >= 0.0 and row["epoch"] == pytest.approx(row["step"] / 14, rel=1e-4)
    assert actual[-1]["test_nelbo_nats"] < actual[0]["test_nelbo_nats"] < 256 * np.log(2) + 1
    samples = sorted(file.name for file in (workdir / "samples").iterdir())
    assert samples == ["step-00000040.png", "step-00000060.png"]
    assert read_images(workdir / "samples" / samples[0], 16, 8).shape[:3] == (64, 16, 16)
    assert (workdir / "checkpoints" / "step-60.index").is_file()
    nelbo, bits = actual[-1]["test_nelbo_nats"], actual[-1]["test_bits_per_dim"]
    assert f"Test score: NELBO {nelbo:.2f} nats per image, {bits:.4f} bits/dim (360 images; " in output
    assert output.rstrip().splitlines()[-2:] == [
        f"Next: nvae-evaluate --workdir={workdir}",
        f"      nvae-generate --workdir={workdir} --output=samples.png",
    ]


@pytest.mark.slow
def test_interrupted_and_continued_is_the_same_run(commands, finished_run, tmp_path):
    workdir = tmp_path / "interrupted"
    command = commands.tiny_training(workdir, train__checkpoint_every_steps=7)
    code, output = commands.run_until_training(command, signal.SIGINT)
    assert code == 130
    assert re.search(r"interrupted at step \d+ by SIGINT; checkpoint saved. The same command continues from", output)
    assert "nvae-train --config=configs/digits.py" in output
    assert ", from step " in commands.output_of(command)
    assert_same_tensors(finished_run[0], workdir, 60)
    expected, actual = metrics_rows(finished_run[0]), metrics_rows(workdir)
    for row in (*expected, *actual):
        del row["images_per_second"]
    assert actual == expected


def test_a_finished_run_is_not_done_again(commands, finished_run):
    workdir, _ = finished_run
    # Not the file of the lock, whose name is hidden.
    before = {file: file.stat().st_mtime_ns for file in workdir.rglob("[!.]*") if file.is_file()}
    assert "a finished run" in commands.output_of(["-m", "train.main", f"--workdir={workdir}"])
    assert {file: file.stat().st_mtime_ns for file in workdir.rglob("[!.]*") if file.is_file()} == before


@pytest.mark.slow
def test_the_best_checkpoint_with_averages_is_found_by_commands(commands, done, tmp_path):
    workdir = tmp_path / "averaged"
    commands.train(workdir, train__steps=40, optimizer__ema_momentum=0.9)
    assert saved_steps(workdir / "checkpoints" / "best") == [40] and score_of(workdir, 40) < score_of(workdir, 20)
    flags = [f"--workdir={workdir}", "--checkpoint=best"]
    assert "best checkpoint, step 40, " in done("train.evaluate", *flags, "--metrics=elbo")
    metrics = json.loads((workdir / "evaluation.json").read_text())
    # Training has evaluated the averages too.
    assert metrics["weights"] == "exponential moving averages (EMA) of the weights"
    assert metrics["nelbo_nats"] == pytest.approx(score_of(workdir, 40), rel=1e-5)
    output = tmp_path / "samples.png"
    assert f"from step 40, in {output}" in done("train.generate", *flags, f"--output={output}", "--count=2")
