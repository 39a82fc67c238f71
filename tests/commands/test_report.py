"""`train.report` as a user types it: what is on the page, also in place of what is missing, and how it looks."""

import base64
import html
import io
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nvae_tf.config import ExperimentConfig
from nvae_tf.data.pipeline import shown_numbers
from nvae_tf.data.sources import load_split
from nvae_tf.evaluation.table import interval
from nvae_tf.generation.sampling import reconstruct_images
from nvae_tf.progress import StatusLine
from nvae_tf.reports import figures
from nvae_tf.reports.evaluate import evaluate_run
from nvae_tf.reports.page import TEMPERATURES, compare_runs, read_curves, report_of_run
from nvae_tf.runs.loading import load_run
from nvae_tf.runs.run_folder import RunFolder
from nvae_tf.training.outputs import TensorBoardLog
from tests.command_fixtures import CHROMIUM, NEEDS_CHROMIUM

pytestmark = pytest.mark.slow
# Settings are data; no one may write tags with them.
COMMAND = "nvae-evaluate --workdir=run --importance_samples=5"
NAME = "<b onload=\"x\">digits</b> & 'more'"
# Writes how far the page is wider than the window where --dump-dom shows it.
PROBE = """<script>addEventListener("load", () => {
  const root = document.documentElement;
  root.dataset.overflow = root.scrollWidth - root.clientWidth;
});</script>"""


