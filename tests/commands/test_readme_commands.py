import os
import re
import shlex

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from nvae_tf.generation.image_grid import read_images
from tests import ROOT
from tests.command_fixtures import CONSOLE_NAMES, output_of

EVALUATION = ROOT / "docs" / "evaluation.md"
# A hundred steps of the preset's model are minutes of nothing else.
SMALL = "--config.train.steps=2 --config.train.batch_size=4 --config.model.num_groups_per_scale=1"
SMALL += " --config.model.num_channels_encoder=4 --config.model.num_channels_decoder=4"
SMALL += " --config.model.num_latent_scales=1 --config.model.num_cells_per_group_encoder=1"
SMALL += " --config.model.num_cells_per_group_decoder=1"


def commands():
    section = (ROOT / "README.md").read_text().partition("## Train on your own pictures")[2]
    return re.search(r"```\n(.*?)```", section, re.DOTALL)[1].splitlines()


def module_of(command):
    (module,) = (module for module, name in CONSOLE_NAMES.items() if name == command)
    return module


@pytest.fixture
def folder_of_a_newcomer(tmp_path):
    random = np.random.default_rng(0)
    for number in range(40):
        photograph = load_sample_images().images[number % 2]
        height, width = random.integers(32, 100, 2)
        top, left = random.integers(0, 300, 2)
        place = tmp_path / "my_pictures" / f"album {number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph[top : top + height, left : left + width]).save(place / f"{number}.png")
    return tmp_path


@pytest.mark.slow
def test_three_commands_lead_from_a_folder_of_pictures_to_samples(folder_of_a_newcomer):
    assert len(commands()) == 3
    assert "--config.train.steps=100 " in commands()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for command in commands():
        words = shlex.split(command.replace("--config.train.steps=100 ", f"{SMALL} "))
        output_of(["-m", module_of(words[0]), *words[1:]], cwd=folder_of_a_newcomer, env=environment)
    inspected = read_images(folder_of_a_newcomer / "inspect_data.png", 32, 10)
    samples = read_images(folder_of_a_newcomer / "samples.png", 32, 8)
    assert inspected.shape[1:] == samples.shape[1:] == (32, 32, 3) and len(samples) == 64
    assert samples.std() > 1


@pytest.mark.slow
def test_the_commands_with_the_model_that_comes_with_the_package_run_at_once(done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [line for line in EVALUATION.read_text().splitlines() if re.match("nvae-.*--workdir=digits ", line)]
    for line in lines:
        command, *words = shlex.split(line, comments=True)
        done(module_of(command), *words)
    written = {path.name for path in tmp_path.iterdir()}
    assert written >= {"samples.png", "samples", "path.gif", "variants.png", "latents.npz", "decoded", "nearest.pdf"}


@pytest.mark.slow
@pytest.mark.parametrize("page", [ROOT / "README.md", EVALUATION], ids=lambda page: page.name)
def test_the_python_examples_run_at_once(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), {"__name__": "example"})
