"""Versions appear whole or not at all, and nothing that exists is touched."""

import pytest

from nvae_tf.serving.outputs import check_version_is_free, new_version


def write_version(output, version, text="new"):
    with new_version(output, version) as folder:
        folder.mkdir()
        (folder / "file").write_text(text)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_versions_come_one_beside_the_other(tmp_path):
    output = tmp_path / "models" / "digits"
    write_version(output, 1, "first")
    write_version(output, 12)
    assert names(output) == ["1", "12"] and (output / "1" / "file").read_text() == "first"


def test_nothing_is_seen_before_the_end(tmp_path):
    with new_version(tmp_path / "models", 1) as folder:
        folder.mkdir()
        assert not [name for name in names(tmp_path / "models") if not name.startswith(".")]
    assert names(tmp_path / "models") == ["1"]


@pytest.mark.parametrize("existing", ["2", "02"])
def test_an_existing_version_is_refused_and_kept(tmp_path, existing):
    (tmp_path / existing).mkdir()
    (tmp_path / "7").mkdir()
    (tmp_path / existing / "file").write_text("old")
    with pytest.raises(ValueError, match="has a version 2 already.*next free one is 8"):
        write_version(tmp_path, 2)
    assert names(tmp_path) == sorted([existing, "7"]) and (tmp_path / existing / "file").read_text() == "old"


def test_a_version_that_appears_meanwhile_is_kept(tmp_path):
    with pytest.raises(ValueError, match="has a version 1 already"), new_version(tmp_path, 1) as folder:
        folder.mkdir()
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "file").write_text("theirs")
    assert names(tmp_path) == ["1"] and (tmp_path / "1" / "file").read_text() == "theirs"


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="holds 'notes.txt', so it is no folder of numbered versions"):
        write_version(tmp_path, 1)
    assert names(tmp_path) == ["notes.txt"]


def test_a_file_in_its_place_is_refused(tmp_path):
    (tmp_path / "models").write_text("")
    with pytest.raises(ValueError, match="models: a file"):
        check_version_is_free(tmp_path / "models", 1)


def test_versions_start_at_one(tmp_path):
    with pytest.raises(ValueError, match="whole numbers from 1"):
        check_version_is_free(tmp_path, 0)


def test_leftovers_of_a_killed_export_do_not_matter(tmp_path):
    (tmp_path / ".1.partial-abc").mkdir()
    write_version(tmp_path, 1)
    assert "1" in names(tmp_path)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path, error):
    with pytest.raises(error), new_version(tmp_path / "a" / "b", 1) as folder:
        folder.mkdir()
        (folder / "file").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_places_and_numbers_that_cannot_be_are_told_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file; name another folder"):
        check_version_is_free(tmp_path / "file" / "models", 1)
    with pytest.raises(ValueError, match="whole numbers from 1 to 9223372036854775807"):
        check_version_is_free(tmp_path / "models", 2**63)
