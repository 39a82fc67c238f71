import json

import numpy as np
import pytest

from configs import digits
from nvae_tf.data.spec import complete_config
from nvae_tf.generation.image_grid import read_images
from nvae_tf.training import memory
from tests import refuses
from tests.command_fixtures import config_flags, metrics_rows, saved_steps, score_of
from tests.tiny_model import ARCHITECTURE


def test_a_run_leaves_its_records(finished_run):
    workdir, output = finished_run
    assert "step 60/60" in output and "nats" in output and "images/s" in output
    assert "1,437 training and 360 test images" in output
    assert json.loads((workdir / "config.json").read_text())["objective"]["total_steps"] == 60
    actual = metrics_rows(workdir)
    assert [row["step"] for row in actual] == [20, 40, 60]
    for row in actual:
        assert row["test_nelbo_nats"] == pytest.approx(row["test_reconstruction_nats"] + row["test_kl_nats"], abs=1e-3)
        assert row["test_bits_per_dim"] == pytest.approx(row["test_nelbo_nats"] / np.log(2) / 256, rel=1e-4)
        assert row["test_kl_nats"] >= 0.0 and row["epoch"] == pytest.approx(row["step"] / 14, rel=1e-4)
    assert actual[-1]["test_nelbo_nats"] < actual[0]["test_nelbo_nats"] < 256 * np.log(2) + 1
    samples = sorted(file.name for file in (workdir / "samples").iterdir())
    assert samples == ["step-00000040.png", "step-00000060.png"]
    assert read_images(workdir / "samples" / samples[0], 16, 8).shape[:3] == (64, 16, 16)
    assert (workdir / "checkpoints" / "step-60.index").is_file()
    nelbo, bits = actual[-1]["test_nelbo_nats"], actual[-1]["test_bits_per_dim"]
    assert f"Test score: NELBO {nelbo:.2f} nats per image, {bits:.4f} bits/dim (360 images; " in output
    assert output.rstrip().splitlines()[-2:] == [
        f"Next: nvae-evaluate --workdir={workdir}",
        f"      nvae-generate --workdir={workdir} --output=samples.png",
    ]


def test_a_finished_run_is_not_done_again(commands, finished_run):
    workdir, _ = finished_run
    before = {file: file.stat().st_mtime_ns for file in workdir.rglob("*") if file.is_file()}
    assert "a finished run" in commands.output_of(["-m", "train.main", f"--workdir={workdir}"])
    assert {file: file.stat().st_mtime_ns for file in workdir.rglob("*") if file.is_file()} == before


@pytest.mark.slow
def test_the_best_checkpoint_with_averages_is_found_by_commands(commands, done, tmp_path):
    workdir = tmp_path / "averaged"
    commands.train(workdir, train__steps=40, optimizer__ema_momentum=0.9)
    assert saved_steps(workdir / "checkpoints" / "best") == [40] and score_of(workdir, 40) < score_of(workdir, 20)
    flags = [f"--workdir={workdir}", "--checkpoint=best"]
    assert "best checkpoint, step 40, " in done("train.evaluate", *flags, "--metrics=elbo")
    metrics = json.loads((workdir / "evaluation.json").read_text())
    # Training has evaluated the averages too.
    assert metrics["weights"] == "exponential moving averages (EMA) of the weights"
    assert metrics["nelbo_nats"] == pytest.approx(score_of(workdir, 40), rel=1e-5)
    output = tmp_path / "samples.png"
    assert f"from step 40, in {output}" in done("train.generate", *flags, f"--output={output}", "--count=2")


TOLERANCE = 0.25
# A step is traced in a third of the time.
SMALLER = {"model.num_latent_scales": 1, "model.num_postprocess_cells": 1, "model.num_cells_per_group_decoder": 1}
# Takes some training steps, and prints the most memory that the process has had.
TRAINING_STEPS = f"""
import sys
SMALLER = {SMALLER}
from benchmarks.workloads import Training, peak_memory_bytes
step = Training("digits", int(sys.argv[1]), **SMALLER)
for _ in range(3):
    step()
print(peak_memory_bytes())
"""


def tiny_config(**training):
    """The smallest model, of images of 16 x 16 pixels."""
    settings = digits.get_config()
    settings.model.update(ARCHITECTURE)
    settings.train.update({"batch_size": 100} | training)
    return complete_config(settings)


