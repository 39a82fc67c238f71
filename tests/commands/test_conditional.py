"""The commands on a model that is conditional on classes."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import nvae_tf
from nvae_tf.data.inspection import inspect
from nvae_tf.data.pipeline import shown_numbers
from nvae_tf.data.sources import load_split
from nvae_tf.progress import StatusLine
from nvae_tf.reports import generate as tasks
from nvae_tf.runs.loading import TrainedRun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="conditional_run")
def copy_to_write_into(conditional_run, tmp_path_factory):
    return shutil.copytree(conditional_run, tmp_path_factory.mktemp("conditional") / "run")


def test_a_run_with_labels_is_scored_and_drawn_from(conditional_run, done, tmp_path):
    config = json.loads((conditional_run / "config.json").read_text())
    assert config["model"]["num_classes"] == config["data"]["num_classes"] == 10
    where = f"--workdir={conditional_run}"
    done("train.evaluate", where, "--metrics=elbo,iw", "--importance_samples=2")
    scores = json.loads((conditional_run / "evaluation.json").read_text())
    model = nvae_tf.load(conditional_run)
    source = nvae_tf.data.sources.load_split(nvae_tf.data.data_spec("digits"), "test")
    images = source.images / np.float32(255)
    # Of the images with their labels, which the model is given.
    with_labels = model.score(images, labels=source.labels, per_group=True, batch_size=120).nelbo
    assert scores["nelbo_nats"] == pytest.approx(float(np.mean(with_labels)), abs=0.5)
    raw = "--raw", "--overwrite", f"--output={tmp_path / 'grid.png'}"
    done("train.generate", where, "--labels=3,7", "--guidance=2", "--count=4", f"--each={tmp_path / 'each'}/", *raw)
    drawn = model.generate(4, seed=1, labels=[3, 7, 3, 7], guidance=2.0)
    for number in range(4):
        image = np.asarray(Image.open(tmp_path / "each" / f"sample_{number:05d}.png")) / 255
        np.testing.assert_allclose(image, drawn[number, ..., 0], atol=0.003)


def test_classes_have_names(conditional_run, done, refused, tmp_path):
    workdir, names = shutil.copytree(conditional_run, tmp_path / "named"), [f"digit {number}" for number in range(10)]
    counts = json.loads((workdir / "images.json").read_text())
    (workdir / "images.json").write_text(json.dumps(counts | {"class_names": names}))
    output = f"--output={tmp_path / 'classes.svg'}"
    done("train.generate", f"--workdir={workdir}", "--labels=digit 7,3,-1", "--count=4", output)
    words = " ".join(re.findall(">([^<>]+)</text>", (tmp_path / "classes.svg").read_text()))
    assert "digit 7 digit 3 none" in words and "labels digit 7,3,-1" in words
    message = refused("train.generate", f"--workdir={workdir}", "--labels=digt 7", output, "--overwrite")
    assert "classes 0 to 9 (digit 0 to digit 9); did you mean 'digit 7'?" in message
    run = TrainedRun(workdir)
    by_name, by_number = (tasks.sample(run, count=2, labels=labels).images for labels in (["digit 7", "3"], [7, 3]))
    np.testing.assert_array_equal(by_name, by_number)
    shown, test = inspect(run.config, 40, 0.1, StatusLine()), load_split(run.config.data, "test")
    assert list(shown) == [f"{part} images: {number}" for part in ("training", "test") for number in range(10)]
    numbers = [number for number in shown_numbers(test, 40) if test.labels[number] == 3]
    np.testing.assert_array_equal(shown["test images: 3"], test.images[numbers] / np.float32(255))
    assert len(numbers) == 4


def test_outliers_have_the_class_that_fits_best(conditional_run, done, refused, tmp_path):
    where, file = f"--workdir={conditional_run}", tmp_path / "new" / "scores.csv"
    done("train.calibrate", where, "--images=300")
    images = load_split(nvae_tf.data.data_spec("digits"), "test").images / np.float32(255)
    printed = done("train.evaluate", where, "--metrics=elbo", f"--scores={file}", "--seed=3")
    metrics = json.loads((conditional_run / "evaluation.json").read_text())
    assert "NELBO, in bits" in printed and f"scores of every image: {file}\n" in printed
    rows, scored = list(csv.DictReader(file.open())), nvae_tf.load(conditional_run).outlier_score(images)
    assert [row["image"] for row in rows] == [*map(str, range(360))]
    for name in ("nelbo_nats", "bits_per_dim"):
        assert np.mean([float(row[name]) for row in rows]) == pytest.approx(metrics[name], rel=1e-4)
    for name, expected in {"kl": scored.kl, "mahalanobis_p_value": scored.mahalanobis_p_value}.items():
        assert [float(row[name]) for row in rows] == pytest.approx(expected.numpy().tolist(), rel=1e-3)
    again = refused("train.evaluate", where, "--metrics=elbo", f"--scores={file}")
    assert f"--scores={file}: is there already; give another name, or --overwrite" in again


EXTRACTOR = """
class Means:
    name = "means of rows"

    def features(self, images):
        return images.mean(axis=(2, 3))
