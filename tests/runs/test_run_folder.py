import dataclasses
import errno
import fcntl
import os
import re
import socket
import types

import pytest

import nvae_tf
from nvae_tf.config import DataSpec, ExperimentConfig, TrainConfig, config_to_json
from nvae_tf.optimization import NVAEAdamax
from nvae_tf.runs import loading
from nvae_tf.runs.checkpoints import TrainingState
from nvae_tf.runs.run_folder import (
    ImageCounts,
    RunFolder,
    check_class_names,
    lock_for_training,
    open_for_training,
    read_image_counts,
)
from nvae_tf.training.run import Images, Run, check_images_a_step, note_images
from nvae_tf.training.strategy import Replicas
from tests.tiny_model import assert_same, shaken, tiny_config, tiny_model

MODEL = tiny_config(num_flows=1)
CONFIG = ExperimentConfig(model=MODEL, train=TrainConfig(seed=3))


@pytest.fixture(scope="module")
def saved_model():
    return shaken(tiny_model(NVAEAdamax(), num_flows=1))


@pytest.fixture
def folder(tmp_path, saved_model):
    opened = open_for_training(tmp_path / "runs" / "one", CONFIG)
    TrainingState(opened.checkpoints, saved_model, saved_model.optimizer, 2).save(10)
    return opened


def with_train(**changes):
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **changes))


def with_data(**changes):
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, **changes))


def test_loading_gives_the_model_with_its_weights_and_seed_wherever_the_folder_lies(folder, saved_model, tmp_path):
    loaded = nvae_tf.load(str(folder.path.rename(tmp_path / "elsewhere")))
    assert loaded.config == MODEL and loaded.seed == 3
    assert_same(loaded.get_weights(), saved_model.get_weights())
    assert_same([loaded.generate(3, seed=1)], [saved_model.generate(3, seed=1)])


@pytest.mark.parametrize("change", [{"num_flows": 0}, {"num_groups_per_scale": 2}])
def test_a_checkpoint_of_another_architecture_is_named_and_not_loaded(folder, change):
    other = dataclasses.replace(MODEL, **change)
    folder.config_file.write_text(config_to_json(dataclasses.replace(CONFIG, model=other)))
    folder.recorded_config_file.unlink()
    message = r"step-10: a checkpoint of another architecture.*top_down/.*in the checkpoint"
    model = tiny_model(NVAEAdamax(), **{"num_flows": 1} | change)
    before = model.get_weights()
    state = TrainingState(folder.checkpoints, model, model.optimizer, 2)
    for use in (lambda: nvae_tf.load(folder.path), state.restore):
        with pytest.raises(ValueError, match=message):
            use()
    assert_same(model.get_weights(), before)


def test_settings_of_a_far_larger_model_are_refused_before_it_is_made(folder, monkeypatch):
    monkeypatch.setattr(loading, "NVAE", lambda *_, **__: pytest.fail("the model is made"))
    folder.recorded_config_file.unlink()
    other = dataclasses.replace(MODEL, num_channels_encoder=4096)
    folder.config_file.write_text(config_to_json(dataclasses.replace(CONFIG, model=other)))
    with pytest.raises(ValueError, match=r"step-10: a checkpoint of another arch.* at least [0-9,]{5,}$"):
        nvae_tf.load(folder.path)


def test_settings_that_do_not_fit_the_weights_are_named_and_may_be_meant(folder):
    model, copy = dataclasses.replace(MODEL, exact_edges=True), folder.recorded_config_file
    moved = dataclasses.replace(with_data(path="/elsewhere"), model=model)
    folder.config_file.write_text(config_to_json(moved))
    fault = f"config.json: not the settings .* model.exact_edges was False and is now True.* delete {copy}$"
    for use in (nvae_tf.load, lambda path: open_for_training(path, CONFIG)):
        with pytest.raises(ValueError, match=fault):
            use(folder.path)
    copy.unlink()
    assert nvae_tf.load(folder.path).config == model
    # A run of before gets the copy when it is continued.
    open_for_training(folder.path, moved)
    assert copy.read_bytes() == folder.config_file.read_bytes()


