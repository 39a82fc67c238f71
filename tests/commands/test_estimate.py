import json

import pytest

from configs import digits
from nvae_tf.data.spec import complete_config
from nvae_tf.training import memory
from tests.tiny_model import ARCHITECTURE

TOLERANCE = 0.25
# Takes some training steps, and prints the most memory that the process has had.
TRAINING_STEPS = """
import sys
from benchmarks.workloads import Training, peak_memory_bytes
step = Training("digits", int(sys.argv[1]))
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
    measured |= {"optimizer_slots_bytes": 8 * 10**6, "other_state_bytes": 10**5}
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
    assert "1,000,000 parameters" in printed and printed.count("(train.batch_size)") == 1
    # 25 images are the largest equal microbatch of 100 that fits.
    assert "accumulate_steps=4" in printed
    assert "none" in memory.memory_table(summary(config, 1.0), config)


@pytest.mark.slow
def test_a_large_parent_does_not_hide_the_peak_of_a_step(commands):
    child = "from nvae_tf.training.memory import peak_memory_bytes; print(peak_memory_bytes())"
    program = f"import numpy, subprocess, sys; numpy.ones(2 * 10**8); subprocess.run([sys.executable, '-c', '{child}'])"
    assert 10**8 < int(commands.output_of(["-c", program])) < 15 * 10**8


def test_images_need_not_be_there_where_their_size_is_set(commands):
    # In a process of its own: two scripts with a --config can't be imported in one.
    program = (
        "from configs import own_images; from nvae_tf.data.spec import complete_config\n"
        "from train.estimate import sized_settings; settings = own_images.get_config(); settings.data.height = 64\n"
        "config = complete_config(sized_settings(settings)); print(config.data.image_shape, config.model.image_width)"
    )
    assert commands.output_of(["-c", program]) == "(64, 64, 3) 64\n"


@pytest.mark.slow
def test_the_estimate_is_what_training_takes(commands, tmp_path):
    file = tmp_path / "numbers.json"
    flags = ["--config=digits", f"--json={file}", "--gpu_memory_gib=24", "--config.train.batch_size=512"]
    # A fork's memory is in part that of the process that it is a fork of.
    assert commands.started_anew(["-m", "train.estimate", *flags]).wait(100) == 0
    numbers = json.loads(file.read_text())
    (row,) = (row for row in numbers["batch_sizes"] if row["batch_size"] == 512)
    measured = int(commands.output_of(["-c", TRAINING_STEPS, 512]))
    assert abs(row["peak_bytes"] / measured - 1.0) < TOLERANCE
    # And not because the process alone is large.
    images = 512 * numbers["image_bytes"]
    assert abs(images / (measured - numbers["fixed_bytes"]) - 1.0) < TOLERANCE


def test_a_step_that_fails_is_named(monkeypatch):
    monkeypatch.setattr(memory, "__name__", "no.such.module")
    with pytest.raises(ValueError, match="a training step of 32 images fails: .*no.such"):
        memory.estimate_memory(tiny_config())
