import importlib
import json
import os
import sys
import types

import numpy as np
import pytest
from PIL import Image

import nvae_tf
from nvae_tf.config import DataSpec
from nvae_tf.evaluation import fid
from nvae_tf.evaluation.probe import load_probe
from nvae_tf.evaluation.table import interval
from nvae_tf.progress import StatusLine
from nvae_tf.training.launcher import tf_configs
from tests.command_fixtures import score_of
from tests.evaluation.inception_stand_in import stand_in

FLAGS = ["--importance_samples=20", "--batch_size=20", "--seed=3"]


def evaluation(workdir, *flags):
    return ["-m", "train.evaluate", f"--workdir={workdir}", *flags]


def metrics_of(workdir):
    metrics = json.loads((workdir / "evaluation.json").read_text())
    del metrics["date"], metrics["command"]
    return metrics


def copy_of(run, folder):
    folder.mkdir()
    for name in ("config.json", "images.json", "checkpoints"):
        (folder / name).symlink_to(run / name)
    return folder


@pytest.fixture
def run(finished_run, tmp_path):
    return copy_of(finished_run[0], tmp_path / "run")


@pytest.fixture(scope="module")
def whole(commands, finished_run, tmp_path_factory):
    """The run folder after an evaluation in one go with all but fid, and what it printed."""
    workdir = copy_of(finished_run[0], tmp_path_factory.mktemp("evaluated") / "run")
    return workdir, commands.output_of(evaluation(workdir, "--metrics=elbo,iw,latents", *FLAGS))


@pytest.mark.slow
def test_what_is_measured(whole):
    workdir, printed = whole
    metrics = metrics_of(workdir)
    expected = {"num_images": 360, "step": 60, "seed": 3, "importance_samples": 20, "split": "test", "batch_size": 20}
    assert expected.items() <= metrics.items()
    command = json.loads((workdir / "evaluation.json").read_text())["command"]
    assert command == " ".join(["nvae-evaluate --workdir=run --metrics=elbo,iw,latents", *FLAGS])
    assert metrics["nelbo_nats"] == pytest.approx(metrics["reconstruction_nats"] + metrics["kl_nats"])
    assert metrics["kl_nats"] == pytest.approx(sum(metrics["kl_per_group_nats"]))
    assert metrics["importance_weighted_nats"] < metrics["nelbo_nats"]
    assert list(metrics["importance_weighted_nats_by_samples"]) == ["1", "10", "20"]
    assert 1.0 <= metrics["effective_samples"]["smallest"] <= metrics["effective_samples"]["mean"] <= 20.0
    kept = metrics["latents"]["active_only"]
    assert kept["num_images"] == 360 and 1 <= kept["channels"] < metrics["latents"]["latent_channels"]
    assert kept["reconstruction_nats_of_all_channels"] == pytest.approx(metrics["reconstruction_nats"], rel=1e-5)
    assert (workdir / "evaluation.txt").read_text() in printed and len(metrics["latents"]["pictures"]) == 3
    card = (workdir / "README.md").read_text()
    bound = interval(metrics["importance_weighted_nats"], metrics["half_widths_95"]["importance_weighted_nats"])
    assert f"{bound} nats per image" in card
    for name in metrics["latents"]["pictures"]:
        assert np.asarray(Image.open(workdir / name)).std() > 1.0 and f"({name})" in card


@pytest.mark.slow
@pytest.mark.parametrize("other_flags", [[], ["--seed=4"]])
def test_two_workers_share_the_work_of_the_same_evaluation(commands, run, whole, other_flags):
    workers = [
        commands.started(evaluation(run, *FLAGS, *flags), env=os.environ | {"TF_CONFIG": tf_config})
        for flags, tf_config in zip(([], other_flags), tf_configs(2), strict=True)
    ]
    printed = [worker.communicate(timeout=600)[0] for worker in workers]
    codes = [worker.returncode for worker in workers]
    if other_flags:
        assert codes == [2, 2] and not (run / "evaluation.json").exists(), printed
        assert all("error: the workers do not evaluate the same: give all of them" in text for text in printed)
    else:
        assert codes == [0, 0] and "NELBO" in printed[0] and "worker 1: done" in printed[1], printed
        assert metrics_of(run) == {name: value for name, value in metrics_of(whole[0]).items() if name != "latents"}


