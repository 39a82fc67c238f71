"""`train.estimate`: the figures of a small model, the measured peak of real training steps, and wrong commands."""

import json

import numpy as np
import pytest
import tensorflow as tf

from configs import digits, own_images
from nvae_tf.data.spec import MODEL_SETTINGS, complete_config
from nvae_tf.memory import memory_timeline
from nvae_tf.training import memory_estimate
from nvae_tf.training.memory_estimate import estimate_memory
from nvae_tf.training.memory_report import figures_of, report_memory, table
from nvae_tf.training.run import Images, RunLength, new_run
from nvae_tf.training.sized_settings import sized_settings
from tests.tiny_model import TINY

# The largest error that the estimate may have.
TOLERANCE = 0.25
# Takes some training steps, and tells the most memory that the process has had.
TRAINING_STEPS = """
import sys
from benchmarks.interleaved import peak_memory_bytes
from nvae_tf import experiment_config, presets
from nvae_tf.training.devices import configure_runtime
from nvae_tf.training.run import Images, RunLength, new_run
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
    settings.model.update({name: value for name, value in TINY.items() if name not in MODEL_SETTINGS})
    settings.train.update({"batch_size": 100} | training)
    return complete_config(settings)


@pytest.fixture(scope="module")
def config():
    return tiny_config()


@pytest.fixture(scope="module")
def estimate(config):
    return estimate_memory(config)


def test_what_stays_from_step_to_step(estimate):
    state = estimate.state
    assert state.weights == 4 * state.parameters > 0
    # Two slots a weight; the step and the factor of the learning rate beside them.
    assert 2 * state.weights < state.slots <= 2 * state.weights + 64
    assert 0 < state.other < state.weights


def test_each_buffer_is_taken_and_freed_once(estimate):
    for timeline in (*estimate.timelines, estimate.timeline(3)):
        assert set(np.bincount(timeline.buffers)) == {2}
        assert set(np.bincount(timeline.buffers, timeline.changes)) == {0.0}
        assert np.cumsum(timeline.changes).min() >= 0
        assert not timeline.unknown


def test_more_images_need_more(estimate):
    sizes = [1, 2, 3, 7, 8, 50, 64, 1000]
    for figure in (estimate.activations_bytes, estimate.cpu_bytes, estimate.gpu_bytes):
        figures = [figure(size) for size in sizes]
        assert figures == sorted(figures) and figures[0] < figures[-1]
    assert all(estimate.reserved_bytes(size) >= estimate.activations_bytes(size) for size in sizes)


def test_the_largest_batch_is_the_largest_that_fits(estimate):
    memory = estimate.gpu_bytes(1000)
    largest = estimate.largest_batch_size(memory)
    assert largest >= 1000
    assert estimate.gpu_bytes(largest) <= memory < estimate.gpu_bytes(largest + 1)
    assert estimate.largest_batch_size(memory_estimate.GPU_BASE_BYTES) == 0


def test_the_table_has_the_own_batch_size_among_powers_of_two(estimate, config):
    figures = figures_of(estimate, config, None)
    assert [row["batch_size"] for row in figures["batch_sizes"]] == [1, 2, 4, 8, 16, 32, 64, 100]
    printed = table(figures, config)
    assert f"{estimate.state.parameters:,} parameters" in printed
    assert printed.count("(train.batch_size)") == 1


def test_what_does_not_fit_is_told_with_what_to_do(estimate, config, monkeypatch, capsys):
    monkeypatch.setattr("nvae_tf.training.memory_report.estimate_memory", lambda _: estimate)
    gib = memory_estimate.GIB
    report_memory(config, estimate.gpu_bytes(30) / gib, None)
    # 25 images are the largest part of 100 that fits.
    assert "accumulate_steps=4" in capsys.readouterr().out
    with pytest.raises(ValueError, match="not even a step of 1 image fits.*recompute.*num_channels_encoder"):
        report_memory(config, memory_estimate.GPU_BASE_BYTES / gib + 1e-6, None)
    assert "none" in capsys.readouterr().out
    with pytest.raises(ValueError, match="gpu_memory_gib=1: CUDA and its libraries alone take about 1.00 GiB"):
        report_memory(config, memory_estimate.GPU_BASE_BYTES / gib, None)


@pytest.mark.slow
def test_other_batch_sizes_are_those_of_their_own_graphs(config, estimate):
    model = new_run(config, RunLength(100, 1000), Images(config.data, None, None)).model
    for size in (3, 16, 100):
        images = tf.TensorSpec([size, *config.data.image_shape])
        traced = tf.function(model.train_step, autograph=False).get_concrete_function(images)
        assert estimate.activations_bytes(size) == pytest.approx(memory_timeline(traced).peak_bytes, rel=0.02)


@pytest.mark.slow
def test_a_batch_that_is_cut_has_whole_parts():
    estimate = estimate_memory(tiny_config(accumulate_steps=4))
    assert estimate.largest_batch_size(estimate.gpu_bytes(100) + 1) % 4 == 0


def test_images_need_not_be_there_where_their_size_is_set():
    settings = own_images.get_config()
    settings.data.height = 64
    config = complete_config(sized_settings(settings))
    assert config.data.image_shape == (64, 64, 3) and config.model.image_width == 64
    # Everything else is looked up as in a run.
    with pytest.raises(ValueError, match="data.path"):
        complete_config(sized_settings(own_images.get_config()))
    settings = digits.get_config()
    assert complete_config(sized_settings(settings)) == complete_config(settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu_memory=24"], "Unknown command line flag 'gpu_memory'. Did you mean: gpu_memory_gib"),
        (["--gpu_memory_gib=0"], "0.1"),
        (["--config.train.batch_size=0"], "train.batch_size = 0: must be at least 1"),
        (["--json=no/such/folder.json"], "--json=no/such/folder.json: not a file in an existing folder"),
    ],
)
def test_wrong_commands_end_at_once(commands, arguments, message):
    process = commands.run(["-m", "train.estimate", "--config=configs/digits.py", *arguments])
    assert process.returncode == 2
    assert process.stderr.startswith("error: ") and message in process.stderr
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.slow
# Almost nothing but activations; almost as many weights with their slots and gradients; mostly weights.
@pytest.mark.parametrize(("preset", "batch_size"), [("digits", 512)])
def test_the_estimate_is_what_training_takes(commands, tmp_path, preset, batch_size):
    file = tmp_path / "figures.json"
    process = commands.run(
        ["-m", "train.estimate", f"--config=configs/{preset}.py", f"--json={file}", "--gpu_memory_gib=24"]
        + [f"--config.train.batch_size={batch_size}"]
    )
    assert process.returncode == 0, process.stderr
    figures = json.loads(file.read_text())
    (row,) = (row for row in figures["batch_sizes"] if row["batch_size"] == batch_size)
    trained = commands.run(["-c", TRAINING_STEPS, preset, batch_size])
    assert trained.returncode == 0, trained.stderr
    measured = int(trained.stdout)
    assert abs(row["cpu_peak_bytes"] / measured - 1.0) < TOLERANCE
    # And not because the process alone is large.
    without_process = measured - figures["process_bytes"]
    assert abs((row["cpu_peak_bytes"] - figures["process_bytes"]) / without_process - 1.0) < TOLERANCE
