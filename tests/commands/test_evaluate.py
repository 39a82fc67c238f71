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

import nvae_tf
from nvae_tf.evaluation.batch_norm_statistics import readjusted
from nvae_tf.training.worker_environments import tf_configs
from tests.evaluation.inception_stand_in import stand_in

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


def test_what_is_measured(whole, finished_run):
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
    card = (workdir / "README.md").read_text()
    assert f'"nelbo"\n            value: {figures["nelbo_nats"]!r}' in card
    assert f"| {figures['importance_weighted_nats']:.3f} | nats an image |" in card
    assert "--metrics=elbo,iw,latents --seed=3 --importance_samples=150" in card
    assert all(f"({name})" in card for name in figures["latents"]["pictures"])
    # That of the training, which knows no evaluation.
    card = (finished_run[0] / "README.md").read_text()
    assert "newest checkpoint | step 60 |" in card and "(samples/step-00000060.png)" in card


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_where_it_was(commands, run, whole):
    flags = ["--importance_samples=150", "--batch_size=20", "--seed=3"]
    process = subprocess.Popen([sys.executable, *evaluation(run, *flags)], stdout=subprocess.DEVNULL)
    while process.poll() is None and len(list(run.glob("evaluation/unfinished-*/batch-*.npz"))) < 3:
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = sorted(run.glob("evaluation/unfinished-*/batch-*.npz"))
    # As one that was damaged on the disk: it is done again.
    kept.pop().write_bytes(b"damaged")
    assert not (run / "evaluation.json").exists() and 2 <= len(kept) < 17
    process = commands.run(evaluation(run, *flags))
    assert process.returncode == 0, process.stderr
    assert f"{len(kept)} of 18 batches are there already" in process.stdout
    found, expected = figures_of(run), figures_of(whole[0])
    del expected["latents"]
    assert found == expected


@pytest.mark.slow
def test_replicas_and_another_batch_size_find_the_same(commands, run, whole):
    process = commands.run(evaluation(run, "--importance_samples=150", "--seed=3", "--replicas=2", "--batch_size=60"))
    assert process.returncode == 0, process.stderr
    found, expected = figures_of(run), figures_of(whole[0])
    assert found["batch_size"] == 120
    for name in ("nelbo_nats", "importance_weighted_nats", "reconstruction_nats", "kl_nats"):
        assert found[name] == pytest.approx(expected[name], rel=ROUNDING)
    np.testing.assert_allclose(found["kl_per_group_nats"], expected["kl_per_group_nats"], rtol=1e-4)


@pytest.mark.slow
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
    printed = [worker.communicate(timeout=600)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], printed
    assert "NELBO" in printed[0] and "worker 1: done" in printed[1]
    found, expected = figures_of(run), figures_of(whole[0])
    del expected["latents"]
    assert found == expected


@pytest.mark.slow
def test_figures_of_the_same_checkpoint_are_kept_and_of_another_are_not(commands, run):
    assert commands.run(evaluation(run, "--metrics=iw", "--importance_samples=2")).returncode == 0
    first = figures_of(run)
    assert commands.run(evaluation(run, "--metrics=elbo")).returncode == 0
    assert figures_of(run) == first
    assert commands.run(evaluation(run, "--metrics=elbo", "--seed=1")).returncode == 0
    assert "importance_weighted_nats" not in figures_of(run)
    (aside,) = (run / "evaluation").glob("evaluation-step-60-seed-0-*.json")
    assert json.loads(aside.read_text())["importance_weighted_nats"] == first["importance_weighted_nats"]
    (run / "evaluation.json").write_text("{")
    process = commands.run(evaluation(run, "--metrics=elbo"))
    assert process.returncode == 0 and "can't be read; it is kept as" in process.stdout
    assert (run / "evaluation" / "evaluation-damaged.json").read_text() == "{"


