import functools
import json
import re
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from matplotlib.text import Text
from PIL import Image
from pyarrow.parquet import read_table

import nvae_tf
from nvae_tf.config import ModelConfig
from nvae_tf.data import data_spec
from nvae_tf.data.sources import load_split
from nvae_tf.generation.image_grid import read_images
from nvae_tf.generation.latents_file import load_latents
from nvae_tf.generation.sampling import latent_direction, move_images, reconstruct_images, restore_images
from nvae_tf.models.denoising import Denoised
from nvae_tf.models.restoration import downsampling, measured
from nvae_tf.reports.figures import Provenance
from nvae_tf.reports.generate import TASKS, Originals, denoise
from nvae_tf.runs import loading
from tests.command_fixtures import TINY, assert_shown, config_flags
from train import generate

PITCH, SIDE = 70, 64
read_once = functools.cache(loading.TrainedRun)
# The test part's numbers of the pictures that are given from outside.
OUTSIDE = (3, 17)


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """Two test digits as pictures of one's own."""
    # A path may have commas.
    folder = tmp_path_factory.mktemp("out,side")
    images = load_split(data_spec("digits"), "test").images
    for number in OUTSIDE:
        Image.fromarray(images[number, ..., 0]).save(folder / f"digit {number}.bmp")
    return folder


@pytest.fixture(scope="module")
def originals(outside):
    """In the order of the names, 17 before 3."""
    images = [pixels(outside / f"digit {number}.bmp")[..., np.newaxis] / 255 for number in OUTSIDE[::-1]]
    return np.stack(images).astype(np.float32)


@pytest.fixture
def made(done, finished_run, tmp_path, monkeypatch):
    """`made(NAME, *flags)` lets the command write a file of that name; gives its path and what was printed."""
    monkeypatch.setattr(loading, "TrainedRun", read_once)

    def run(name, *flags):
        printed = done("train.generate", *flags, f"--workdir={finished_run[0]}", f"--output={tmp_path}/{name}")
        return tmp_path / name, printed

    return run


@pytest.mark.slow
def test_what_the_modes_write(made, finished_model, outside, originals, tmp_path):
    """That it is right is tested in tests/generation."""
    (tmp_path / "samples.png").write_bytes(b"to be replaced")
    flags = ["--temperature=0.8,0.9", "--seed=3", "--columns=4", "--count=8", "--overwrite", f"--each={tmp_path}/each"]
    expected = finished_model.generate(8, [0.8, 0.9], seed=3).numpy()
    file, printed = made("samples.png", *flags, "--raw")
    assert_shown(pixels(file), expected, 4)
    assert "8 images, from step 60" in printed
    file, _ = made("samples.png", *flags)
    each = np.stack([pixels(tmp_path / "each" / f"sample_{number:05d}.png") for number in range(8)])[..., np.newaxis]
    for shown in (read_images(file, 16, 4)[..., :1], each):
        assert np.abs(shown - 255 * expected).max() <= 1
    info = Image.open(file).info
    assert (info["step"], info["temperature"], info["seed"]) == ("60", "0.8, 0.9", "3")
    assert info["command"].startswith("nvae-generate --temperature=0.8,0.9 --seed=3")
    assert len(info["checkpoint_sha256"]) == 64
    file, _ = made("reconstructions.svg", "reconstruct", "--count=7", "--kept_groups=1")
    words = " ".join(re.findall(">([^<>]+)</text>", file.read_text()))
    assert "its latents of the top 1 of 2 groups; the others are drawn from the prior" in words
    ways = ["--steps=4", "--how=keep,linear", "--milliseconds=200", f"--each={tmp_path}/frames"]
    with Image.open(made("path.gif", "interpolate", f"--input={outside}", *ways)[0]) as animation:
        # Pillow shows a frame that is like the one before as one, for longer.
        assert animation.info["duration"] % 200 == 0 and 1 < animation.n_frames <= 5
        first = np.asarray(animation.convert("L"))
    assert len(list((tmp_path / "frames").iterdir())) == 5
    assert_shown(first, reconstruct_images(finished_model, originals, seed=1)[:1], 1)
    indices = f"--indices={','.join(map(str, OUTSIDE))}"
    file, printed = made("variants.png", "vary", indices, "--variants=3", "--kept_groups=1", "--raw")
    variants = pixels(file)
    assert variants.shape == (2 * PITCH - 6, 4 * PITCH - 6) and "3 variants of each of 2 images" in printed
    assert_shown(variants[PITCH:, :SIDE], originals[:1], 1)
    sides = f"--positive={outside / 'digit 3.bmp'}", f"--negative={outside / 'digit 17.bmp'}", "--strengths=-1.5,0"
    # The pictures of both sides set the size.
    flags = [indices, *sides, "--resize=crop", "--mean", f"--each={tmp_path}/moved"]
    file, _ = made("direction.png", "direction", *flags)
    step = latent_direction(finished_model, originals[1:], originals[:1])
    expected = move_images(finished_model, originals[::-1], step, [-1.5, 0.0], mean=True)
    assert np.abs(read_images(file, 16, 3)[1:3, ..., :1] - 255 * expected[0]).max() <= 1
    assert len(list((tmp_path / "moved").iterdir())) == 4