def words_of(source):
    """The text of a page without its tags."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", source)).split())


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """A copy of the finished run whose data set has a strange name, evaluated."""
    workdir = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(finished_run[0], workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["name"] = NAME
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "checkpoints" / "config.json").unlink()
    evaluate_run(workdir, ["elbo", "iw", "latents"], 5, command=COMMAND)
    return workdir


@pytest.fixture(scope="module")
def text(run):
    text, missing = report_of_run(run, "latest", 1, None, StatusLine())
    assert missing == []
    return text


@pytest.fixture(scope="module")
def words(text):
    return words_of(text)


def test_the_page_needs_nothing_from_outside(text):
    assert "<script" not in text and 'onload="' not in text
    links = re.findall(r'\b(?:src|href)="([^"]*)"', text)
    assert len(links) > 8 and all(link.startswith(("data:", "#")) for link in links)
    without_images = re.sub(r"base64,[\w+/=\s]+", "", text)
    assert not re.search(r"https?:|url\([^#]|@import", without_images)
    # In the colors of the page, light or dark.
    assert figures.INK not in re.sub("<style>.*?</style>", "", without_images, flags=re.DOTALL)


def test_card_settings_and_metrics_are_complete_and_escaped(words, run):
    for group, settings in json.loads((run / "config.json").read_text()).items():
        assert f"{group} , {len(settings)} settings" in words
        for name, value in settings.items():
            assert f"{name} {json.dumps(value, ensure_ascii=False)}" in words
    metrics = json.loads((run / "evaluation.json").read_text())
    last = (run / "metrics.csv").read_text().splitlines()[-1].split(",")
    bounds = ("nelbo_nats", "importance_weighted_nats")
    for text in (
        f"NVAE run: {NAME}, run",
        f"SHA-256 {metrics['checkpoint_sha256'][:16]}…",
        f"Parameters {sum(np.size(weight) for weight in load_run(run).model.trainable_variables):,}",
        "60 of 60 steps, 100 images per step, ",
        "1,437 training and 360 test images",
        f"TensorFlow {tf.__version__}, Keras ",
        " CPU core",
        "2 latent groups with 2 channels each (2 at 16×16)",
        *(f"{interval(metrics[name], metrics['half_widths_95'][name])} nats per image" for name in bounds),
        *(f" {value:.2f} " for value in metrics["kl_per_group_nats"]),
        f"active units {metrics['latents']['active_units']} of 4 ",
        f"Made by: {COMMAND}",
        f"test: {float(last[8]):.5g} at step 60",
        # TensorBoard has the same KL at the same step.
        f"16×16: {metrics['kl_per_scale_nats'][0]:.5g} at step 60",
    ):
        assert text in words, text
    assert "Of another checkpoint" not in words


def test_images_are_those_of_the_model(text, words, run):
    contents = map(base64.b64decode, re.findall('xlink:href="data:image/png;base64,([^"]*)"', text))
    shown = [np.asarray(Image.open(io.BytesIO(content)).convert("RGBA")) for content in contents]
    trained, about = load_run(run), figures.Provenance("run")
    model = trained.model
    expected = [figures.samples(model.generate(36, t, seed=1).numpy(), about, width=430) for t in TEMPERATURES]
    source = load_split(trained.config.data, "test")
    test = source.images[shown_numbers(source, 8)] / np.float32(255)
    expected.append(figures.reconstructions(test, reconstruct_images(model, test, seed=1), about, width=430))
    for figure in expected:
        canvas = np.asarray(figure.axes[0].images[0].get_array()).astype(int)
        # Below stands the caption, of another length.
        images = [image for image in shown if image.shape[1] == canvas.shape[1]]
        assert any(np.abs(image[: len(canvas)] - canvas[: len(image)]).max() <= 1 for image in images)
    # Besides: interpolation, neighbors, groups, samples during training, and the colors of a scale.
    assert len(shown) == len(expected) + 5 and "step 40 step 60" in words
    assert words.count("run, step 60, seed 0") == 2 and words.count("run, temperature 0.7, seed 0") == 1


def test_a_sentence_replaces_what_is_missing(done, run, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    (tmp_path / "metrics.csv").write_text("step,test_nelbo_nats\n")
    line, written = done("train.report", f"--workdir={tmp_path}").splitlines()[-2:]
    assert line.startswith(f"not on the page: images of the model: {tmp_path}: no checkpoint")
    assert written == f"written to {tmp_path / 'report.html'}"
    source = (tmp_path / "report.html").read_text(encoding="utf-8")
    for text in (
        "There are no images: the run has no checkpoint that can be used.",
        "There are no metrics yet: metrics.csv",
        f"images of the model: {tmp_path}: no checkpoint in",
        "not evaluated yet",
        f"nvae-evaluate --workdir={tmp_path} --metrics=elbo,iw,latents",
    ):
        assert text in words_of(source), text
    assert "<svg" not in source

    def moved(*_, **__):
        raise FileNotFoundError("/old/<faces>: no such folder")

    monkeypatch.setattr(ExperimentConfig, "data_at", moved)
    text, missing = report_of_run(run, "latest", 1, None, StatusLine())
    assert "images and interpolation between them: /old/&lt;faces&gt;: no such folder" in text and len(missing) == 2
    assert "36 samples, drawn by the model" in text


def test_an_evaluation_of_another_checkpoint_or_a_damaged_one_and_units_of_gray_images(run, words, tmp_path):
    config = json.loads((run / "config.json").read_text())
    for group in ("data", "model"):
        config[group] |= {"likelihood": "normal", "num_bits": 8}
    config["data"]["binarize"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(run / "metrics.csv", tmp_path)
    for content in ((run / "evaluation.json").read_text(), "[1]", '{"nelbo_nats": 1.0}'):
        (tmp_path / "evaluation.json").write_text(content)
        other = words_of(report_of_run(tmp_path, "best", 1, None, StatusLine())[0])
        if len(content) > 100:
            assert "Of another checkpoint than the one on this page: step 60, SHA-256 " in other
            assert "; of another checkpoint than the one on this page, step 60" in other
            assert "KL of each latent group" in other
        else:
            assert "nvae-evaluate" in other and "--checkpoint=best" in other
    assert re.search(r"Score [\d.,]+ nats per image, [\d.,]+ bits/dim [iN]", other)
    assert re.search(r"Score [\d.,± ]+ nats per image [iN]", words)


def test_runs_are_compared(done, refused, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    config = json.loads((other / "config.json").read_text())
    config["optimizer"]["learning_rate"] = 0.25
    (other / "config.json").write_text(json.dumps(config))
    (other / "evaluation.json").unlink()
    output = tmp_path / "comparison.html"
    assert done("train.report", run, other, f"--output={output}").splitlines()[-1] == f"written to {output}"
    words = words_of(output.read_text(encoding="utf-8"))
    assert re.search(r"setting \S+ \S+ optimizer.learning_rate 0.03 0.25", words)
    assert "importance-weighted, 5 samples" in words and "not evaluated" in words
    assert words.count(f"{other}: ") == 6 and "KL of posterior and prior: training images" in words
    assert "None: all runs have the same settings." in words_of(compare_runs([str(run), str(run)]))
    assert "--workdir is missing" in refused("train.report")


@NEEDS_CHROMIUM
def test_a_browser_shows_the_page_on_a_phone(text, tmp_path):
    copy, screenshot = tmp_path / "copy.html", tmp_path / "page.png"
    copy.write_text(text.replace("</head>", f"{PROBE}</head>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,2000", "--hide-scrollbars"]
    command = [CHROMIUM, *options, "--dump-dom", f"--screenshot={screenshot}", copy.as_uri()]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0 and "CONSOLE" not in process.stderr, process.stderr
    assert int(re.search('data-overflow="(.*?)"', process.stdout)[1]) <= 0
    # Paper, ink, and something on every part of the page.
    pixels = np.asarray(Image.open(screenshot).convert("L"))
    assert all(np.ptp(part) > 100 for part in np.array_split(pixels, 4))


def test_one_line_of_metrics_and_a_half_written_one(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,test_nelbo_nats,train_nelbo_nats\n20,7.5,nan\n40,6.")
    curves, seconds = read_curves(RunFolder(tmp_path))
    assert curves["test_nelbo_nats"] == ([20], [7.5]) and np.isnan(curves["train_nelbo_nats"][1]).all()
    assert seconds == 0.0


def test_event_files_of_a_run_that_went_back_and_was_cut_off(tmp_path):
    folder = RunFolder(tmp_path)
    folder.tensorboard.mkdir()
    for first, value in ((1, 1.0), (3, 2.0)):
        writer = TensorBoardLog(tmp_path / str(first), {})
        writer.write(first, {"kl_per_group/picture": np.zeros([2, 2, 1], np.uint8)})
        for step in range(first, first + 3):
            writer.write(step, {"kl_per_group/00": value, "train/reconstruction": 3.0, "train/kl": value})
        writer._writer.close()
        (file,) = (tmp_path / str(first)).glob("*tfevents*")
        # In the order of their names, which begin with the second of their making.
        file.rename(folder.tensorboard / f"{first}.tfevents")
    file = folder.tensorboard / "3.tfevents"
    file.write_bytes(file.read_bytes()[:-3])
    # Fewer points than TensorBoard has.
    folder.metrics_file.write_text("step,train_nelbo_nats,test_nelbo_nats\n5,9.0,8.0\n")
    curves, seconds = read_curves(folder)
    training_curves = {f"train_{part}_nats" for part in ("nelbo", "reconstruction", "kl")}
    assert set(curves) == training_curves | {"test_nelbo_nats", "kl_per_group/00"}
    assert curves["kl_per_group/00"] == ([1, 2, 3, 4, 5], [1.0, 1.0, 2.0, 2.0, 2.0]) and 0.0 < seconds < 60.0
    assert curves["train_nelbo_nats"] == ([1, 2, 3, 4], [4.0, 4.0, 5.0, 5.0])
    assert curves["test_nelbo_nats"] == ([5], [8.0])
