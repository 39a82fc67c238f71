"""A run that goes on with other images says so."""

import types

import pytest

from nvae_tf.config import ExperimentConfig, TrainConfig
from nvae_tf.training.run import Images, Run, check_images_a_step, note_images
from nvae_tf.training.run_folder import read_image_counts
from nvae_tf.training.strategy import ONE_DEVICE


def images(train, test, batch_size=10, held_out=None):
    parts = Images(None, types.SimpleNamespace(count=train), types.SimpleNamespace(count=test), held_out)
    return Run(ExperimentConfig(train=TrainConfig(batch_size=batch_size)), None, parts, None, None, ONE_DEVICE)


def test_another_number_of_images_a_step_is_refused(tmp_path):
    file = tmp_path / "images.json"
    check_images_a_step(file, images(54, 6))
    note_images(file, images(54, 6), print)
    check_images_a_step(file, images(54, 6))
    with pytest.raises(ValueError, match="makes 20 images a step; this run was begun with 10: set train.batch_size=10"):
        check_images_a_step(file, images(54, 6, batch_size=20))


def test_changes_are_told_once(tmp_path):
    file, told = tmp_path / "images.json", []
    note_images(file, images(54, 6), told.append)
    note_images(file, images(54, 6), told.append)
    assert not told
    note_images(file, images(49, 5), told.append)
    note_images(file, images(49, 5), told.append)
    (line,) = told
    assert "began with 54 training and 6 test images, and there are 49 and 5 now" in line


def test_the_numbers_of_an_older_version_fit_any_step(tmp_path):
    file, told = tmp_path / "images.json", []
    file.write_text('{"train": 54, "test": 6}')
    check_images_a_step(file, images(54, 6, batch_size=20))
    note_images(file, images(54, 6), told.append)
    assert not told and file.read_text() == '{"train": 54, "test": 6, "a_step": 10}\n'


@pytest.mark.parametrize("held_out", [True, False])
def test_how_the_images_were_split_is_noted(held_out, tmp_path):
    file, told = tmp_path / "images.json", []
    file.write_text('{"train": 54, "test": 6, "a_step": 10}')
    note_images(file, images(54, 6, held_out=held_out), told.append)
    assert not told and read_image_counts(file) == (54, 6, 10, held_out)
    check_images_a_step(file, images(54, 6, held_out=held_out))


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"test": 6}',
        '{"train": true, "test": 6}',
        '{"train": 54, "test": 6, "a_step": 0}',
        '{"train": 54, "test": 6, "held_out": 1}',
    ],
)
def test_a_damaged_file_is_named(text, tmp_path):
    file = tmp_path / "images.json"
    file.write_text(text)
    for use in (check_images_a_step, lambda *given: note_images(*given, print)):
        with pytest.raises(ValueError, match=r"images\.json: must be a JSON object .*; mend it, or delete it"):
            use(file, images(54, 6))
    assert file.read_text() == text
