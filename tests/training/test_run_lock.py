"""One training at a time in a run folder: who is refused, and when the lock is free again."""

import contextlib
import errno
import fcntl
import os
import signal
import socket

import pytest

from nvae_tf.training.run_folder import RunFolder, lock_for_training


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    return RunFolder(tmp_path / "run")


def locked(folder):
    return lock_for_training(folder, pytest.fail)


@contextlib.contextmanager
def child_that_trains(folder):
    """The number of a process that holds the lock; it is killed at the end."""
    ready, tells = os.pipe()
    child = os.fork()
    if child == 0:
        with lock_for_training(folder, print):
            os.write(tells, b".")
            signal.pause()
    assert os.read(ready, 1) == b"."
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(tells)


def test_the_second_is_told_who_trains_and_touches_nothing(folder):
    with child_that_trains(folder) as child:
        before = {entry: entry.read_bytes() for entry in folder.path.iterdir()}
        holder = rf"process {child} on {socket.gethostname()}, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC"
        with pytest.raises(ValueError, match=f"run: another training writes into this folder: {holder}") as error:
            locked(folder).__enter__()
        assert "\n" not in str(error.value)
        assert {entry: entry.read_bytes() for entry in folder.path.iterdir()} == before


def test_a_killed_process_holds_nothing(folder):
    with child_that_trains(folder):
        pass
    assert folder.lock_file.exists()
    with locked(folder), pytest.raises(ValueError, match=f"process {os.getpid()} on"):
        # Nor may the same process train twice.
        locked(folder).__enter__()
    with locked(folder):
        pass
    assert not folder.lock_file.exists()


def test_one_that_was_released_while_another_opened_it_is_locked_anew(folder, monkeypatch):
    flock, calls = fcntl.flock, []

    def released_before(descriptor, operation):
        calls.append(descriptor)
        if len(calls) == 1:
            folder.lock_file.unlink()
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", released_before)
    with locked(folder):
        assert len(calls) == 2
        with pytest.raises(ValueError, match="another training"):
            locked(folder).__enter__()


def test_without_locks_it_is_said_once_and_the_block_runs(folder, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    told = []
    with lock_for_training(folder, told.append):
        pass
    (line,) = told
    assert "run: this file system has no locks (No locks available); make sure that no other" in line


def test_a_new_folder_that_stays_empty_is_removed(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "new")
    with pytest.raises(ValueError, match="impossible settings"), locked(folder):
        raise ValueError("impossible settings")
    assert not list(tmp_path.iterdir())
    with locked(folder):
        folder.config_file.touch()
    assert [file.name for file in folder.path.iterdir()] == ["config.json"]


def test_where_nothing_can_be_written_or_something_else_lies_is_one_line(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ValueError, match="not empty and not a run folder"):
        locked(RunFolder(tmp_path)).__enter__()
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(OSError, match=r"thesis.txt/run: nothing can be written there \(Not a directory\)") as error:
        locked(RunFolder(tmp_path / "thesis.txt" / "run")).__enter__()
    assert "\n" not in str(error.value) and "Errno" not in str(error.value)
