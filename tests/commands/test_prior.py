"""nvae-prior, and the commands that draw from what it has learned."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import nvae_tf

EXTRACTOR = """
class Means:
    name = "means of rows"

    def features(self, images):
        return images.mean(axis=(2, 3))
"""


@pytest.mark.slow
def test_a_prior_is_learned_drawn_from_measured_and_shown(done, finished_run, tmp_path, monkeypatch):
    folder, drawn = tmp_path / "mine", ("--count=3", f"--output={tmp_path / 'samples.png'}", "--overwrite")
    shutil.copytree(finished_run[0], folder)
    where = f"--workdir={folder}"
    printed = done("train.prior", where, "--groups=2", "--steps=30", "--proposals=10")
    assert re.search(
        r"classifier of the top 2 groups: .* of 10, 5 proposals .* effective\nwritten to .*prior.npz\n", printed
    )
    done("train.generate", where, "--prior=reweighted", "--seed=4", f"--each={tmp_path / 'each'}/", *drawn)
    assert "prior reweighted" in Image.open(tmp_path / "samples.png").info["data"]
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