@pytest.mark.slow
def test_features_as_arrays_and_as_parquet(made, finished_model, outside, originals):
    expected, given = finished_model.features(originals, groups=[1], pool="mean"), [f"--input={outside}", "--groups=1"]
    file, printed = made("features.npz", "features", *given, "--pool=mean")
    assert "2 features of 2 pictures" in printed
    with np.load(file) as arrays:
        np.testing.assert_allclose(arrays["features"], expected, atol=1e-5)
        assert arrays["columns"].tolist() == ["group1_c0", "group1_c1"]
    table = read_table(made("features.parquet", "features", *given, "--pool=mean")[0]).to_pydict()
    assert list(table) == ["name", "group1_c0", "group1_c1"] and table["name"] == ["digit 17.bmp", "digit 3.bmp"]
    np.testing.assert_allclose(table["group1_c1"], expected[:, 1], atol=1e-5)


@pytest.mark.slow
def test_pictures_from_outside_give_files_of_the_same_names(made, finished_model, outside, originals):
    names, expected = ["digit 17.png", "digit 3.png"], reconstruct_images(finished_model, originals, seed=1)
    latents, _ = made("latents.npz", "encode", f"--input={outside}")
    array = np.load(made("again.npy", "reconstruct", f"--input={outside}")[0])
    assert array.dtype == np.uint8 and np.abs(array - 255 * expected).max() <= 1
    for mode, given in (("reconstruct", outside), ("decode", latents)):
        folder, _ = made(f"{mode}/", mode, f"--input={given}")
        assert sorted(path.name for path in folder.iterdir()) == names
        for name, image in zip(names, expected, strict=True):
            found = pixels(folder / name)
            assert found.shape == (16, 16) and np.abs(found - 255 * image[..., 0]).max() <= 1
    found = load_latents(latents, finished_model)
    assert found.names == ["digit 17.bmp", "digit 3.bmp"]
    for z, latent in zip(found.latents, finished_model.encode(originals, seed=1), strict=True):
        np.testing.assert_allclose(z, latent, atol=1e-4)


@pytest.mark.slow
def test_nearest_images_stand_beside_their_sample_and_in_the_json_file(made, tmp_path):
    flags = ["--count=2", "--neighbors=3", f"--json={tmp_path / 'nearest.json'}"]
    figure = read_images(made("nearest.png", "nearest", *flags)[0], 16, 4)[..., 0] / 255
    stored = json.loads((tmp_path / "nearest.json").read_text())
    assert (stored["split"], stored["step"], stored["temperature"], stored["seed"]) == ("train", 60, 1.0, 1)
    assert np.shape(stored["numbers"]) == np.shape(stored["distances"]) == (2, 3)
    assert figure.shape == (8, 16, 16)
    assert np.mean((figure[0] - figure[1]) ** 2) == pytest.approx(stored["distances"][0][0], abs=0.005)
    assert stored["distances"][0] == sorted(stored["distances"][0])


@pytest.mark.slow
def test_restored_images_stand_beside_their_measurements(made, finished_model, outside, originals, tmp_path):
    how = f"--indices={','.join(map(str, OUTSIDE[::-1]))}", "--steps=2", "--seed=3"
    file, printed = made("enlarged.png", "restore", "--scale=2", "--noise=0.05", "--starts=2", *how)
    assert "2 images of the test part, restored, from step 60" in printed
    assert Image.open(file).info["data"] == "test images, scale 2, noise 0.05"
    small, restored, true, deviation = read_images(file, 16, 4)[:4, ..., :1] / 255
    operator = downsampling((16, 16), 2)
    measurement = measured(operator, originals, 0.05, seed=3)
    expected, deviations = restore_images(finished_model, measurement, operator, 0.05, 2, starts=2, seed=3)
    shown = np.clip(measurement[0], 0, 1).repeat(2, axis=0).repeat(2, axis=1), expected[0], originals[0]
    for found, image in zip((small, restored, true), shown, strict=True):
        assert np.abs(found - image).max() < 0.01
    # White is the largest deviation of the figure.
    assert np.abs(deviation - deviations[0] / deviations.max()).max() < 0.01 and deviation.max() > 0.01
    # A picture of one's own is what was measured; what is white in the mask is not.
    missing = np.zeros([16, 16], np.uint8)
    missing[4:12, 4:12] = 255
    Image.fromarray(missing).save(tmp_path / "missing.png")
    folder, _ = made("filled/", "restore", f"--input={outside}", f"--mask={tmp_path}/missing.png", "--steps=2")
    found, known = pixels(folder / "digit 17.png"), missing == 0
    assert np.abs(found[known] - 255 * originals[0, known, 0]).max() <= 1
    assert np.abs(found[~known] - 255 * originals[0, ~known, 0]).max() > 1


