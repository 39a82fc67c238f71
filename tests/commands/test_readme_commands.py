import functools
import os
import re
import shlex

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from nvae_tf.data.pipeline import shuffled_index_batches
from nvae_tf.generation.image_grid import read_images
from nvae_tf.replicas import ALL
from nvae_tf.runs import loading
from tests import ROOT
from tests.command_fixtures import CONSOLE_NAMES, config_flags, output_of
from tests.data.picture_factory import damaged_in_the_middle, png, random_pixels, write_files
from tests.tiny_model import ARCHITECTURE

EVALUATION = ROOT / "docs" / "evaluation.md"
# Twenty epochs are minutes of nothing else.
MODEL = {f"model.{name}": value for name, value in ARCHITECTURE.items()}
SMALL = " ".join(config_flags(MODEL | {"model.num_latent_scales": 1, "train.steps": 2, "train.batch_size": 4}))


def commands_of_readme():
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
    assert len(commands_of_readme()) == 3
    assert "--config.train.epochs=20 " in commands_of_readme()[1]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for command in commands_of_readme():
        words = shlex.split(command.replace("--config.train.epochs=20 ", f"{SMALL} "))
        output_of(["-m", module_of(words[0]), *words[1:]], cwd=folder_of_a_newcomer, env=environment)
    inspected = read_images(folder_of_a_newcomer / "inspect_data.png", 32, 10)
    samples = read_images(folder_of_a_newcomer / "samples.png", 32, 8)
    assert inspected.shape[1:] == samples.shape[1:] == (32, 32, 3) and len(samples) == 64
    assert samples.std() > 1


@pytest.mark.slow
def test_the_commands_with_the_model_that_comes_with_the_package_run_at_once(done, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "TrainedRun", functools.cache(loading.TrainedRun))
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
    # A hundred draws, one after the other, take longer than all else.
    text = page.read_text().replace("importance_samples=100,", "importance_samples=3,")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
        exec(compile(block, f"{page.name}, block {number}", "exec"), {"__name__": "example"})


COUNT, HEIGHT, WIDTH = 10, 7, 10
BATCH_SIZE = 4


def command(name, folder, **settings):
    flags = config_flags({**MODEL, "train.batch_size": BATCH_SIZE, "data.path": folder, **settings})
    return [name, "--config=configs/own_images.py", *flags]


def test_inspect_data_prints_counts_and_writes_a_picture(done, tmp_path):
    pictures = enumerate(map(png, random_pixels(COUNT, HEIGHT, WIDTH, 3)))
    write_files(tmp_path / "images", {f"{'dogs' if n < 4 else 'cats'}/{n}.png": picture for n, picture in pictures})
    output = tmp_path / "look.png"
    flags = [f"--output={output}", "--seconds=0.1", "--count=9", "--config.data.labels=True"]
    printed = done(*command("train.inspect_data", tmp_path / "images"), *flags)
    for text in (
        f"own_images, from folder {tmp_path / 'images'}",
        "7 x 10 (height x width), 3 channels, 8 bits",
        "zeros around them to 8 x 10",
        "classes      2 (training / test images): cats (",
        "train        9 images",
        "test         1 images",
        "An epoch is 2 steps of 4 images",
    ):
        assert text in printed
    shown = read_images(output, 10, 10)
    assert shown.shape == (10, 7, 10, 3) and "nvae-inspect-data" in Image.open(output).info["command"]
    done(*command("train.inspect_data", tmp_path / "images"), *flags, "--raw", "--overwrite")
    # A row for each class and one for the test image, enlarged until the shorter side is 70 pixels, with gaps of 6.
    with Image.open(output) as picture:
        assert picture.size == (5 * 100 + 4 * 6, 3 * 70 + 2 * 6)


@pytest.mark.slow
def test_a_run_that_meets_a_damaged_picture_is_saved_and_goes_on(commands, tmp_path):
    count, met_at_step = 32, 5
    folder, workdir = tmp_path / "images", tmp_path / "run"
    for part in ("train", "test"):
        write_files(folder / part, {f"{n:02d}.png": png(random_pixels(6, 7, 1, seed=n)) for n in range(count)})
    batches = shuffled_index_batches(count, BATCH_SIZE, seed=0, start_step=0, shard=ALL)
    _, numbers = next(iter(batches.skip(met_at_step)))
    bad = folder / "train" / f"{int(numbers[0]):02d}.png"
    bad.write_bytes(damaged_in_the_middle(bad.read_bytes()))
    settings = {"train.steps": 12, "train.seed": 0, "train.sample_every_steps": 100, "data.num_bits": 1}
    settings |= {"model.squeeze_excite": False}
    line = commands.refused_process(["-m", *command("train.main", folder, **settings), f"--workdir={workdir}"])
    assert line.startswith(f"error: {bad}: a damaged or cut-off PNG file")
    assert (workdir / "checkpoints" / f"step-{met_at_step}.index").is_file()
    settings["data.on_bad_file"] = "skip"
    printed = commands.output_of(["-m", *command("train.main", folder, **settings), f"--workdir={workdir}"])
    assert f"Skipped 1 of 32 pictures of the train part of {folder}:\n    {bad}: a damaged" in printed
    assert f", from step {met_at_step} on" in printed and "has all its 12 steps" in printed
    assert " weights, images in a frame of 6 x 8.\n" in printed
    assert (workdir / "checkpoints" / "step-12.index").is_file()
