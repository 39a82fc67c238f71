"""The export gives the model's numbers without the package, whatever the batch.

A row alone and in a batch may differ in the last bit: kernels add in another order for another batch size.
"""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from export import verification
from export.signatures import SIGNATURES, Signatures
from nvae_tf.generation import image_grid
from nvae_tf.models.latents import PriorSource
from nvae_tf.models.noise import image_seeds, noise_per_image

ROOT = pathlib.Path(__file__).resolve().parents[2]
SEEDS = np.array([5, 6, 5, 5 + 2 * 2**32], np.int64)
IMAGES = (np.random.default_rng(0).integers(0, 256, [4, 8, 8, 3]) / 255).astype(np.float32)


def assert_same(found, expected, tolerance=1e-5):
    expected = np.asarray(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.fixture(scope="module")
def clean_process(folder, model, tmp_path_factory):
    """A folder with what a process without the package makes of the export: outputs.npz and a picture."""
    place = tmp_path_factory.mktemp("clean")
    latent = Signatures(model).encode(tf.constant(IMAGES), tf.constant(SEEDS))["latent"].numpy()
    inputs = {
        "sample/seed": SEEDS,
        "sample/temperature": np.float32([1, 1, 0.6, 1]),
        "decode/latent": latent,
        **{f"{name}/image": IMAGES for name in ("encode", "reconstruct", "score")},
        **{f"{name}/seed": SEEDS for name in ("encode", "reconstruct", "score")},
    }
    np.savez(place / "inputs.npz", **inputs)
    replay = ["replay_signatures.py", str(folder), str(place / "inputs.npz"), str(place / "outputs.npz")]
    draw = ["run_saved_model.py", f"--saved_model={folder}", f"--output={place}/new/samples.png"]
    program = place / "program.py"
    program.write_text(
        f"""
import runpy, sys
for command in {[replay, [*draw, "--count=5", "--seed=4"]]}:
    sys.argv = command
    runpy.run_path({str(ROOT / "export")!r} + "/" + command[0], run_name="__main__")
assert not [name for name in sys.modules if name.startswith("nvae_tf.")]
import nvae_tf
"""
    )
    command = [sys.executable, "-I", str(program)]
    process = subprocess.run(command, cwd=place, capture_output=True, text=True)
    assert process.stderr.endswith("ModuleNotFoundError: import of nvae_tf halted; None in sys.modules\n")
    assert f"5 pictures in {place}/new/samples.png" in process.stdout
    return place


def test_every_signature_gives_the_models_numbers_in_a_clean_process(clean_process, model):
    found = np.load(clean_process / "outputs.npz")
    # Seed s is image 0 of the series s, and s + i * 2**32 is image i.
    assert_same(found["sample/image"][[0]], model.generate(1, seed=5))
    assert_same(found["sample/image"][[1]], model.generate(1, seed=6))
    assert_same(found["sample/image"][[3]], model.generate(3, seed=5)[2:])
    noise = noise_per_image(model.plan.latent_shapes(), image_seeds(5, 1))
    cooler = model.top_down_pass([PriorSource(draw, 0.6) for draw in noise], 1)
    assert_same(found["sample/image"][[2]], cooler.likelihood.mean())
    assert np.abs(found["sample/image"][2] - found["sample/image"][0]).max() > 1e-3

    for row, seed in [(0, 5), (1, 6)]:
        latents = model.encode(IMAGES[[row]], seed=seed)
        assert_same(found["encode/latent"][row], np.concatenate([np.ravel(z) for z in latents]))
        assert_same(found["reconstruct/image"][[row]], model.call(tf.constant(IMAGES[[row]]), seed=seed))
        assert_same(found["decode/image"][[row]], model.decode(latents))
    assert_same(found["decode/image"], found["reconstruct/image"])


def test_the_plain_script_draws_the_models_pictures_in_a_clean_process(clean_process, model):
    expected = image_grid(model.generate(5, seed=4).numpy(), enlarge=None)
    found = np.asarray(Image.open(clean_process / "new" / "samples.png")).astype(int)
    assert found.shape == expected.shape and np.abs(found - expected).max() <= 1


def test_score_is_the_bound_and_its_parts_add_up(run, model, vanilla_model):
    found = run("score", image=IMAGES, seed=SEEDS)
    decoded = model.infer(tf.constant(IMAGES[:1]), noise_per_image(model.plan.latent_shapes(), image_seeds(5, 1)))
    # With flows the KL is a one-sample estimate, so the bound is that of one importance sample.
    log_q = sum(tf.reduce_sum(latent.posterior.log_prob(latent.z_before_flows)) for latent in decoded.latents)
    log_p = sum(tf.reduce_sum(latent.prior.log_prob(latent.z)) for latent in decoded.latents)
    log_likelihood = decoded.likelihood.log_prob(IMAGES[:1])
    assert_same(found["nats"][:1], log_q - log_p - log_likelihood)
    assert_same(found["kl_per_group"][0].sum(), log_q - log_p)
    assert_same(found["bits_per_dim"], found["nats"] / np.log(2) / (8 * 8 * 3))
    assert found["kl_per_group"].shape == (4, 2)


def test_score_and_one_importance_sample_have_the_same_mean(vanilla_model):
    image = np.random.default_rng(2).integers(0, 2, [1, 6, 6, 1]).astype(np.float32)
    seeds = np.arange(300)
    images = np.broadcast_to(image, [len(seeds), 6, 6, 1])
    nats = Signatures(vanilla_model).score(tf.constant(images), tf.constant(seeds))["nats"].numpy()
    single = vanilla_model.score(images, seed=0).numpy()
    error = np.sqrt((nats.var() + single.var()) / len(seeds))
    assert abs(nats.mean() - single.mean()) < 4 * error
    assert nats.std() < single.std()


def test_a_row_does_not_depend_on_its_neighbours_or_the_batch_size(run):
    temperatures = np.float32([1, 0.5, 2, 1])
    batches = {
        "sample": {"seed": SEEDS, "temperature": temperatures},
        "encode": {"image": IMAGES, "seed": SEEDS},
        "reconstruct": {"image": IMAGES, "seed": SEEDS},
        "score": {"image": IMAGES, "seed": SEEDS},
        "decode": {"latent": run("encode", image=IMAGES, seed=SEEDS)["latent"]},
    }
    for signature, inputs in batches.items():
        together = run(signature, **inputs)
        others = [1, 3, 2]
        elsewhere = run(signature, **{name: array[others] for name, array in inputs.items()})
        alone = run(signature, **{name: array[:1] for name, array in inputs.items()})
        for name, array in together.items():
            assert_same(elsewhere[name], array[others])
            assert_same(alone[name], array[:1])


def test_seeds_differ(run):
    pictures = run("sample", seed=SEEDS, temperature=np.ones(4, np.float32))["image"]
    np.testing.assert_array_equal(pictures[0], pictures[2])
    for other in (1, 3):
        assert np.abs(pictures[0] - pictures[other]).max() > 1e-3


def test_tf_saved_model_load_works_too_for_a_padded_model_of_one_group(vanilla_model, tmp_path):
    signatures = Signatures(vanilla_model)
    signatures.archive().write_out(str(tmp_path / "1"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "1"))
    inputs, expected = verification.model_numbers(signatures)
    for name in SIGNATURES:
        arguments = {key.split("/")[1]: tf.constant(a) for key, a in inputs.items() if key.startswith(f"{name}/")}
        for key, tensor in loaded.signatures[name](**arguments).items():
            assert_same(tensor.numpy(), expected[f"{name}/{key}"])
