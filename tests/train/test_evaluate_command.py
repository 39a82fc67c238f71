"""`train.evaluate` as people run it: interrupted, on several replicas, by several processes, again."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from train.worker_environments import tf_configs

# How a figure may differ between evaluations of the same checkpoint with other batches.
ROUNDING = 1e-5


def evaluation(workdir, *flags):
    return ["-m", "train.evaluate", f"--workdir={workdir}", *flags]


def figures_of(workdir):
    figures = json.loads((workdir / "evaluation.json").read_text())
    del figures["date"]
    return figures


@pytest.fixture
def run(finished_run, tmp_path):
    """A copy of the run folder without an evaluation, and where its checkpoints are."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    for name in ("config.json", "images.json", "checkpoints"):
        (workdir / name).symlink_to(finished_run[0] / name)
    return workdir


@pytest.fixture(scope="module")
def whole(commands, finished_run, tmp_path_factory):
    """The figures of an evaluation in one go with all metrics, and what it printed."""
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    workdir.mkdir()
    for name in ("config.json", "images.json", "checkpoints"):
        (workdir / name).symlink_to(finished_run[0] / name)
    flags = ["--metrics=elbo,iw,latents", "--importance_samples=150", "--batch_size=20", "--seed=3"]
    process = commands.run(evaluation(workdir, *flags))
    assert process.returncode == 0, process.stderr
    return workdir, process.stdout


def test_what_is_measured(whole):
    workdir, printed = whole
    figures = figures_of(workdir)
    assert figures["kl_nats"] == pytest.approx(sum(figures["kl_per_scale_nats"]))
    assert figures["kl_nats"] == pytest.approx(sum(figures["kl_per_group_nats"]))
    by_samples = figures["importance_weighted_nats_by_samples"]
    assert list(by_samples) == ["1", "10", "100", "150"]
    assert list(by_samples.values()) == sorted(by_samples.values(), reverse=True)
    assert by_samples["150"] == figures["importance_weighted_nats"]
    assert 1.0 <= figures["effective_samples"]["smallest"] <= figures["effective_samples"]["mean"] <= 150.0
    assert 0.0 < figures["half_widths_95"]["nelbo_nats"] < 5.0
    assert figures["latents"]["active_units"] == sum(figures["latents"]["active_units_per_group"])
    for name in figures["latents"]["pictures"]:
        assert np.asarray(Image.open(workdir / name)).std() > 1.0
    assert (workdir / "evaluation.txt").read_text() in printed
    assert not list((workdir / "evaluation").glob("unfinished-*"))


def test_a_killed_evaluation_goes_on_where_it_was(commands, run, whole):
    flags = ["--importance_samples=150", "--batch_size=20", "--seed=3"]
    process = subprocess.Popen([sys.executable, *evaluation(run, *flags)], stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(run.glob("evaluation/unfinished-*/batch-*.npz"))) < 3:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = list(run.glob("evaluation/unfinished-*/batch-*.npz"))
    assert not (run / "evaluation.json").exists() and 3 <= len(kept) < 18
    # One that the killed process could have damaged is told and done again.
    process = commands.run(evaluation(run, *flags))
    assert process.returncode == 0, process.stderr
    assert f"{len(kept)} of 18 batches are there already" in process.stdout
    found, expected = figures_of(run), figures_of(whole[0])
    del expected["latents"]
    assert found == expected


def test_replicas_and_another_batch_size_find_the_same(commands, run, whole):
    process = commands.run(evaluation(run, "--importance_samples=150", "--seed=3", "--replicas=2", "--batch_size=60"))
    assert process.returncode == 0, process.stderr
    found, expected = figures_of(run), figures_of(whole[0])
    assert found["batch_size"] == 120
    for name in ("nelbo_nats", "importance_weighted_nats", "reconstruction_nats", "kl_nats"):
        assert found[name] == pytest.approx(expected[name], rel=ROUNDING)
    np.testing.assert_allclose(found["kl_per_group_nats"], expected["kl_per_group_nats"], rtol=1e-4)


def test_two_workers_share_the_work(run, whole):
    flags = ["--importance_samples=150", "--batch_size=20", "--seed=3"]
    workers = [
        subprocess.Popen(
            [sys.executable, *evaluation(run, *flags)],
            env=os.environ | {"TF_CONFIG": tf_config},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for tf_config in tf_configs(2)
    ]
    printed = [worker.communicate(timeout=300)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed
    assert "NELBO" in printed[0] and "worker 1: done" in printed[1]
    found, expected = figures_of(run), figures_of(whole[0])
    del expected["latents"]
    assert found == expected


def test_figures_of_the_same_checkpoint_are_kept_and_of_another_are_not(commands, run):
    assert commands.run(evaluation(run, "--metrics=iw", "--importance_samples=2")).returncode == 0
    first = figures_of(run)
    assert commands.run(evaluation(run, "--metrics=elbo")).returncode == 0
    assert figures_of(run) == first
    assert commands.run(evaluation(run, "--metrics=elbo", "--seed=1")).returncode == 0
    assert "importance_weighted_nats" not in figures_of(run)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--metrics=", "--metrics is empty"),
        ("--metrics=elbo,wi", "--metrics = 'wi': not one of the choices (elbo, iw"),
        ("--importance_samples=0", "importance_samples"),
        ("--batch_size=0", "batch_size"),
        ("--replicas=-1", "replicas"),
    ],
)
def test_wrong_flags_are_told_in_one_line(commands, tmp_path, flag, message):
    process = commands.run(evaluation(tmp_path, flag))
    assert process.returncode == 2
    assert message in process.stderr and process.stderr.count("\n") == 1


def test_a_run_without_a_checkpoint(commands, run):
    (run / "checkpoints").unlink()
    process = commands.run(evaluation(run))
    assert process.returncode == 2
    assert "no checkpoint in" in process.stderr and process.stderr.count("\n") == 1