@pytest.mark.slow
def test_a_worker_whose_fellow_is_killed_ends_in_a_line(commands, run):
    settings = tf_configs(2)
    np.save(run / "noise.npy", np.random.default_rng(0).integers(0, 256, (40, 16, 16)).astype(np.uint8))
    command = evaluation(run, "--metrics=outliers", f"--outliers={run / 'noise.npy'}", "--batch_size=1")
    chief, other = (commands.started(command, env=os.environ | {"TF_CONFIG": setting}) for setting in settings)
    next(line for line in other.stdout if line.startswith("test images: 360"))
    other.kill()
    printed = chief.communicate(timeout=120)[0]
    assert chief.returncode == 75, printed
    (line,) = [line for line in printed.splitlines() if line.startswith("error:")]
    assert "another worker has ended or can't be reached" in line and "Traceback" not in printed
    assert not (run / "evaluation.json").exists()


@pytest.mark.slow
def test_metrics_of_the_same_checkpoint_are_kept_and_of_another_are_not(done, finished_run, run):
    def evaluated(*flags):
        return done(*evaluation(run, *flags)[1:])

    evaluated("--metrics=iw", "--importance_samples=2")
    first = metrics_of(run)
    # Training has evaluated the same images with the same draws.
    assert f"{first['nelbo_nats']:.4g}" == f"{score_of(finished_run[0], 60):.4g}"
    evaluated("--metrics=elbo")
    assert metrics_of(run) == first
    evaluated("--metrics=elbo", "--seed=1")
    assert "importance_weighted_nats" not in metrics_of(run)
    (aside,) = (run / "evaluation").glob("evaluation-step-60-seed-0-*.json")
    assert json.loads(aside.read_text())["importance_weighted_nats"] == first["importance_weighted_nats"]
    (run / "evaluation.json").write_text("{")
    assert "can't be read; it is kept as" in evaluated("--metrics=elbo")
    assert (run / "evaluation" / "evaluation-damaged.json").read_text() == "{"


# The distance of Inception's 2048 features takes longer than all else here.
FEW = 32
WITH_FEW_FEATURES = f"""
import runpy
from nvae_tf.evaluation import fid
fid.NUM_FEATURES = {FEW}
runpy.run_module("train.evaluate", run_name="__main__")
"""


@pytest.mark.slow
def test_fid_with_a_graph_of_the_same_form_and_replicas(commands, done, run, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fid, "NUM_FEATURES", FEW)
    graph = tmp_path / "classify_image_graph_def.pb"
    graph.write_bytes(stand_in(FEW).SerializeToString())
    flags = ["--metrics=fid", f"--inception={graph}", "--fid_samples=40", "--temperature=0.8", "--seed=3"]
    printed = done(*evaluation(run, *flags)[1:])
    assert "not the published Inception graph" in printed and "features of the 1,437" in printed
    first = metrics_of(run)["fid"]
    assert first["value"] > 0.0 and first["real_images"] == 1437 and first["samples"] == 40
    # The statistics of the real images are kept, and the samples of a readjusted model are others.
    flags.append("--batch_norm_iterations=4")
    printed = done(*evaluation(run, *flags)[1:])
    assert "features of the 1,437" not in printed and "batch norm of" in printed
    readjusted_value = metrics_of(run)["fid"]["value"]
    assert readjusted_value != first["value"]
    flags += ["--metrics=elbo,iw,fid", "--importance_samples=20", "--batch_size=60", "--replicas=2"]
    (tmp_path / "evaluate.py").write_text(WITH_FEW_FEATURES)
    commands.output_of([tmp_path / "evaluate.py", *evaluation(run, *flags)[2:]])
    measured, expected = metrics_of(run), metrics_of(whole[0])
    assert measured["fid"]["value"] == pytest.approx(readjusted_value, rel=1e-3) and measured["batch_size"] == 120
    for name in ("nelbo_nats", "importance_weighted_nats", "reconstruction_nats", "kl_nats"):
        assert measured[name] == pytest.approx(expected[name], rel=1e-5)


