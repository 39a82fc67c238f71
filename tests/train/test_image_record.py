"""A run that goes on with other images says so."""

import types

from train.image_record import note_images
from train.preparation import Images


def images(train, test):
    return Images(None, types.SimpleNamespace(count=train), types.SimpleNamespace(count=test))


def test_changes_are_told_once(tmp_path):
    file, told = tmp_path / "images.json", []
    note_images(file, images(54, 6), told.append)
    note_images(file, images(54, 6), told.append)
    assert not told
    note_images(file, images(49, 5), told.append)
    note_images(file, images(49, 5), told.append)
    (line,) = told
    assert "began with 54 training and 6 test images, and there are 49 and 5 now" in line