def summary(config, gpu_gib=None, device="CPU"):
    """Of a model of 4 MB of weights that needs 1 GiB and 10 MB for each image."""
    measured = {"device": device, "parameters": 10**6, "weights_bytes": 4 * 10**6}
    measured |= {"optimizer_slots_bytes": 8 * 10**6, "other_state_bytes": 10**5, "step_seconds": 3.0}
    return memory.memory_summary(measured, 2.0**30, 1e7, config, gpu_gib)


def test_the_largest_batch_is_the_largest_that_fits():
    state, images = 2 * 4 * 10**6 + 8 * 10**6 + 10**5, 1000 * 10**7
    for device, steps, size, expected in (
        ("CPU", 1, memory.CUDA_BYTES + state + images, 1000),
        ("CPU", 1, memory.CUDA_BYTES + state + images - 1, 999),
        ("CPU", 1, memory.CUDA_BYTES, 0),
        ("GPU", 4, 2**30 + 111 * 10**7, 108),
    ):
        (row,) = summary(tiny_config(accumulate_steps=steps), size / memory.GIB, device)["largest_batch_sizes"]
        assert row["batch_size"] == expected


def test_the_table_has_the_own_batch_size_and_the_microbatches_that_fit():
    thirty, config = memory.CUDA_BYTES + 16 * 10**6 + 10**5 + 30 * 10**7, tiny_config()
    numbers = summary(config, thirty / memory.GIB)
    assert [row["batch_size"] for row in numbers["batch_sizes"]] == [1, 2, 4, 8, 16, 32, 64, 100]
    assert numbers["batch_sizes"][-1]["peak_bytes"] == 2**30 + 10**9
    printed = memory.memory_table(numbers, config)
    assert "10,000 images          5.0 minutes  in steps of 100 images" in printed
    assert "1,000,000 parameters" in printed and printed.count("(train.batch_size)") == 1
    # 25 images are the largest equal microbatch of 100 that fits.
    assert "accumulate_steps=4" in printed
    assert "none" in memory.memory_table(summary(config, 1.0), config)


def test_images_need_not_be_there_where_their_size_is_set(commands):
    # In a process of its own: two scripts with a --config can't be imported in one.
    program = (
        "from configs import own_images; from nvae_tf.data.spec import complete_config\n"
        "from train.estimate import sized_settings; settings = own_images.get_config(); settings.data.height = 64\n"
        "config = complete_config(sized_settings(settings)); print(config.data.image_shape, config.model.image_width)\n"
        "given = ['model.num_channels_decoder', 'train.batch_size']; settings.unlock()\n"
        "settings.update(size='tiny', recipe='efficient')\n"
        "config = complete_config(sized_settings(settings), given); model = config.model\n"
        "print(model.num_preprocess_blocks, model.num_channels_encoder, model.num_channels_decoder)\n"
        "print(model.residual_scale, config.train.batch_size)"
    )
    assert commands.output_of(["-c", program]) == "(64, 64, 3) 64\n2 8 32\n0.3 16\n"


@pytest.mark.slow
def test_the_estimate_is_what_training_takes(commands, done, tmp_path):
    file = tmp_path / "numbers.json"
    flags = ["--config=digits", f"--json={file}", "--gpu_memory_gib=24", "--config.train.batch_size=1024"]
    flags += config_flags(SMALLER)
    # That the command's own process has been larger than the ones that take the steps hides nothing.
    np.ones(3 * 10**8)
    done("train.estimate", *flags)
    numbers = json.loads(file.read_text())
    (row,) = (row for row in numbers["batch_sizes"] if row["batch_size"] == 1024)
    measured = int(commands.output_of(["-c", TRAINING_STEPS, 1024]))
    assert abs(row["peak_bytes"] / measured - 1.0) < TOLERANCE
    # And not because the process alone is large.
    images = 1024 * numbers["image_bytes"]
    assert abs(images / (measured - numbers["fixed_bytes"]) - 1.0) < TOLERANCE


def test_a_step_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(memory, "__name__", "no.such.module")
    refuses("a training step of 32 images fails: .*no.such", memory.estimate_memory, tiny_config())
