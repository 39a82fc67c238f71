"""The modes of `train.generate` as a user types them, on a finished run; and the errors of wrong flags."""

import concurrent.futures
import json

import numpy as np
import pytest
from PIL import Image

import nvae_tf
from nvae_tf.data import data_spec
from nvae_tf.data.sources import load_split
from nvae_tf.generation.latents_file import load_latents
from nvae_tf.generation.reconstruction import reconstruct_images
from tests.command_fixtures import assert_shown
from train import generate

PITCH, SIDE = 70, 64
# The test part's numbers of the pictures that are given from outside.
OUTSIDE = (3, 17)


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """Two test digits as pictures of one's own."""
    folder = tmp_path_factory.mktemp("outside")
    images = load_split(data_spec("digits"), "test").images
    for number in OUTSIDE:
        Image.fromarray(images[number, ..., 0]).save(folder / f"digit {number}.bmp")
    return folder


@pytest.fixture(scope="module")
def made(commands, finished_run, outside, tmp_path_factory):
    """The folder of what all modes have written, and what they printed."""
    folder, run = tmp_path_factory.mktemp("made"), f"--workdir={finished_run[0]}"
    indices, pictures = f"--indices={','.join(map(str, OUTSIDE))}", f"--input={outside}"
    kept = ["--kept_groups=1", "--temperature=0.8"]
    both = {
        "samples.png": ["--temperature=0.8,0.9", "--seed=3", "--columns=4", "--count=8", "--overwrite"],
        "reconstructions.png": ["reconstruct", "--count=7", "--columns=5"],
        "by name/": ["reconstruct", pictures],
        "path.gif": ["interpolate", pictures, "--steps=4", "--how=keep,linear", "--milliseconds=200"],
        "variants.png": ["vary", indices, "--variants=3", *kept],
        "latents.npz": ["encode", pictures],
        "nearest.png": ["nearest", "--count=2", "--neighbors=3", f"--json={folder / 'nearest.json'}"],
    }
    after = {"decoded/": ["decode", f"--input={folder / 'latents.npz'}"]}
    printed = {}
    (folder / "samples.png").write_bytes(b"to be replaced")

    def run_mode(item):
        name, arguments = item
        printed[name] = commands.output_of(["-m", "train.generate", *arguments, run, f"--output={folder}/{name}"])

    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        list(threads.map(run_mode, both.items()))
    run_mode(*after.items())
    return folder, printed


@pytest.fixture(scope="module")
def model(finished_run):
    return nvae_tf.load(finished_run[0])


@pytest.fixture(scope="module")
def originals(outside):
    images = [pixels(outside / f"digit {number}.bmp")[..., np.newaxis] / 255 for number in OUTSIDE]
    return np.stack(images).astype(np.float32)


@pytest.mark.slow
def test_what_the_modes_have_written(made, model, originals):
    """That it is right is tested in tests/generation."""
    assert_shown(pixels(made[0] / "samples.png"), model.generate(8, [0.8, 0.9], seed=3).numpy(), 4)
    assert "8 images at temperatures 0.8, 0.9, from step 60" in made[1]["samples.png"]
    assert pixels(made[0] / "reconstructions.png").shape == (4 * PITCH - 6, 5 * PITCH - 6)
    with Image.open(made[0] / "path.gif") as animation:
        # Pillow shows a frame that is like the one before as one, for longer.
        assert animation.info["duration"] % 200 == 0 and 1 < animation.n_frames <= 5
        first = np.asarray(animation.convert("L"))
    assert_shown(first, reconstruct_images(model, originals[::-1], seed=1)[:1], 1)
    variants = pixels(made[0] / "variants.png")
    assert variants.shape == (2 * PITCH - 6, 4 * PITCH - 6)
    assert_shown(variants[PITCH:, :SIDE], originals[1:], 1)
    assert "the top 1 of 2 groups kept" in made[1]["variants.png"]


@pytest.mark.slow
def test_pictures_from_outside_give_files_of_the_same_names(made, model, originals):
    # In the order of the names.
    names, expected = ["digit 17.png", "digit 3.png"], reconstruct_images(model, originals[::-1], seed=1)
    for folder in ("by name", "decoded"):
        assert sorted(path.name for path in (made[0] / folder).iterdir()) == names
        for name, image in zip(names, expected, strict=True):
            found = pixels(made[0] / folder / name)
            assert found.shape == (16, 16) and np.abs(found - 255 * image[..., 0]).max() <= 1
    found = load_latents(made[0] / "latents.npz", model)
    assert found.names == ["digit 17.bmp", "digit 3.bmp"]
    for z, latent in zip(found.latents, model.encode(originals[::-1], seed=1), strict=True):
        np.testing.assert_allclose(z, latent, atol=1e-4)


@pytest.mark.slow
def test_nearest_images_stand_beside_their_sample_and_in_the_json_file(made):
    picture = pixels(made[0] / "nearest.png")
    assert picture.shape == (2 * PITCH - 6, 4 * PITCH - 6)
    stored = json.loads((made[0] / "nearest.json").read_text())
    assert (stored["split"], stored["step"], stored["temperature"], stored["seed"]) == ("train", 60, 1.0, 1)
    assert np.shape(stored["numbers"]) == np.shape(stored["distances"]) == (2, 3)
    # Every pixel of a digit is four wide.
    sample, nearest = picture[:SIDE:4, :SIDE:4] / 255, picture[:SIDE:4, PITCH : PITCH + SIDE : 4] / 255
    assert np.mean((sample - nearest) ** 2) == pytest.approx(stored["distances"][0][0], abs=0.005)
    assert stored["distances"][0] == sorted(stored["distances"][0])


def test_every_mode_has_a_manual_page():
    for mode, (function, _) in generate.MODES.items():
        assert f"python -m train.generate {mode} --workdir=" in function.__doc__ and mode in generate.overview()
