"""What the modes of `train.generate` make of their flags: places to write, temperatures, pictures."""

from types import SimpleNamespace

import numpy as np
import pytest

import nvae_tf
from configs import digits
from nvae_tf.data.sources import load_split
from nvae_tf.generation.grid_rows import pairs_of_rows, rows_of_path
from nvae_tf.generation.output_place import FOLDER, output_place
from train import shared_flags
from train.generation import chosen_pictures


@pytest.fixture(scope="module")
def config():
    return nvae_tf.experiment_config(digits.get_config())


def test_where_nothing_can_be_written_is_told(tmp_path):
    file, full = tmp_path / "file", tmp_path / "full"
    file.touch()
    full.mkdir()
    (full / "x.png").touch()
    kinds = (".png", ".gif", FOLDER)
    assert output_place(f"{tmp_path}/a/b.GIF", kinds, False).kind == ".gif"
    assert output_place(f"{tmp_path}/a/", kinds, False).kind == FOLDER
    assert output_place(f"{full}", kinds, overwrite=True).kind == FOLDER
    for value, allowed, message in (
        (f"{full}", kinds, "there are files in this folder"),
        (f"{full}", (".png",), "a folder; give the name of a file that ends in .png"),
        (f"{tmp_path}/a.jpg", kinds, "give a name that ends in .png or .gif, or a folder that ends in /"),
        (f"{file}/a.png", kinds, "is a file, not a folder"),
        (f"{file}/", kinds, "this is a file, not a folder"),
        (f"{full}/x.png", kinds, "there is such a file"),
    ):
        with pytest.raises(ValueError, match=message):
            output_place(value, allowed, False)


def flag(value, name="temperature"):
    return SimpleNamespace(name=name, value=value)


def test_temperatures_are_numbers():
    assert shared_flags.temperature_of(flag("0.7")) == 0.7
    assert shared_flags.temperature_of(flag("0.7,1")) == [0.7, 1.0]
    for wrong in ("", "warm", "0.7,", "0.7,0", "nan", "inf"):
        with pytest.raises(ValueError, match="--temperature"):
            shared_flags.temperature_of(flag(wrong))


def picture_flags(**values):
    return shared_flags.PictureFlags(*(flag(values.get(name), name) for name in shared_flags.PictureFlags._fields))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input": ["x"], "indices": ["3"]}, "--input and --indices: give one of them"),
        ({"indices": ["3", "-1"]}, "--indices=3,-1: .* is not a whole number"),
        ({"resize": "crop"}, "--resize is for pictures of --input"),
        ({"input": ["x"], "data_path": "y"}, "--input and --data_path"),
    ],
)
def test_flags_that_contradict_each_other_are_told(values, message):
    with pytest.raises(ValueError, match=message):
        chosen_pictures.check_choice_of_pictures(picture_flags(**values))


def test_pictures_of_the_data_set_are_chosen_by_number(config):
    test = load_split(config.data, "test").images / np.float32(255)
    by_number = chosen_pictures.chosen_pictures(picture_flags(split="test", indices=["17", "3"]), config, 0, None)
    np.testing.assert_array_equal(by_number.images, test[[17, 3]])
    assert by_number.names == ["test_00017", "test_00003"]
    for values, at_most, count in (({"count": 70}, 5, 70), ({}, 5, 5), ({}, None, 360)):
        first = chosen_pictures.chosen_pictures(picture_flags(split="test", **values), config, 0, at_most)
        np.testing.assert_array_equal(first.images, test[:count])
    for values, message in (
        ({"indices": ["0", "360"]}, "--indices=360: the test part of digits has 360 images, numbers 0 to 359"),
        ({"count": 361}, "--count=361: the test part of digits has only 360 images"),
    ):
        with pytest.raises(ValueError, match=message):
            chosen_pictures.chosen_pictures(picture_flags(split="test", **values), config, 0, None)


def test_originals_stand_above_reconstructions():
    rows = pairs_of_rows(np.zeros((3, 1, 1, 1)), np.ones((3, 1, 1, 1)), 2)
    assert rows.ravel().tolist() == [0, 0, 1, 1, 0, 0.5, 1, 0.5]


def test_a_row_begins_where_the_one_before_ends():
    path = np.arange(7).reshape(7, 1, 1, 1)
    assert rows_of_path(path, 3).ravel().tolist() == [0, 1, 2, 3, 3, 4, 5, 6]
