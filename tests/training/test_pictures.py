"""What a run shows on its way in TensorBoard: its event files, read as TensorBoard reads them."""

import csv
import io

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

import nvae_tf
from nvae_tf.data.pipeline import evaluation_batches
from nvae_tf.data.sources import load_split
from nvae_tf.generation.image_grid import image_grid
from nvae_tf.generation.sampling import generate_images
from nvae_tf.training.run_folder import RunFolder, read_run_config


@pytest.fixture(scope="module")
def events(finished_run):
    # Tags with few values keep all.
    accumulator = EventAccumulator(str(finished_run[0] / "tensorboard"), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


@pytest.fixture(scope="module")
def model(finished_run):
    return nvae_tf.load(finished_run[0])


def steps(events, tag):
    return [event.step for event in events.Tensors(tag)]


def scalars(events, tag):
    return {event.step: float(make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)}


def pixels(events, tag, step):
    (encoded,) = [make_ndarray(event.tensor_proto)[2] for event in events.Tensors(tag) if event.step == step]
    picture = np.asarray(Image.open(io.BytesIO(encoded)))
    return picture[..., np.newaxis] if picture.ndim == 2 else picture


def assert_same_picture(found, expected):
    """Up to the last bit, which differs with how the images were computed."""
    assert found.shape[:2] == expected.shape[:2]
    assert np.abs(found[..., :1].astype(int) - expected).max() <= 1


@pytest.mark.parametrize("temperature", [1.0, 0.9, 0.8, 0.6])
def test_samples_of_every_temperature_come_from_the_same_draws(events, model, temperature):
    tag = f"samples/temperature_{temperature}"
    assert steps(events, tag) == [40, 60]
    expected = image_grid(generate_images(model, 16, temperature, seed=0), enlarge=None)
    assert_same_picture(pixels(events, tag, 60), expected)


def test_the_main_temperature_is_also_the_picture_in_the_folder(events, finished_run):
    assert steps(events, "samples/temperature_0.7") == [40, 60]
    for step in (40, 60):
        in_folder = np.asarray(Image.open(finished_run[0] / "samples" / f"step-{step:08d}.png"))[..., np.newaxis]
        assert_same_picture(pixels(events, "samples/temperature_0.7", step), in_folder)


def test_test_images_stand_above_their_reconstructions(events, model, finished_run):
    spec = read_run_config(RunFolder(finished_run[0])).data
    originals = next(iter(evaluation_batches(load_split(spec, "test"), spec, 8, seed=0)))
    assert steps(events, "reconstructions") == [40, 60]
    side, gap = 64, 6
    for step in (40, 60):
        upper = pixels(events, "reconstructions", step)[:side]
        assert_same_picture(upper, image_grid(originals, columns=8, enlarge=None))
    lower = pixels(events, "reconstructions", 60)[side + gap :]
    assert_same_picture(lower, image_grid(model(originals, seed=0), columns=8, enlarge=None))
    assert (lower != pixels(events, "reconstructions", 40)[side + gap :]).any()


def test_active_units_of_the_groups_add_up(events, finished_run):
    of_groups = [scalars(events, f"active_units/{group:02d}") for group in (0, 1)]
    total = scalars(events, "test/active_units")
    with (finished_run[0] / "metrics.csv").open(newline="") as file:
        in_file = {int(row["step"]): int(row["active_units"]) for row in csv.DictReader(file)}
    assert list(total) == [20, 40, 60]
    assert total == in_file == {step: of_groups[0][step] + of_groups[1][step] for step in total}
    assert any(total.values())
    assert all(0 <= value <= 2 for group in of_groups for value in group.values())
