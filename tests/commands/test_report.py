"""`train.report` as a user types it: what is on the page, also in place of what is missing, and how it looks."""

import base64
import html.parser
import io
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from nvae_tf.data.pipeline import shown_numbers
from nvae_tf.data.sources import load_split
from nvae_tf.errors import require
from nvae_tf.generation.sampling import reconstruct_images
from nvae_tf.progress import StatusLine
from nvae_tf.reports import figures
from nvae_tf.reports.evaluate import evaluate_run
from nvae_tf.reports.page import TEMPERATURES, compare_runs, report_of_run
from nvae_tf.runs.loading import load_run

# Settings are data; no one may write tags with them.
COMMAND = "nvae-evaluate --workdir=run --importance_samples=5"
NAME = "<b onload=\"x\">digits</b> & 'more'"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WITHOUT_ELEMENTS = {"meta", "link", "img", "br"}
# Writes what the browser has made of the page where --dump-dom shows it.
PROBE = """<script>addEventListener("load", () => {
  const root = document.documentElement, numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  root.dataset.images = [...document.images].map((image) => image.naturalWidth).join(" ");
  root.dataset.overflow = root.scrollWidth - root.clientWidth;
  const luminance = (color) => numbers(color).slice(0, 3).map((value) => value / 255)
    .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = (element) => {
    const color = getComputedStyle(element).backgroundColor;
    return (numbers(color)[3] ?? 1) > 0 || !element.parentElement ? color : paper(element.parentElement);
  };
  const worst = [21, ""];
  for (const element of document.body.querySelectorAll("*")) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())) continue;
    if (["SCRIPT", "STYLE", "title"].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const pair = [luminance(element.tagName === "text" ? style.fill : style.color), luminance(paper(element))].sort();
    const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (contrast < worst[0]) worst.splice(0, 2, contrast, element.textContent);
  }
  root.dataset.contrast = worst[0];
  root.dataset.paper = luminance(getComputedStyle(document.body).backgroundColor);
});</script>"""


