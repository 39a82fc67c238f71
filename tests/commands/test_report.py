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
from PIL import Image

from nvae_tf.errors import require
from nvae_tf.evaluation.evaluate import evaluate_run
from nvae_tf.generation.sampling import reconstruct_images
from nvae_tf.progress import StatusLine
from nvae_tf.reports.page import TEMPERATURES, ReportImages, evaluation_section, latent_use_section, report_of_run
from nvae_tf.training.loading import load_run
from nvae_tf.training.run_folder import RunFolder
from tests.command_fixtures import assert_shown

# Settings are data; no one may write tags with them.
NAME = "<b onload=\"x\">digits</b> & 'more'"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WITHOUT_ELEMENTS = {"meta", "link", "img", "br"}
# Writes what the browser has made of the page where --dump-dom shows it.
PROBE = """<script>addEventListener("load", () => {
  const images = [...document.images], root = document.documentElement;
  root.dataset.widths = images.map((image) => image.complete ? image.naturalWidth : 0).join(" ");
  root.dataset.overflow = root.scrollWidth - root.clientWidth;
});</script>"""


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text, self.opened = [], "", []
        self.feed(text)
        self.close()
        assert self.opened == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in WITHOUT_ELEMENTS:
            self.opened.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        self.text += data

    def pictures(self):
        sources = {attributes["alt"]: attributes["src"] for tag, attributes in self.tags if tag == "img"}
        assert all(source.startswith("data:image/png;base64,") for source in sources.values())
        data = {title: base64.b64decode(source.partition(",")[2]) for title, source in sources.items()}
        return {title: np.asarray(Image.open(io.BytesIO(content))) for title, content in data.items()}


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    """A copy of the finished run whose data set has a strange name, evaluated."""
    workdir = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(finished_run[0], workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["name"] = NAME
    (workdir / "config.json").write_text(json.dumps(config))
    evaluate_run(workdir, ["elbo", "iw", "latents"], 5)
    return workdir


@pytest.fixture(scope="module")
def page_file(commands, run):
    process = commands.run(["-m", "train.report", f"--workdir={run}"])
    assert process.stdout.splitlines()[-1] == f"written to {run / 'report.html'}" and not process.stderr
    return run / "report.html"


@pytest.fixture(scope="module")
def page(page_file):
    return Page(page_file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def trained(run):
    return load_run(run)


def test_the_page_needs_nothing_from_outside(page, page_file):
    assert "script" not in {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#"))
    without_pictures = re.sub(r"base64,[\w+/=]+", "", page_file.read_text(encoding="utf-8"))
    assert not re.search(r"https?:|url\(|@import", without_pictures)
    keys = {attributes["id"] for tag, attributes in page.tags if tag == "section"}
    assert {f"#{key}" for key in keys} == {a["href"] for tag, a in page.tags if tag == "a"} and len(keys) == 8


def test_settings_and_facts_are_complete_and_escaped(page, run, trained):
    config = json.loads((run / "config.json").read_text())
    assert list(config) == ["model", "objective", "optimizer", "data", "train"]
    for group, settings in config.items():
        assert f"{group}, {len(settings)} settings" in page.text
        for name, value in settings.items():
            assert f"{name}{json.dumps(value, ensure_ascii=False)}" in page.text
    assert f"NVAE run: {NAME}, run" in page.text
    assert not any("onload" in attributes for _, attributes in page.tags)
    sha256 = json.loads((run / "evaluation.json").read_text())["checkpoint_sha256"]
    assert "Step60 of 60" in page.text and f"SHA-256 {sha256[:16]}…" in page.text
    assert f"Parameters{sum(np.size(weight) for weight in trained.model.trainable_variables):,}" in page.text


def test_pictures_are_those_of_the_model(page, trained):
    pictures = page.pictures()
    samples = [pictures[f"Temperature {temperature:.1f}"] for temperature in TEMPERATURES]
    for temperature, found in zip(TEMPERATURES, samples, strict=True):
        assert_shown(found, trained.model.generate(36, temperature, seed=1).numpy(), None)
    assert len({found.tobytes() for found in samples}) == 4
    test = ReportImages(trained, None, 1, StatusLine())._test_images()
    both = np.concatenate([test, reconstruct_images(trained.model, test, seed=1)])
    assert_shown(pictures["Reconstructions"], both, 8)
    assert_shown(pictures["Interpolation"][:64, :64], both[8:9], 1)
    assert_shown(pictures["Samples sharing their upper groups"][:64, :64], trained.model.generate(1, seed=1).numpy(), 1)
    assert len(pictures) == 8 and all(np.ptp(pixels) > 100 for pixels in pictures.values())


def test_metrics_of_the_run_are_on_the_page(page, run):
    metrics = json.loads((run / "evaluation.json").read_text())
    nats = [metrics[f"{name}_nats"] for name in ("nelbo", "importance_weighted", "reconstruction", "kl")]
    for value in [*nats, *metrics["kl_per_group_nats"], *metrics["half_widths_95"].values()]:
        assert f"{value:.3f}" in page.text
    assert f"{metrics['bits_per_dim']:.4f}" in page.text
    assert f"{metrics['effective_samples']['mean']:.1f} in the mean" in page.text
    assert f"active units: {metrics['latents']['active_units']} of 4 latent channels" in page.text
    assert "another checkpoint" not in page.text
    last = (run / "metrics.csv").read_text().splitlines()[-1].split(",")
    assert f"test, step 60: {float(last[8]):.4g} nats per image" in page.text
    # The latest of TensorBoard's points is of the same evaluation.
    assert f"0 (8×8), step 60: {metrics['kl_per_group_nats'][0]:.4g} nats per image" in page.text
    assert "KL per group, training batches" in page.text and "Spectral norm, the largest" in page.text


def test_a_sentence_replaces_what_is_missing(run, trained, tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    (tmp_path / "metrics.csv").write_text("step,test_nelbo_nats\n")
    text, missing = report_of_run(tmp_path, "latest", 1, None, StatusLine())
    page = Page(text)
    for words in (
        "none that can be used; the run goes to step 60",
        "There are no metrics yet: metrics.csv",
        "no TensorBoard files with metrics of the groups",
        f"for want of a model: {tmp_path}: no checkpoint in",
        f"python -m train.evaluate --workdir={tmp_path} --metrics=elbo,iw,latents",
    ):
        assert words in page.text
    assert len(missing) == 1 and "img" not in {tag for tag, _ in page.tags}

    def moved(*_):
        raise FileNotFoundError("/old/<faces>: no such folder")

    monkeypatch.setattr("nvae_tf.reports.page.load_split", moved)
    images = ReportImages(trained, None, 1, StatusLine())
    assert "Here would be test images, but: /old/&lt;faces&gt;: no such folder" in images.of_test_images()
    assert images.missing == ["test images: /old/<faces>: no such folder"]


def test_an_evaluation_of_another_checkpoint_or_a_damaged_one(run, trained, tmp_path):
    folder, plan = RunFolder(run), trained.model.plan
    for section in (evaluation_section(folder, "best", "0" * 64), latent_use_section(folder, "best", "0" * 64, plan)):
        assert "Of another checkpoint</b> than the one on this page: step 60, SHA-256 " in section
    assert "--checkpoint=best" in evaluation_section(folder, "best", "0" * 64)
    damaged = RunFolder(tmp_path)
    for text in ("[1]", "{", '{"nelbo_nats": 1.0}', '{"latents": 3}'):
        damaged.evaluation_file().write_text(text)
        assert "can&#39;t be read as an evaluation" in evaluation_section(damaged, "latest", None)
        assert "python -m train.evaluate" in latent_use_section(damaged, "latest", None, plan)


def test_a_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ValueError, match=r'^jinja2 is not installed: pip install "nvae_tf\[reports\]"$'):
        require("jinja2", "reports")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed; scripts/install_chromium.sh does it")
@pytest.mark.parametrize("width", [500, 1280])
def test_a_browser_shows_the_page(page_file, page, tmp_path, width):
    copy, screenshot = tmp_path / "copy.html", tmp_path / "page.png"
    copy.write_text(page_file.read_text(encoding="utf-8").replace("</head>", f"{PROBE}</head>"), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000", "--hide-scrollbars"]
    command = [CHROMIUM, *options, "--dump-dom", f"--screenshot={screenshot}", copy.as_uri()]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0 and "CONSOLE" not in process.stderr, process.stderr
    (widths,), (overflow,) = (re.findall(f'data-{name}="([^"]*)"', process.stdout) for name in ("widths", "overflow"))
    expected = [int(attributes["width"]) for tag, attributes in page.tags if tag == "img"]
    assert [int(found) for found in widths.split()] == expected and int(overflow) <= 0
    pixels = np.asarray(Image.open(screenshot).convert("L"))
    assert pixels.shape == (2000, width)
    # Paper, ink, and something on every part of the page.
    assert all(np.ptp(part) > 100 for part in np.array_split(pixels, 4))
