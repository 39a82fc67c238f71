import pytest

from nvae_tf.files import atomic_file, atomic_folder, atomic_write, file_sha256


def test_a_full_disk_is_reported_with_the_name_of_the_file_itself(small_files, tmp_path):
    file = tmp_path / "scores.txt"
    atomic_write(file, "old")
    small_files(10)
    with pytest.raises(OSError, match=r"scores\.txt: can't be written \(File too large\)$") as error:
        atomic_write(file, 100 * "new")
    small_files(None)
    assert "partial" not in str(error.value) and error.value.strerror == "File too large"
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.txt"] and file.read_text() == "old"


def test_a_missing_folder_and_a_file_in_its_place_keep_their_kinds_of_error(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for place, kind, reason in (
        ("gone/a.txt", FileNotFoundError, "No such file or directory"),
        ("file/a.txt", NotADirectoryError, "Not a directory"),
        ("folder", IsADirectoryError, "Is a directory"),
    ):
        with pytest.raises(kind) as error:
            atomic_write(tmp_path / place, "text")
        assert str(error.value) == f"{tmp_path / place}: can't be written ({reason})"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_other_errors_of_the_block_stay_as_they_are(tmp_path):
    for error in (
        FileNotFoundError(2, "No such file", "elsewhere"),
        ConnectionError("no network"),
        ValueError("wrong"),
    ):
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
