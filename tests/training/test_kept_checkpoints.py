"""Which checkpoints are kept, over restarts and where processes were killed between two files."""

import os
import time

import pytest
import tensorflow as tf

from nvae_tf.training.checkpoints import (
    CheckpointList,
    KeptCheckpoints,
    checkpoint_sha256,
    read_list,
    steps_of_files,
    write_checkpoint,
)

HOUR = 3600.0


def write(folder, *steps):
    def empty(prefix):
        for end in (".index", ".data-00000-of-00001"):
            with open(prefix + end, "w"):
                pass

    for step in steps:
        write_checkpoint(folder, step, empty)


def saved_steps(folder):
    assert steps_of_files(folder, "index") == steps_of_files(folder, "data")
    return steps_of_files(folder, "index")


def add(folder, kept, *steps):
    for step in steps:
        write(folder, step)
        kept.add(step)


def made_older(folder, hours):
    """Rewrites the list as if all had happened some hours earlier."""
    path = folder / "checkpoint"
    listed = read_list(folder)
    lines = [line for line in path.read_text().splitlines() if "timestamp" not in line]
    lines += [f"all_model_checkpoint_timestamps: {written - hours * HOUR}" for written in listed.written.values()]
    lines.append(f"last_preserved_timestamp: {listed.kept_at - hours * HOUR}")
    path.write_text("\n".join(lines))


def after_a_restart(folder, newest, keep=2, hours=0.0):
    kept = KeptCheckpoints(folder, keep, hours)
    kept.take_over(newest, ())
    return kept


def test_now_and_then_one_is_kept_for_good(tmp_path):
    add(tmp_path, after_a_restart(tmp_path, 0, hours=1.0), 1, 2)
    for step in range(3, 9):
        # Each process makes a checkpoint, and half an hour passes.
        made_older(tmp_path, 0.5)
        add(tmp_path, after_a_restart(tmp_path, step - 1, hours=1.0), step)
    # 4 was written an hour after the beginning, 6 an hour after 4; 7 and 8 are the last two.
    assert saved_steps(tmp_path) == [4, 6, 7, 8]
    # Those are never deleted again, whatever the settings.
    add(tmp_path, after_a_restart(tmp_path, 8, keep=1), 9)
    assert saved_steps(tmp_path) == [4, 6, 9]


def test_a_clock_that_was_ahead_for_a_while_does_not_end_the_keeping(tmp_path, monkeypatch):
    begin = time.time()
    for step in range(13):
        hours = step / 2 + (1000.0 if step == 3 else 0.0)
        monkeypatch.setattr(time, "time", lambda hours=hours: begin + hours * HOUR)
        add(tmp_path, after_a_restart(tmp_path, max(step - 1, 0), keep=1, hours=1.0), step + 1)
    # 3 was written after an hour, 4 with the clock ahead; from 5 on every hour again.
    assert saved_steps(tmp_path) == [3, 4, 7, 9, 11, 13]


def test_a_list_with_a_time_missing_is_used_with_the_times_of_the_files(tmp_path):
    add(tmp_path, after_a_restart(tmp_path, 0, keep=3), 1, 2, 3)
    path = tmp_path / "checkpoint"
    lines = path.read_text().splitlines()
    del lines[next(index for index, line in enumerate(lines) if "timestamp" in line)]
    path.write_text("\n".join(lines))
    kept = after_a_restart(tmp_path, 3, keep=3)
    ages = {step: (tmp_path / f"step-{step}.index").stat().st_mtime for step in (1, 2, 3)}
    assert read_list(tmp_path).written == pytest.approx(ages)
    add(tmp_path, kept, 4)
    assert saved_steps(tmp_path) == [2, 3, 4]


def test_step_0_is_kept_until_there_is_another(tmp_path):
    add(tmp_path, after_a_restart(tmp_path, 0, keep=3, hours=0.5), 0)
    assert saved_steps(tmp_path) == [0]
    made_older(tmp_path, -1.0)
    add(tmp_path, after_a_restart(tmp_path, 0, keep=3, hours=0.5), 5)
    assert saved_steps(tmp_path) == [5] and list(read_list(tmp_path).written) == [5]


def test_without_hours_none_is_kept_for_good(tmp_path):
    add(tmp_path, after_a_restart(tmp_path, 0), 1, 2)
    made_older(tmp_path, 1000.0)
    add(tmp_path, after_a_restart(tmp_path, 2), 3, 4)
    assert saved_steps(tmp_path) == [3, 4]


def test_one_that_was_whole_but_not_yet_listed_is_kept_and_deleted_in_its_turn(tmp_path):
    add(tmp_path, after_a_restart(tmp_path, 0), 1, 2)
    write(tmp_path, 3)
    kept = after_a_restart(tmp_path, 3)
    assert list(read_list(tmp_path).written) == [1, 2, 3]
    add(tmp_path, kept, 4)
    assert saved_steps(tmp_path) == [3, 4]


def test_a_deletion_that_was_cut_short_is_finished(tmp_path):
    add(tmp_path, after_a_restart(tmp_path, 0), 1, 2)
    (tmp_path / "step-1.index").unlink()
    after_a_restart(tmp_path, 2)
    assert saved_steps(tmp_path) == [2] and list(read_list(tmp_path).written) == [2]


def test_looking_at_a_folder_that_is_right_changes_no_file(tmp_path):
    add(tmp_path, after_a_restart(tmp_path, 0), 1, 2)
    before = os.stat(tmp_path / "checkpoint")
    after_a_restart(tmp_path, 2)
    assert os.stat(tmp_path / "checkpoint") == before


def test_the_list_of_tensorflow_s_own_manager_is_taken_over(tmp_path):
    checkpoint = tf.train.Checkpoint(step=tf.Variable(0))
    manager = tf.train.CheckpointManager(checkpoint, str(tmp_path), max_to_keep=2, checkpoint_name="step")
    for step in (1, 2, 3):
        manager.save(checkpoint_number=step)
    listed = read_list(tmp_path)
    assert list(listed.written) == [2, 3] and all(abs(time.time() - at) < HOUR for at in listed.written.values())
    add(tmp_path, after_a_restart(tmp_path, 3), 4)
    assert saved_steps(tmp_path) == [3, 4]


def test_the_list_holds_for_a_moved_folder(tmp_path):
    add(tmp_path / "one", KeptCheckpoints(tmp_path / "one", 2, 0.0), 1, 2)
    before = read_list(tmp_path / "one")
    moved = (tmp_path / "one").rename(tmp_path / "other")
    assert read_list(moved) == before and isinstance(before, CheckpointList)
    assert tf.train.latest_checkpoint(str(moved)) == str(moved / "step-2")


def test_the_hash_of_a_checkpoint_is_of_its_files_and_a_lost_one_has_none(tmp_path):
    for step, content in ((1, b"one"), (10, b"ten"), (11, b"one")):
        for ending in ("index", "data-00000-of-00001"):
            (tmp_path / f"step-{step}.{ending}").write_bytes(content)
    sums = [checkpoint_sha256(str(tmp_path / f"step-{step}")) for step in (1, 10, 11)]
    assert sums[0] == sums[2] != sums[1]
    (tmp_path / "step-1.data-00000-of-00001").write_bytes(b"onf")
    assert checkpoint_sha256(str(tmp_path / "step-1")) != sums[0]
    with pytest.raises(FileNotFoundError, match="the checkpoint is gone"):
        checkpoint_sha256(str(tmp_path / "step-2"))