class Page(html.parser.HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.opened = [], "", []
        self.feed(text)
        self.close()
        assert self.opened == []
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in WITHOUT_ELEMENTS:
            self.opened.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        self.text += f" {data}" if data.strip() else data

    def images(self):
        """The pixels of the figures with images, uint8 RGBA."""
        sources = [attributes["xlink:href"] for tag, attributes in self.tags if tag == "image"]
        assert all(source.startswith("data:image/png;base64,") for source in sources)
        contents = [base64.b64decode(source.partition(",")[2]) for source in sources]
        return [np.asarray(Image.open(io.BytesIO(content)).convert("RGBA")) for content in contents]


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
def page(text):
    return Page(text)


@pytest.fixture(scope="module")
def trained(run):
    return load_run(run)


@pytest.mark.slow
def test_the_page_needs_nothing_from_outside(page, text):
    assert "script" not in {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("data:", "#"))
    without_images = re.sub(r"base64,[\w+/=\s]+", "", text)
    assert not re.search(r"https?:|url\([^#]|@import", without_images)
    keys = {attributes["id"] for tag, attributes in page.tags if tag == "section"}
    assert {f"#{key}" for key in keys} == {a["href"] for tag, a in page.tags if tag == "a"} and len(keys) == 8
    # In the colors of the page, light or dark.
    assert figures.INK not in re.sub("<style>.*?</style>", "", without_images, flags=re.DOTALL)


def test_card_and_settings_are_complete_and_escaped(page, run, trained):
    config = json.loads((run / "config.json").read_text())
    for group, settings in config.items():
        assert f"{group} , {len(settings)} settings" in page.text
        for name, value in settings.items():
            assert f"{name} {json.dumps(value, ensure_ascii=False)}" in page.text
    assert f"NVAE run: {NAME}, run" in page.text
    assert not any("onload" in attributes for _, attributes in page.tags)
    metrics = json.loads((run / "evaluation.json").read_text())
    for words in (
        f"SHA-256 {metrics['checkpoint_sha256'][:16]}…",
        f"Parameters {sum(np.size(weight) for weight in trained.model.trainable_variables):,}",
        "60 of 60 steps, 100 images per step, ",
        "1,437 training and 360 test images",
        f"TensorFlow {tf.__version__}, Keras ",
        " CPU core",
        "2 latent groups with 2 channels each (2 at 16×16)",
        "as the preset digits, but data.name = ",
        "model.num_latent_scales = 1 (3), ",
        "train.batch_size = 100 (128)",
    ):
        assert words in page.text, words


def test_images_are_those_of_the_model(page, trained):
    found = page.images()
    about, model = figures.Provenance("run"), trained.model
    expected = [figures.samples(model.generate(36, t, seed=1).numpy(), about, width=430) for t in TEMPERATURES]
    source = load_split(trained.config.data, "test")
    test = source.images[shown_numbers(source, 8)] / np.float32(255)
    expected.append(figures.reconstructions(test, reconstruct_images(model, test, seed=1), about, width=430))
    for figure in expected:
        canvas = np.asarray(figure.axes[0].images[0].get_array()).astype(int)
        width = canvas.shape[1]
        # Below stands the caption, of another length.
        images = [image for image in found if image.shape[1] == width]
        assert any(np.abs(image[: len(canvas)] - canvas[: len(image)]).max() <= 1 for image in images)
    # Besides: interpolation, neighbors, groups, samples during training, and the colors of a scale.
    assert len(found) == len(expected) + 5 and "step 40 step 60" in page.text
    assert page.text.count("run, step 60, seed 0") == 2 and page.text.count("run, temperature 0.7, seed 0") == 1


def test_metrics_of_the_run_are_on_the_page(page, run):
    metrics = json.loads((run / "evaluation.json").read_text())
    for name in ("nelbo_nats", "importance_weighted_nats", "reconstruction_nats", "kl_nats"):
        half = metrics["half_widths_95"][name]
        (places,) = (places for places in range(5) if 10 <= half * 10**places < 99.5)
        assert f"{metrics[name]:.{places}f} ± {half:.{places}f} nats per image" in page.text
    for value in metrics["kl_per_group_nats"]:
        assert f" {value:.2f} " in page.text
    assert f"active units {metrics['latents']['active_units']} of 4 " in page.text
    assert "Of another checkpoint" not in page.text and f"Made by: {COMMAND}" in page.text
    last = (run / "metrics.csv").read_text().splitlines()[-1].split(",")
    assert f"test: {float(last[8]):.5g} at step 60" in page.text and "training: " in page.text
    # TensorBoard has the same KL at the same step.
    assert f"16×16: {metrics['kl_per_scale_nats'][0]:.5g} at step 60" in page.text


def test_a_sentence_replaces_what_is_missing(run, trained, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    (tmp_path / "metrics.csv").write_text("step,test_nelbo_nats\n")
    text, missing = report_of_run(tmp_path, "latest", 1, None, StatusLine())
    page = Page(text)
    for words in (
        "There are no images: the run has no checkpoint that can be used.",
        "There are no metrics yet: metrics.csv",
        f"images of the model: {tmp_path}: no checkpoint in",
        "not evaluated yet",
        f"nvae-evaluate --workdir={tmp_path} --metrics=elbo,iw,latents",
    ):
        assert words in page.text, words
    assert len(missing) == 1 and "svg" not in {tag for tag, _ in page.tags}

    def moved(*_, **__):
        raise FileNotFoundError("/old/<faces>: no such folder")

    monkeypatch.setattr("nvae_tf.reports.page.load_split", moved)
    text, missing = report_of_run(run, "latest", 1, None, StatusLine())
    assert "reconstructions of test images: /old/&lt;faces&gt;: no such folder" in text and len(missing) == 3
    assert "36 samples, drawn by the model" in text


def test_an_evaluation_of_another_checkpoint_or_a_damaged_one(run, tmp_path):
    shutil.copy(run / "config.json", tmp_path)
    for text in ((run / "evaluation.json").read_text(), "[1]", "{", '{"nelbo_nats": 1.0}', '{"latents": 3}'):
        (tmp_path / "evaluation.json").write_text(text)
        page = Page(report_of_run(tmp_path, "best", 1, None, StatusLine())[0])
        if len(text) > 100:
            assert "Of another checkpoint than the one on this page: step 60, SHA-256 " in page.text
            assert "KL of each latent group" in page.text
        else:
            assert "nvae-evaluate" in page.text and "--checkpoint=best" in page.text


@pytest.mark.parametrize("name", ["evaluation.json", "metrics.csv"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "normal"])
def test_the_headline_of_images_that_are_not_binary_has_both_units(name, likelihood, run, tmp_path):
    config = json.loads((run / "config.json").read_text())
    binary = likelihood == "bernoulli"
    for group in ("data", "model"):
        config[group] |= {"likelihood": likelihood, "num_bits": 1 if binary else 8}
    config["data"]["binarize"] = binary and config["data"]["binarize"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(run / name, tmp_path)
    page = Page(report_of_run(tmp_path, "latest", 1, None, StatusLine())[0])
    score = re.search(r"Score [\d.,± ]+ nats per image(, [\d.,± ]+ bits/dim)? [iN]", page.text)
    assert bool(score[1]) != binary


def test_the_command_writes_a_page_also_of_a_run_without_a_checkpoint(done, run, tmp_path):
    shutil.copy(run / "config.json", tmp_path)
    *_, missing, written = done("train.report", f"--workdir={tmp_path}").splitlines()
    assert missing.startswith(f"not on the page: images of the model: {tmp_path}: no checkpoint")
    assert written == f"written to {tmp_path / 'report.html'}"
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).text.startswith("NVAE run: <b onload")


def test_runs_are_compared(done, refused, run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    config = json.loads((other / "config.json").read_text())
    config["optimizer"]["learning_rate"] = 0.25
    (other / "config.json").write_text(json.dumps(config))
    (other / "evaluation.json").unlink()
    output = tmp_path / "comparison.html"
    assert done("train.report", run, other, f"--output={output}").splitlines()[-1] == f"written to {output}"
    page = Page(output.read_text(encoding="utf-8"))
    assert re.search(r"setting \S+ \S+ optimizer.learning_rate 0.03 0.25", page.text)
    assert "importance-weighted, 5 samples" in page.text and "not evaluated" in page.text
    assert page.text.count(f"{other}: ") == 6 and "KL of posterior and prior: training images" in page.text
    assert "None: all runs have the same settings." in Page(compare_runs([str(run), str(run)])).text
    assert "give a run folder" in refused("train.report")


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r'^matplotlib is not installed: pip install "nvae_tf\[reports\]"$'):
        require("matplotlib", "reports")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; scripts/install_chromium.sh does it")
@pytest.mark.parametrize(("width", "scheme"), [(500, "light"), (1600, "dark")])
def test_a_browser_shows_the_page(text, page, tmp_path, width, scheme):
    copy, screenshot = tmp_path / "copy.html", tmp_path / "page.png"
    text = text.replace("</head>", f"{PROBE}</head>")
    # The browser says of images in HTML whether it could read them, not of those in SVG.
    sources = [attributes["xlink:href"] for tag, attributes in page.tags if tag == "image"]
    copies = "".join(f'<img hidden alt="" src="{source}">' for source in sources)
    copy.write_text(text.replace("</body>", f"{copies}</body>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000", "--hide-scrollbars"]
    options += ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    command = [CHROMIUM, *options, "--dump-dom", f"--screenshot={screenshot}", copy.as_uri()]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0 and "CONSOLE" not in process.stderr, process.stderr
    names = ("images", "overflow", "contrast", "paper")
    loaded, overflow, contrast, paper = (re.search(f'data-{name}="([^"]*)"', process.stdout)[1] for name in names)
    assert [int(found) for found in loaded.split()] == [image.shape[1] for image in page.images()]
    assert int(overflow) <= 0
    assert float(contrast) >= 4.5 and (float(paper) < 0.1) == (scheme == "dark")
    pixels = np.asarray(Image.open(screenshot).convert("L"))
    assert pixels.shape == (2000, width)
    # Paper, ink, and something on every part of the page.
    assert all(np.ptp(part) > 100 for part in np.array_split(pixels, 4))
