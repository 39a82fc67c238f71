import json
import tracemalloc
import zipfile

import numpy as np
import pytest

from nvae_tf import schemas
from nvae_tf.files import atomic_file, atomic_folder, atomic_write, file_sha256
from nvae_tf.schemas import ABOUT, LATENT_SHAPES, OWNER, Field, parsed, read_arrays, write_arrays
from tests import refuses


def test_a_full_disk_is_reported_with_the_files_own_name_and_other_errors_stay_as_they_are(small_files, tmp_path):
    file = tmp_path / "scores.txt"
    atomic_write(file, "old")
    small_files(10)
    with pytest.raises(OSError, match=r"scores\.txt: can't be written \(File too large\)$") as error:
        atomic_write(file, 100 * "new")
    small_files(None)
    assert "partial" not in str(error.value) and error.value.strerror == "File too large"
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.txt"] and file.read_text() == "old"
    for error in (FileNotFoundError(2, "No file", "elsewhere"), ConnectionError("no network"), ValueError("wrong")):
        with pytest.raises(type(error)) as raised, atomic_file(tmp_path / "a.txt"):
            raise error
        assert raised.value is error


def test_a_folder_is_there_whole_or_not_at_all(tmp_path):
    place, checks = tmp_path / "new" / "folder", []
    with pytest.raises(KeyboardInterrupt), atomic_folder(place, lambda: checks.append(place.exists())) as written:
        written.mkdir()
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir()) and checks == [False]
    with atomic_folder(place, lambda: checks.append(place.exists())) as written:
        written.mkdir()
        (written / "file").write_text("abc")
        assert not place.exists()
    assert [entry.name for entry in place.parent.iterdir()] == ["folder"] and checks == [False] * 3
    # An example of FIPS 180-2.
    assert file_sha256(place / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


SCHEMA = {"a": Field("number", ("count", 3)), "b": Field("text", optional=True)}
LONG = np.zeros([10**6, 3])


@pytest.mark.parametrize(
    ("arrays", "method", "claim", "message"),
    [
        ({"extra": LONG}, zipfile.ZIP_DEFLATED, None, None),
        ({"a": LONG}, zipfile.ZIP_DEFLATED, None, "it would unpack to 24,000,128 bytes"),
        ({"a": LONG}, zipfile.ZIP_DEFLATED, 100_128, r"its header says float64 \[1000000, 3\]"),
        ({"a": np.zeros([100, 2])}, zipfile.ZIP_STORED, None, r"`a` is of shape \[100, 2\] and type float64; it"),
    ],
)
def test_a_small_file_is_not_unpacked_to_much(tmp_path, monkeypatch, arrays, method, claim, message):
    monkeypatch.setattr(schemas, "_UNPACKED", 2**20)
    path, good = tmp_path / "x.npz", np.arange(6.0).reshape(2, 3).astype(">f8")
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, array in ({"a": good} | arrays).items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, array)
    if claim:
        # What the directory says of it, which is read first.
        content, size = path.read_bytes(), claim.to_bytes(4, "little")
        place = content.rindex(b"PK\x01\x02") + 24
        path.write_bytes(content[:place] + size + content[place + 4 :])
    tracemalloc.start()
    if message:
        text = refuses(message, read_arrays, path, SCHEMA)
        assert "\n" not in text and len(text) < 200
    else:
        (read,) = read_arrays(path, SCHEMA).values()
        np.testing.assert_array_equal(read, good)
        assert read.dtype.isnative
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_large_arrays_that_are_stored_as_they_are_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(schemas, "_UNPACKED", 1000)
    write_arrays(tmp_path / "x.npz", {"a": np.ones([5000, 3])})
    assert read_arrays(tmp_path / "x.npz", SCHEMA)["a"].sum() == 15_000


GOOD = {"step": 3, "weights_sha256": "ab"}


def error_of(text, schema):
    said = refuses("", parsed, text, schema, "file: ")
    assert said.startswith("file: ") and "\n" not in said and len(said) < 200
    return said


def test_values_of_json_that_can_not_be():
    for text, message in (
        *((json.dumps(GOOD | {"step": step}), "`step`") for step in (True, 1.5, "3", None, -1, 10**30, "x" * 10**6)),
        ('{"step": NaN, "weights_sha256": ""}', "`step` is nan; it must be a whole number"),
        (json.dumps({"step": 1}), "it has step, and no entry `weights_sha256`"),
        ("[[1, 2]]", "must be an object"),
        ("[" * 100_000, "not JSON"),
    ):
        assert message in error_of(text, OWNER)


def test_lists_are_as_arrays():
    assert parsed('{"latent_shapes": [[1, 2, 3]], "x": 1}', LATENT_SHAPES) == {"latent_shapes": [[1, 2, 3]]}


def test_named_sizes_and_objects_in_objects():
    about = dict.fromkeys(("groups", "proposals", "steps", "seed", "images"), 2)
    about |= {"kind": "classifier", "log_normalizers": [], "log_normalizer_errors": [0]}
    about |= {"cross_entropy": [1, 2.5], "effective_proposals": [1, 1]}
    about["bounds"] = {"samples": 1, "images": 2, "model": 1.5, "reweighted": 3}
    assert parsed(json.dumps(about), ABOUT) == about
    message = error_of(json.dumps(about | {"groups": 3}), ABOUT)
    assert "`cross_entropy` is [1, 2.5]; it must be a number of shape [3]" in message
    without = {name: value for name, value in about.items() if name != "cross_entropy"}
    assert "no entry `components`" in error_of(json.dumps(without), ABOUT)
    assert "cross_entropy" not in parsed(json.dumps(without | {"components": 2}), ABOUT)
    del about["bounds"]["model"]
    assert "`bounds`: it has images, reweighted, samples, and no entry `model`" in error_of(json.dumps(about), ABOUT)