@pytest.mark.slow
def test_fid_with_a_graph_of_the_same_form(commands, run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    graph = tmp_path / "classify_image_graph_def.pb"
    graph.write_bytes(stand_in().content)
    flags = ["--metrics=fid", f"--inception={graph}", "--fid_samples=40", "--temperature=0.8"]
    process = commands.run(evaluation(run, *flags))
    assert process.returncode == 0, process.stderr
    assert "not the published Inception graph" in process.stdout and "features of the 1,437" in process.stdout
    first = figures_of(run)["fid"]
    assert first["value"] > 0.0 and first["real_images"] == 1437 and first["samples"] == 40
    # The statistics of the real images are kept, and the samples of a readjusted model are others.
    process = commands.run(evaluation(run, *flags, "--batch_norm_iterations=20"))
    assert process.returncode == 0, process.stderr
    assert "features of the 1,437" not in process.stdout and "batch norm of" in process.stdout
    readjusted_value = figures_of(run)["fid"]["value"]
    assert readjusted_value != first["value"]
    # Two replicas share the samples, which stay the same.
    process = commands.run(evaluation(run, *flags, "--batch_norm_iterations=20", "--replicas=2"))
    assert process.returncode == 0, process.stderr
    assert figures_of(run)["fid"]["value"] == pytest.approx(readjusted_value, rel=1e-3)
    check_missing = commands.run(evaluation(run, "--metrics=fid", f"--inception={tmp_path / 'no.pb'}"))
    assert check_missing.returncode == 2 and "there is no such file" in check_missing.stderr


@pytest.mark.slow
def test_fid_in_features_of_the_users_own(commands, run, tmp_path, monkeypatch):
    (tmp_path / "my_features.py").write_text(
        """
class Quadrants:
    name = "means of the quadrants"

    def features(self, images):
        return images.reshape(len(images), 2, 8, 2, 8).mean(axis=(2, 4)).reshape(len(images), 4)
"""
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    process = commands.run(evaluation(run, "--metrics=fid", "--extractor=my_features:Quadrants", "--fid_samples=20"))
    assert process.returncode == 0, process.stderr
    found = figures_of(run)["fid"]
    assert found["extractor"].startswith("means of the quadrants (my_features, ") and found["value"] > 0.0
    assert not found["extractor_is_published"]
    # After a change of the module nothing that was kept is taken for its features.
    module = tmp_path / "my_features.py"
    module.write_text(module.read_text().replace("mean(", "max("))
    process = commands.run(evaluation(run, "--metrics=fid", "--extractor=my_features:Quadrants", "--fid_samples=20"))
    assert process.returncode == 0 and "features of the 1,437" in process.stdout
    assert figures_of(run)["fid"]["extractor"] != found["extractor"]


@pytest.mark.slow
def test_a_trained_model_stays_finite_when_it_is_readjusted(finished_run):
    model = nvae_tf.load(finished_run[0])
    for temperature in (0.3, 0.5, 0.7, 1.0):
        adjusted = readjusted(model, temperature, iterations=60)
        assert np.isfinite(adjusted.model.generate(16, temperature)).all()
        assert all(np.isfinite(shift[1:]).all() for shift in adjusted.shifts)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--metrics=", "--metrics is empty"),
        ("--metrics=elbo,wi", "--metrics = 'wi': not one of the choices (elbo, iw"),
        ("--importance_samples=0", "importance_samples"),
        ("--batch_size=0", "batch_size"),
        ("--replicas=-1", "replicas"),
        ("--temperature=0", "--temperature=0: must be greater than 0"),
        ("--fid_samples=1", "fid_samples"),
        ("--fid_samples=10", "--fid_samples is of metric fid"),
        ("--extractor=a:b", "--extractor is of metric fid"),
    ],
)
def test_wrong_flags_are_told_in_one_line(commands, tmp_path, flag, message):
    (tmp_path / "config.json").touch()
    process = commands.run(evaluation(tmp_path, flag))
    assert process.returncode == 2
    assert message in process.stderr and process.stderr.count("\n") == 1


def test_a_run_without_a_checkpoint(commands, run):
    (run / "checkpoints").unlink()
    process = commands.run(evaluation(run))
    assert process.returncode == 2
    assert "no checkpoint in" in process.stderr and process.stderr.count("\n") == 1
