"""OMNIGLOT's MATLAB file: the letters stand upright, intensities are cut to whole numbers, other files are refused."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import scipy.io
import scipy.sparse

from nvae_tf.data import data_spec
from nvae_tf.data.pipeline import evaluation_batches
from nvae_tf.data.sources import load_split

OMNIGLOT = data_spec("omniglot")


def letter_f():
    """A letter that is neither its own mirror image nor its own transpose, `[28, 28]`."""
    letter = np.zeros([28, 28])
    letter[3:25, 8:11] = 1.0
    letter[3:6, 8:21] = 0.5
    letter[12:15, 8:16] = 0.25
    return letter


def columns(images):
    """`[count, 28, 28]` as the file has them: an image a column, its pixels one column of the image after the other."""
    return np.stack([image.ravel(order="F") for image in images], axis=1)


LETTERS = np.stack([letter_f(), letter_f()[::-1], np.random.default_rng(0).uniform(size=(28, 28))])
CONTENTS = {"data": columns(LETTERS), "testdata": columns(LETTERS[1:]), "target": np.eye(3)}


def spec_of(path):
    return dataclasses.replace(OMNIGLOT, path=str(path))


@pytest.fixture
def folder(tmp_path):
    scipy.io.savemat(tmp_path / "chardata.mat", CONTENTS)
    return tmp_path


@pytest.mark.parametrize("name", ["", "chardata.mat"])
def test_letters_stand_upright(name, folder):
    spec = spec_of(folder / name)
    train, test = load_split(spec, "train"), load_split(spec, "test")
    np.testing.assert_array_equal(train.images, np.floor(LETTERS * 255)[..., np.newaxis])
    np.testing.assert_array_equal(test.images, train.images[1:])
    letter = train.images[0, ..., 0]
    assert letter[4, 18] == 127 and letter[13, 15] == 63 and letter[23, 9] == 255 and letter[23, 18] == 0


def test_the_transformation_is_that_of_the_published_model(folder):
    stored = scipy.io.loadmat(folder / "chardata.mat")["data"]
    expected = (255 * stored.reshape(28, 28, -1).transpose(2, 1, 0)).astype(np.uint8)
    np.testing.assert_array_equal(load_split(spec_of(folder), "train").images[..., 0], expected)


def test_batches_are_binarized(tmp_path):
    count = 200
    scipy.io.savemat(tmp_path / "chardata.mat", {"data": columns([letter_f()] * count), "testdata": columns(LETTERS)})
    spec = spec_of(tmp_path)
    (batch,) = evaluation_batches(load_split(spec, "train"), spec, count, seed=0)
    assert set(np.unique(batch)) == {0.0, 1.0}
    frequency = np.mean(batch, axis=0)[..., 0]
    assert frequency[23, 9] == 1.0 and frequency[23, 18] == 0.0
    # The bar of the letter, away from its stem: 30 pixels with intensity 127/255.
    assert abs(frequency[3:6, 11:21].mean() - 127 / 255) < 4.5 * 0.5 / np.sqrt(30 * count)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="data.path = .*gone.mat: there is nothing; it names the file chardata"):
        load_split(spec_of(tmp_path / "gone.mat"), "train")
    with pytest.raises(FileNotFoundError, match="chardata.mat: no such file"):
        load_split(spec_of(tmp_path), "train")
    with pytest.raises(ValueError, match="data.path is not set: --config.data.path=... names the file chardata.mat"):
        load_split(OMNIGLOT, "train")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"testdata": CONTENTS["testdata"]}, "has no variable 'data'; it is not the chardata.mat of Burda et al."),
        ({"data": CONTENTS["data"].T}, r"variable 'data' is \[3, 784\]; it must be \[784, images\], from 0 to 1"),
        ({"data": CONTENTS["data"] * 255}, r"variable 'data' is \[784, 3\]; it must be \[784, images\], from 0 to 1"),
        ({"data": CONTENTS["data"] - 0.5}, "from 0 to 1"),
        ({"data": np.where(CONTENTS["data"] == 1.0, np.nan, CONTENTS["data"])}, "from 0 to 1"),
        ({"data": CONTENTS["data"] * 1j}, "from 0 to 1"),
        ({"data": scipy.sparse.csc_matrix(CONTENTS["data"])}, "from 0 to 1"),
        ({"data": CONTENTS["data"][:, :0]}, r"variable 'data' is \[784, 0\]"),
    ],
)
def test_other_contents_are_refused(contents, message, tmp_path):
    file = tmp_path / "chardata.mat"
    scipy.io.savemat(file, contents)
    with pytest.raises(ValueError, match=f"^{file}: .*{message}"):
        load_split(spec_of(file), "train")


def test_more_than_the_memory_is_not_unpacked(folder, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3 * LETTERS.nbytes - 1))
    with pytest.raises(ValueError, match="chardata.mat: its images need .* GB of memory"):
        load_split(spec_of(folder), "train")


@pytest.mark.parametrize("kept", [0, 50, 130, 2000])
def test_what_is_no_whole_matlab_file_is_refused(kept, folder):
    file = folder / "chardata.mat"
    content = file.read_bytes()
    for damaged in (content[:kept], b"Dear diary,\n" * (kept // 10)):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"^{file}: not a complete MATLAB file .*download it again"):
            load_split(spec_of(file), "train")