"""


def test_a_prior_is_learned_drawn_from_measured_and_shown(done, finished_run, tmp_path, monkeypatch):
    folder, drawn = tmp_path / "mine", ("--count=3", f"--output={tmp_path / 'samples.png'}", "--overwrite")
    shutil.copytree(finished_run[0], folder)
    where = f"--workdir={folder}"
    for name, number in ("_DRAWS", 3000), ("_PRIOR_DRAWS", 1000):
        monkeypatch.setattr(f"nvae_tf.training.prior.{name}", number)
    printed = done("train.prior", where, "--groups=2", "--steps=30", "--proposals=10")
    learned = r"classifier of the top 2 groups: .* of 10, 5 proposals .* effective\nwritten to .*prior.npz\n"
    assert re.search(learned, printed)
    done("train.generate", where, "--prior=reweighted", "--seed=4", f"--each={tmp_path / 'each'}/", *drawn)
    assert "prior reweighted" in Image.open(tmp_path / "samples.png").info["data"]
    assert "draws from it" in done("train.generate", where, *drawn)
    model = nvae_tf.load(folder)
    for number, image in enumerate(model.generate(3, seed=4, prior="reweighted").numpy()):
        actual = np.asarray(Image.open(tmp_path / "each" / f"sample_{number:05d}.png")) / 255
        np.testing.assert_allclose(actual, image[..., 0], atol=0.003)
    printed = done("train.generate", where, "--prior=reweighted", "--batch_norm_iterations=3", *drawn)
    assert "batch norm of" in printed
    (tmp_path / "row_means.py").write_text(EXTRACTOR)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    measure = "--metrics=frechet", "--extractor=row_means:Means", "--fid_samples=40"
    measured = {}
    for prior in ("model", "reweighted"):
        printed = done("train.evaluate", where, *measure, f"--prior={prior}")
        measured[prior] = json.loads((folder / "evaluation.json").read_text())["frechet"]
        assert measured[prior]["prior"] == prior and ("reweighted prior" in printed) == (prior == "reweighted")
    assert "Fréchet distance" in printed and measured["model"]["value"] != measured["reweighted"]["value"]
    card = (folder / "README.md").read_text()
    assert "--metrics=frechet --extractor=row_means:Means --fid_samples=40 --prior=reweighted" in card
    done("train.report", str(folder), f"--output={tmp_path / 'page.html'}")
    page = (tmp_path / "page.html").read_text()
    words = " ".join(re.sub("<[^>]*>", " ", page).split())
    assert "The last figure is of the reweighted prior at temperature 1: classifier of the top 2 groups" in words
    assert "temperature 1, seed 1, reweighted prior" in words