def test_every_mode_has_a_manual_page(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["nvae-generate", "--help"])
    with pytest.raises(SystemExit):
        generate.run()
    overview = capsys.readouterr().out
    for mode, task in TASKS.items():
        assert f"nvae-generate {mode} --workdir=" in task.__doc__ and f"\n  {mode} " in overview


@pytest.mark.slow
def test_noisy_images_are_denoised_in_their_own_range(done, refused, finished_run, tmp_path):
    random, path = np.random.default_rng(0), {name: tmp_path / name for name in ("a.npz", "clean.npy", "large.tif")}
    clean = random.uniform(100, 300, [30, 8, 8, 1]).repeat(2, axis=1).repeat(2, axis=2)
    noisy = (clean + random.normal(0, 40, clean.shape)).astype(np.float32)
    np.savez(path["a.npz"], train=noisy[:20], test=noisy[20:])
    np.save(path["clean.npy"], clean[20:])
    tifffile.imwrite(path["large.tif"], noisy[:2, :, :, 0].repeat(2, axis=2), photometric="minisblack")
    settings = TINY | {"data.path": path["a.npz"], "data.range": "100,300", "data.noise": "gaussian", "train.steps": 2}
    settings |= {"data.noise_sigma": 40, "train.batch_size": 10, "model.num_preprocess_blocks": 1}
    flags = [*config_flags(settings | {"model.num_postprocess_blocks": 1}), f"--workdir={tmp_path}/run"]
    done("train.main", "--config=own_images", *flags)
    evaluated = "train.evaluate", f"--workdir={tmp_path}/run", "--metrics=noise"
    printed = done(*evaluated, f"--references={path['clean.npy']}")
    measured = json.loads((tmp_path / "run/evaluation.json").read_text())["noise"]
    assert measured["psnr_of_images"] == pytest.approx(-20 * np.log10(0.2), abs=0.2) and "noise that passes" in printed
    assert f"{measured['psnr']:.4g} dB" in printed and 0 < measured["ssim"] < 1 and -0.5 < measured["passes"] < 1.5
    np.save(tmp_path / "few.npy", clean[:2])
    assert "has 2 images, and the test part has 10" in refused(*evaluated, f"--references={tmp_path}/few.npy")
    assert "not trained with data.noise" in refused(*evaluated[:1], f"--workdir={finished_run[0]}", evaluated[2])
    denoised = "train.generate", "denoise", f"--workdir={tmp_path}/run", f"--input={path['large.tif']}", "--samples=3"
    done(*denoised, f"--output={tmp_path}/made.tif")
    images, deviation = (tifffile.imread(tmp_path / f"made{part}.tif") for part in ("", "_deviation"))
    mean, deviations = nvae_tf.load(tmp_path / "run").denoise((noisy[:2].repeat(2, axis=2) - 100) / 200, 3, seed=1)
    np.testing.assert_allclose(images, 100 + 200 * mean.numpy()[..., 0], rtol=1e-4)
    np.testing.assert_allclose(deviation, 200 * deviations.numpy()[..., 0], rtol=1e-3, atol=1e-3)
    (tmp_path / "made.tif").unlink()
    assert "made_deviation.tif: is there already" in refused(*denoised, f"--output={tmp_path}/made.tif")
    done(*denoised, f"--output={tmp_path}/made.npy")
    np.testing.assert_allclose(np.load(tmp_path / "made.npy")[..., 0], images, rtol=1e-5)
    # A deviation that is there would not belong to the new images, which have none.
    once = *denoised[:-1], f"--output={tmp_path}/made.tif"
    assert "made_deviation.tif: is there already" in refused(*once)
    done(*once, "--overwrite")
    assert (tmp_path / "made.tif").exists() and not (tmp_path / "made_deviation.tif").exists()


def test_single_draws_are_for_the_figure_alone(monkeypatch):
    asked, images = [], np.zeros([2, 8, 8, 1], np.float32)

    def denoised(images, samples, *_):
        asked.append(samples)
        return Denoised(tf.constant(images), tf.constant(images))

    model = ModelConfig(likelihood="noisy_signal", noise_variance=(0.0, 0.04))
    config = types.SimpleNamespace(model=model, data=data_spec("digits"))
    run = types.SimpleNamespace(config=config, model=types.SimpleNamespace(denoise=denoised))
    monkeypatch.setattr(Originals, "load", lambda *_: (images, None, ["a", "b"], "2 images"))
    made = denoise(run, Originals(), samples=4)
    assert asked == [4]
    texts = {text.get_text() for text in made.draw(Provenance("noisy")).findobj(Text)}
    assert asked == [4, 1, 1] and {"measured", "denoised", "draw 1", "draw 2", "deviation"} <= texts