def test_a_foreign_folder_is_refused_and_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for place, message in (("nowhere", "no such folder"), ("", "not a run folder, it has no config.json")):
        with pytest.raises(FileNotFoundError, match=message):
            nvae_tf.load(tmp_path / place)
    for use in (lambda path: open_for_training(path, CONFIG), lambda path: locked(RunFolder(path)).__enter__()):
        with pytest.raises(ValueError, match="not empty and not a run folder, it holds thesis.txt"):
            use(tmp_path)
        with pytest.raises(ValueError, match="thesis.txt: a file"):
            use(tmp_path / "thesis.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_name_that_tensorflow_takes_for_a_pattern_is_refused(tmp_path):
    """In `run[12]` it would delete the checkpoints of `run1`."""
    with pytest.raises(ValueError, match=r"takes \? \[ for a pattern; give"):
        open_for_training(tmp_path / "run[12]?", CONFIG)
    assert not list(tmp_path.iterdir())
    # Nor does TensorFlow find what is there.
    open_for_training(tmp_path / "run", CONFIG)
    with pytest.raises(ValueError, match="for a pattern"):
        nvae_tf.load((tmp_path / "run").rename(tmp_path / "run[1]"))


def test_a_run_with_other_settings_or_fewer_steps_is_refused_and_not_touched(folder):
    shorter = dataclasses.replace(CONFIG, objective=dataclasses.replace(CONFIG.objective, total_steps=9))
    for other, message in (
        (shorter, "has 10 steps already, more than the 9 asked for"),
        (with_train(seed=64, steps=7), "train.seed was 3 and is now 64. Give"),
        (with_data(num_bits=5), f"data.num_bits was {CONFIG.data.num_bits!r} and is now 5"),
    ):
        before = folder.config_file.read_text()
        with pytest.raises(ValueError, match=re.escape(message)):
            open_for_training(folder.path, other)
        assert folder.config_file.read_text() == before


@pytest.mark.parametrize(
    "other", [with_train(steps=7, logger="wandb", keep_checkpoint_every_hours=2.0), with_data(path="/elsewhere")]
)
def test_a_longer_run_with_other_intervals_or_moved_images_is_continued_and_written_down(folder, other):
    # Twice: settings are the same after they were written down.
    for _ in range(2):
        open_for_training(folder.path, other)
        assert folder.config_file.read_text() == config_to_json(other)


def run_with(train, test, batch_size=10, held_out=None, class_names=()):
    parts = [types.SimpleNamespace(count=count, class_names=class_names) for count in (train, test)]
    config = ExperimentConfig(data=DataSpec(labels=bool(class_names)), train=TrainConfig(batch_size=batch_size))
    return Run(config, None, Images(None, *parts, held_out), None, None, Replicas())


def test_another_number_of_images_a_step_is_refused_and_in_all_is_reported_once(tmp_path):
    file, reported = tmp_path / "images.json", []
    check_images_a_step(file, run_with(54, 6))
    note_images(file, run_with(54, 6), pytest.fail)
    with pytest.raises(ValueError, match="makes 20 images a step; this run was begun with 10: set train.batch_size=10"):
        check_images_a_step(file, run_with(54, 6, batch_size=20))
    for counts in ((54, 6), (54, 6), (49, 5), (49, 5)):
        note_images(file, run_with(*counts), reported.append)
    (line,) = reported
    assert "began with 54 training and 6 test images, and there are 49 and 5 now" in line


def test_other_names_of_classes_are_refused_and_what_an_older_version_did_not_note_is_added(tmp_path):
    file, names = tmp_path / "images.json", ("cats", "dogs", "mice", "owls", "rats")
    check_class_names(file, names, "here")
    file.write_text('{"train": 54, "test": 6}')
    check_class_names(file, names, "here")
    check_images_a_step(file, run_with(54, 6, batch_size=20))
    note_images(file, run_with(54, 6, held_out=True, class_names=names), pytest.fail)
    assert read_image_counts(file) == ImageCounts(54, 6, 10, True, names)
    check_class_names(file, names, "here")
    was = "here: not the classes that the run was begun with: class 1 was 'dogs' and is now 'foxes'. Give the run"
    with pytest.raises(ValueError, match=was):
        check_class_names(file, ("cats", "foxes", *names[2:]), "here")


@pytest.fixture
def to_lock(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    return RunFolder(tmp_path / "run")


def locked(folder):
    return lock_for_training(folder, pytest.fail)


def test_a_second_training_is_refused_until_the_first_ends(to_lock):
    # What another has left there is longer than what is written now.
    to_lock.lock_file.write_text(300 * "x")
    holder = rf"process {os.getpid()} on {socket.gethostname()}, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC"
    for _ in range(2):
        with locked(to_lock):
            before = {entry: entry.read_bytes() for entry in to_lock.path.iterdir()}
            with pytest.raises(
                ValueError, match=f"run: another training writes into this folder: {holder}. Wait"
            ) as error:
                locked(to_lock).__enter__()
            assert "\n" not in str(error.value)
            assert {entry: entry.read_bytes() for entry in to_lock.path.iterdir()} == before


def test_without_locks_it_is_said_once_and_the_block_runs(to_lock, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    reported = []
    with lock_for_training(to_lock, reported.append):
        pass
    (line,) = reported
    assert "run: this file system has no locks (No locks available); make sure that no other" in line


def test_a_new_folder_that_stays_empty_is_removed(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "new")
    with pytest.raises(ValueError, match="impossible settings"), locked(folder):
        raise ValueError("impossible settings")
    assert not list(tmp_path.iterdir())
    with locked(folder):
        folder.config_file.touch()
    assert {file.name for file in folder.path.iterdir()} == {".lock", "config.json"}


def test_scores_are_taken_if_they_are_of_this_checkpoint(tmp_path):
    file, folder = tmp_path / "evaluation.json", RunFolder(tmp_path)
    for text in (None, '{"checkpoint_sha256": "cd", "nelbo_nats": 1.0}', "{", "[]"):
        if text:
            file.write_text(text)
        assert folder.scores("ab") is None
    # Where the data lay is a folder of the machine that has evaluated.
    file.write_text('{"checkpoint_sha256": "ab", "nelbo_nats": 1.0, "data": "/home/someone/data"}')
    assert folder.scores("ab") == {"checkpoint_sha256": "ab", "nelbo_nats": 1.0}
    assert folder.scores("ab", "train") is None