def test_features_of_the_users_own_have_a_name_that_changes_with_their_module(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    names = set()
    for number in (1, 2):
        text = f"class Means:\n    name = 'means'\n    def features(self, images):\n        return {number} * images\n"
        (tmp_path / "my_features.py").write_text(text)
        sys.modules.pop("my_features", None)
        importlib.invalidate_caches()
        extractor = fid.named_extractor("my_features:Means")
        assert extractor.features(3) in (3, 6)
        names.add(extractor.name)
    assert len(names) == 2 and all(name.startswith("means (my_features, ") for name in names)


@pytest.mark.slow
def test_probes_of_features_and_pixels(done, refused, run, monkeypatch):
    monkeypatch.setattr("nvae_tf.evaluation.probe.SPLITS", 2)
    printed = done(*evaluation(run, "--metrics=probe")[1:])
    probe = metrics_of(run)["probe"]
    assert probe["labels"] == [50, 200, 500, 1437] and probe["test_images"] == 360
    for probed, accuracy in probe["accuracy"].items():
        assert accuracy.keys() == {"features", "pixels", "PCA of the pixels"}
        assert all(0.1 < values[0] < values[1] < values[2] for values in accuracy.values()), probed
    assert f"{probe['accuracy']['logistic regression']['pixels'][0]:.3f} pixels" in printed
    assert Image.open(run / probe["pictures"][0]).info["data"] == "test images"
    message = "--metrics=probe: it learns from the training part; leave --split=train out"
    assert message in refused(*evaluation(run, "--metrics=probe", "--split=train")[1:])


@pytest.mark.slow
def test_outliers_are_told_from_test_images(done, refused, run, tmp_path, monkeypatch):
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).integers(0, 256, (40, 16, 16)).astype(np.uint8))
    (tmp_path / "lines").mkdir()
    for number in range(5):
        # Of another size and in color.
        lines = np.zeros((40, 20, 3), np.uint8)
        lines[:, 2 * number + 4] = 255
        Image.fromarray(lines).save(tmp_path / "lines" / f"{number}.png")
    flags = ["--metrics=outliers", f"--outliers={tmp_path / 'noise.npy'},{tmp_path / 'lines'}", "--batch_size=60"]
    find_spec = importlib.util.find_spec
    with monkeypatch.context() as without:
        without.setattr("importlib.util.find_spec", lambda name, *_: None if name == "matplotlib" else find_spec(name))
        without.setattr("nvae_tf.reports.evaluate.chosen_images", None)
        without.setattr("nvae_tf.reports.evaluate.rows_sharing_groups", None)
        printed = done(*evaluation(run, *flags, "--metrics=latents,outliers")[1:])
    first = metrics_of(run)["outliers"]
    assert printed.count("no figures, matplotlib is not installed") == 1 and first["pictures"] == []
    assert "nvae-calibrate has not been run" in printed and not first["calibrated"]
    assert list(first["sets"]["lines"]["auroc"]) == ["kl", "nelbo_at_mean"]
    done("train.calibrate", f"--workdir={run}", "--images=600")
    (run / "evaluation.json").unlink()
    printed = done(*evaluation(run, *flags)[1:])
    second = metrics_of(run)["outliers"]
    assert {name: measured["num_images"] for name, measured in second["sets"].items()} == {"noise.npy": 40, "lines": 5}
    for name, measured in second["sets"].items():
        assert list(measured["auroc"]) == ["mahalanobis", "kl", "nelbo_at_mean"]
        assert measured["auroc"]["kl"] == pytest.approx(first["sets"][name]["auroc"]["kl"], abs=0.01)
    noise = second["sets"]["noise.npy"]
    assert noise["auroc"]["mahalanobis"] > 0.95 and noise["flagged"]["mahalanobis"] == 1.0
    assert (run / "evaluation.txt").read_text() in printed
    for name in second["pictures"]:
        assert np.asarray(Image.open(run / name)).std() > 1.0 and f"({name})" in (run / "README.md").read_text()
    model, before = nvae_tf.load(run), (run / "outliers.npz").read_bytes()
    assert np.all(model.outlier_score(np.ones((1, 16, 16, 1))).mahalanobis_p_value < 0.05)
    (run / "outliers.npz").write_bytes(before[:-50])
    assert "outliers.npz: damaged, or of another version" in refused(*evaluation(run, *flags)[1:])


def test_outliers_that_are_missing_are_refused(refused, run):
    for flags, message in (
        ([], "--outliers=: give folders of pictures of another kind, of different names"),
        (["--outliers=nowhere"], "/nowhere: no such file or folder"),
        (["--outliers=test images"], "of different names, none of them 'test images'"),
    ):
        assert message in refused(*evaluation(run, "--metrics=outliers", *flags)[1:])


def test_probes_read_labels_that_the_model_does_without(tmp_path):
    file, parts = tmp_path / "images.npz", {part: np.zeros((4, 4, 4, 1), np.uint8) for part in ("train", "test")}
    spec = DataSpec("mine", "arrays", None, str(file), height=4, width=4, channels=1)
    task = types.SimpleNamespace(spec=spec, split="test", status=StatusLine())
    np.savez(file, **parts)
    with pytest.raises(ValueError, match="--metrics=probe: it needs images with classes"):
        load_probe(task)
    np.savez(file, **parts, **{f"{part}_labels": np.int32([0, 1, 1, 0]) for part in parts})
    assert [source.labels.tolist() for source in load_probe(task)] == [[0, 1, 1, 0]] * 2
