import json

import numpy as np
import pytest
import tensorflow as tf

from configs import digits
from nvae_tf.data.spec import complete_config
from nvae_tf.layers.cpu_kernels import known_sizes
from nvae_tf.training import memory
from nvae_tf.training.graph_memory import memory_timeline
from nvae_tf.training.run import Images, RunLength, new_run
from tests.tiny_model import ARCHITECTURE

TOLERANCE = 0.25
# Takes some training steps, and prints the most memory that the process has had.
TRAINING_STEPS = """
import sys
from benchmarks.workloads import peak_memory_bytes
from nvae_tf import experiment_config, presets
from nvae_tf.training.run import Images, RunLength, new_run
from nvae_tf.training.strategy import configure_runtime
import tensorflow as tf

configure_runtime()
settings = presets.preset(sys.argv[1])
settings.train.batch_size = int(sys.argv[2])
config = experiment_config(settings)
run = new_run(config, RunLength(100, 1000), Images(config.data, None, None))
step = tf.function(run.model.train_step, autograph=False)
for _ in range(3):
    step(tf.zeros([config.train.batch_size, *config.data.image_shape]))
print(peak_memory_bytes())
"""


def tiny_config(**training):
    """The smallest model, of images of 16 x 16 pixels."""
    settings = digits.get_config()
    settings.model.update(ARCHITECTURE)
    settings.train.update({"batch_size": 100} | training)
    return complete_config(settings)


@pytest.fixture(scope="module")
def config():
    return tiny_config()


@pytest.fixture(scope="module")
def estimate(config):
    return memory.estimate_memory(config)


@pytest.mark.slow
def test_what_stays_from_step_to_step_and_each_buffer_is_allocated_and_freed_once(estimate):
    weights = estimate.weights_bytes
    assert weights == 4 * estimate.parameters > 0
    # Two slots a weight; the step and the factor of the learning rate beside them.
    assert 2 * weights < estimate.slots_bytes <= 2 * weights + 64
    assert 0 < estimate.other_bytes < weights
    for timeline in (*estimate.timelines, estimate.timeline(3)):
        assert set(np.bincount(timeline.buffers)) == {2}
        assert set(np.bincount(timeline.buffers, timeline.changes)) == {0.0}
        assert np.cumsum(timeline.changes).min() >= 0
        assert not timeline.unknown


def test_more_images_need_more_and_the_largest_batch_is_the_largest_that_fits(estimate):
    sizes = [1, 2, 3, 7, 8, 50, 64, 1000]
    for bytes_at in (estimate.activations_bytes, estimate.cpu_bytes, estimate.gpu_bytes):
        found = [bytes_at(size) for size in sizes]
        assert found == sorted(found) and found[0] < found[-1]
    assert all(estimate.reserved_bytes(size) >= estimate.activations_bytes(size) for size in sizes)
    available = estimate.gpu_bytes(1000)
    largest = estimate.largest_batch_size(available)
    assert largest >= 1000
    assert estimate.gpu_bytes(largest) <= available < estimate.gpu_bytes(largest + 1)
    assert estimate.largest_batch_size(memory.GPU_BASE_BYTES) == 0


def test_the_table_has_the_own_batch_size_and_the_microbatches_that_fit(estimate, config):
    summary = memory.memory_summary(estimate, config, estimate.gpu_bytes(30) / memory.GIB)
    assert [row["batch_size"] for row in summary["batch_sizes"]] == [1, 2, 4, 8, 16, 32, 64, 100]
    printed = memory.memory_table(summary, config)
    assert f"{estimate.parameters:,} parameters" in printed
    assert printed.count("(train.batch_size)") == 1
    # 25 images are the largest equal microbatch of 100 that fits.
    assert "accumulate_steps=4" in printed


def test_a_gpu_that_can_not_take_one_image(estimate, config):
    for more_bytes, message in (
        (1000, "not even a step of 1 image fits.*recompute.*num_channels_encoder"),
        (0, "gpu_memory_gib=1: CUDA and its libraries alone take about 1.00 GiB"),
    ):
        gib = (memory.GPU_BASE_BYTES + more_bytes) / memory.GIB
        assert "none" in memory.memory_table(memory.memory_summary(estimate, config, gib), config)
        with pytest.raises(ValueError, match=message):
            memory.check_one_image_fits(estimate, config, gib)


@pytest.mark.slow
def test_other_batch_sizes_are_those_of_their_own_graphs(config, estimate):
    model = new_run(config, RunLength(100, 1000), Images(config.data, None, None)).model
    for size in (3, 100):
        images = tf.TensorSpec([size, *config.data.image_shape])
        with known_sizes():
            traced = tf.function(model.train_step, autograph=False).get_concrete_function(images)
        assert estimate.activations_bytes(size) == pytest.approx(memory_timeline(traced).peak_bytes, rel=0.02)
    # A batch size is a multiple of the microbatches.
    estimate = memory.estimate_memory(tiny_config(accumulate_steps=4))
    assert estimate.largest_batch_size(estimate.gpu_bytes(100) + 1) % 4 == 0


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
    measured = int(commands.output_of(["-c", TRAINING_STEPS, "digits", 512]))
    assert abs(row["cpu_peak_bytes"] / measured - 1.0) < TOLERANCE
    # And not because the process alone is large.
    without_process = measured - numbers["process_bytes"]
    assert abs((row["cpu_peak_bytes"] - numbers["process_bytes"]) / without_process - 1.0) < TOLERANCE
