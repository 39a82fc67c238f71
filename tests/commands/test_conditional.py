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


@pytest.fixture(scope="module", name="conditional_run")
def copy_to_write_into(conditional_run, tmp_path_factory):
    return shutil.copytree(conditional_run, tmp_path_factory.mktemp("conditional") / "run")


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    np.save(tmp_path / "noise.npy", np.random.default_rng(0).integers(0, 256, (30, 16, 16)).astype(np.uint8))
    # What was measured before is in the file, and not printed again.
    flags = "--metrics=outliers", f"--outliers={tmp_path / 'noise.npy'}", "--seed=3"
    assert "nats per image" not in done("train.evaluate", where, *flags)
    metrics = json.loads((conditional_run / "evaluation.json").read_text())
    noise = metrics["outliers"]["sets"]["noise.npy"]
    assert "nelbo_nats" in metrics and noise["auroc"]["mahalanobis"] > 0.95 and noise["flagged"]["mahalanobis"] == 1.0
