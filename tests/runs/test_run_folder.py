import dataclasses
import errno
import fcntl
import os
import re
import socket
import sys
import types

import numpy as np
import pytest

import nvae_tf
from nvae_tf.config import DataSpec, ExperimentConfig, ObjectiveConfig, TrainConfig, config_to_json
from nvae_tf.optimization import NVAEAdamax
from nvae_tf.runs import loading
from nvae_tf.runs.checkpoints import TrainingState, named_weights
from nvae_tf.runs.run_folder import ImageCounts, RunFolder, check_class_names, lock_for_training, open_for_training
from nvae_tf.training.run import Run, check_images_a_step, initialize, run_of_folder, write_images
from nvae_tf.training.strategy import Replicas
from tests import refuses
from tests.tiny_model import assert_same, shaken, tiny_config, tiny_model

MODEL = tiny_config(num_flows=1)
CONFIG = ExperimentConfig(model=MODEL, train=TrainConfig(seed=3))


@pytest.fixture(scope="module")
def saved_model():
    return shaken(tiny_model(NVAEAdamax(), num_flows=1))


@pytest.fixture
def folder(tmp_path, saved_model):
    opened = open_for_training(tmp_path / "runs" / "one", CONFIG)
    TrainingState(opened.checkpoints, saved_model, 2).save(10)
    return opened


def with_train(**changes):
    return dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, **changes))


def with_data(**changes):
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, **changes))


@pytest.mark.parametrize("change", [{"num_flows": 0}, {"num_groups_per_scale": 2}])
def test_a_checkpoint_of_another_architecture_is_named_and_not_loaded(folder, change):
    other = dataclasses.replace(MODEL, **change)
    folder.config_file.write_text(config_to_json(dataclasses.replace(CONFIG, model=other)))
    folder.recorded_config_file.unlink()
    message = r"step-10: a checkpoint of another architecture.*top_down/.*in the checkpoint"
    model = tiny_model(NVAEAdamax(), **{"num_flows": 1} | change)
    before = model.get_weights()
    state = TrainingState(folder.checkpoints, model, 2)
    for use in (lambda: nvae_tf.load(folder.path), state.restore):
        refuses(message, use)
    assert_same(model.get_weights(), before)


def test_settings_of_a_far_larger_model_are_refused_before_it_is_made(folder, monkeypatch):
    monkeypatch.setattr(loading, "NVAE", lambda *_, **__: pytest.fail("the model is made"))
    folder.recorded_config_file.unlink()
    other = dataclasses.replace(MODEL, num_channels_encoder=4096)
    folder.config_file.write_text(config_to_json(dataclasses.replace(CONFIG, model=other)))
    refuses(r"step-10: a checkpoint of another arch.* at least [0-9,]{5,}$", nvae_tf.load, folder.path)


def test_settings_that_do_not_fit_the_weights_are_named_and_may_be_meant(folder):
    model, copy = dataclasses.replace(MODEL, exact_edges=True), folder.recorded_config_file
    moved = dataclasses.replace(with_data(path="/elsewhere"), model=model)
    folder.config_file.write_text(config_to_json(moved))
    fault = f"config.json: not the settings .* model.exact_edges was False and is now True.* delete {copy}$"
    for use in (nvae_tf.load, lambda path: open_for_training(path, CONFIG)):
        refuses(fault, use, folder.path)
    copy.unlink()
    loaded = nvae_tf.load(folder.path)
    assert loaded.config == model and loaded.seed == 3
    # A run of before gets the copy when it is continued.
    open_for_training(folder.path, moved)
    assert copy.read_bytes() == folder.config_file.read_bytes()


def test_a_foreign_folder_is_refused_and_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for place, message in (("nowhere", "no such folder"), ("", "not a run folder, it has no config.json")):
        refuses(message, nvae_tf.load, tmp_path / place, error=FileNotFoundError)
    for use in (lambda path: open_for_training(path, CONFIG), lambda path: locked(RunFolder(path)).__enter__()):
        refuses("not empty and not a run folder, it holds thesis.txt", use, tmp_path)
        refuses("thesis.txt: a file", use, tmp_path / "thesis.txt")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_name_that_tensorflow_takes_for_a_pattern_is_refused(tmp_path):
    """In `run[12]` it would delete the checkpoints of `run1`."""
    refuses(r"takes \? \[ for a pattern; give", open_for_training, tmp_path / "run[12]?", CONFIG)
    assert not list(tmp_path.iterdir())
    # Nor does TensorFlow find what is there.
    open_for_training(tmp_path / "run", CONFIG)
    refuses("for a pattern", nvae_tf.load, (tmp_path / "run").rename(tmp_path / "run[1]"))


def test_a_run_with_other_settings_or_fewer_steps_is_refused_and_not_touched(folder):
    shorter = dataclasses.replace(CONFIG, objective=dataclasses.replace(CONFIG.objective, total_steps=9))
    for other, message in (
        (shorter, "has 10 steps already, more than the 9 asked for"),
        (with_train(seed=64, steps=7), "train.seed was 3 and is now 64. Give"),
        (with_data(num_bits=5), f"data.num_bits was {CONFIG.data.num_bits!r} and is now 5"),
    ):
        before = folder.config_file.read_text()
        refuses(re.escape(message), open_for_training, folder.path, other)
        assert folder.config_file.read_text() == before


def test_a_longer_run_with_other_intervals_or_moved_images_is_continued_and_written_down(folder):
    longer, moved = with_train(steps=7, logger="wandb", keep_checkpoint_every_hours=2.0), with_data(path="/elsewhere")
    # Twice: settings are the same after they were written down.
    for other in (longer, longer, moved, moved):
        open_for_training(folder.path, other)
        assert folder.config_file.read_text() == config_to_json(other)


def run_with(train, test, batch_size=10, held_out=False, class_names=()):
    parts = [types.SimpleNamespace(count=count, class_names=class_names) for count in (train, test)]
    config = ExperimentConfig(data=DataSpec(labels=bool(class_names)), train=TrainConfig(batch_size=batch_size))
    return Run(config, None, *parts, held_out, None, None, Replicas())


def test_another_number_of_images_a_step_is_refused_and_in_all_is_reported_once(tmp_path):
    file, reported = tmp_path / "images.json", []
    check_images_a_step(file, run_with(54, 6))
    write_images(file, run_with(54, 6), pytest.fail)
    with pytest.raises(ValueError, match="makes 20 images a step; this run was begun with 10: set train.batch_size=10"):
        check_images_a_step(file, run_with(54, 6, batch_size=20))
    for counts in ((54, 6), (54, 6), (49, 5), (49, 5)):
        write_images(file, run_with(*counts), reported.append)
    (line,) = reported
    assert "began with 54 training and 6 test images, and there are 49 and 5 now" in line
    file.write_text("[1]")
    refuses(f"{file}: it is .*; it must be an object; fix or delete it$", check_images_a_step, file, run_with(54, 6))


def test_other_names_of_classes_are_refused_and_what_an_older_version_did_not_note_is_added(tmp_path):
    file, names = tmp_path / "images.json", ("cats", "dogs", "mice", "owls", "rats")
    check_class_names(file, names, "here")
    file.write_text('{"train": 54, "test": 6}')
    check_class_names(file, names, "here")
    check_images_a_step(file, run_with(54, 6, batch_size=20))
    write_images(file, run_with(54, 6, held_out=True, class_names=names), pytest.fail)
    assert ImageCounts.read(file) == ImageCounts(54, 6, 10, True, names)
    check_class_names(file, names, "here")
    was = "here: not the classes that the run was begun with: class 1 was 'dogs' and is now 'foxes'. Give the run"
    refuses(was, check_class_names, file, ("cats", "foxes", *names[2:]), "here")
    check_class_names(file, tuple("01234"), "data without names")
    write_images(file, run_with(54, 6, held_out=True, class_names=tuple("01234")), pytest.fail)
    assert ImageCounts.read(file).class_names == names
    refuses("class 0 was 'cats' and is now '0'", check_class_names, file, ("0", *names[1:]), "here")
    refuses("class 0 was 'cats' and is now '0'", check_class_names, file, tuple("012345"), "here")
    refuses("class 0 was 'cats' and is now '0'", check_class_names, file, tuple("0123"), "here")


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
    message = f"run: another training writes into this folder: {holder}. Wait"
    for _ in range(2):
        with locked(to_lock):
            before = {entry: entry.read_bytes() for entry in to_lock.path.iterdir()}
            refuses(message, locked(to_lock).__enter__)
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
    # Without the lock's file, into which another user might not write.
    assert [file.name for file in folder.path.iterdir()] == ["config.json"]


def test_a_lock_whose_file_is_replaced_or_can_not_be_made_is_none(to_lock, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: to_lock.lock_file.unlink())
    refuses("run: another training writes into this folder", locked(to_lock).__enter__)
    to_lock.lock_file.mkdir()
    with pytest.raises(OSError, match=r"run: nothing can be written there \(Is a directory\); give another --workdir$"):
        locked(to_lock).__enter__()


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


def values(model):
    return {name: weight.numpy() for name, weight in named_weights(model).items()}


def compiled(config):
    model = nvae_tf.NVAE(config)
    model.compile(optimizer=NVAEAdamax())
    model.optimizer.build(model.trainable_variables)
    return model


def saved_run(path, config):
    """A run folder of a model whose weights are no new model's, and that model."""
    model = compiled(config)
    random = np.random.RandomState(1)
    for variable in [*model.weights, *model.optimizer.variables[1:]]:
        variable.assign(random.uniform(0.1, 1.0, variable.shape))
    folder = open_for_training(path, ExperimentConfig(model=config))
    TrainingState(folder.checkpoints, model, 1).save(1234)
    return str(folder.path), model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return saved_run(tmp_path_factory.mktemp("runs") / "source", MODEL)


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another_unless_it_is_continued(run, tmp_path, monkeypatch):
    for name in ("check_model_fits", "holds_out"):
        monkeypatch.setattr(f"nvae_tf.training.run.{name}", lambda *_: False)
    monkeypatch.setattr("nvae_tf.training.run.load_split", lambda *_: types.SimpleNamespace(count=320))
    path, source = run
    folder, config, kernel = RunFolder(tmp_path), with_train(initialize_from=path), "bottom_up/stem/kernel"
    begun = run_of_folder(config, folder, Replicas())
    np.testing.assert_array_equal(values(begun.model)[kernel], values(source)[kernel])
    open_for_training(folder.path, begun.config)
    TrainingState(folder.checkpoints, begun.model, 1).save(1)
    continued = run_of_folder(config, folder, Replicas())
    assert np.any(values(continued.model)[kernel] != values(begun.model)[kernel])


@pytest.mark.slow
def test_another_likelihood_changes_the_last_layer_only(run):
    path, source = run
    config = dataclasses.replace(MODEL, num_bits=8, likelihood="logistic_mixture", num_mixtures=3)
    model = compiled(config)
    before = model.top_down.image.kernel.numpy()
    taken, report = initialize(model, path)
    first, heading, *misshapen = report.splitlines()
    assert f": {len(taken)} of {len(taken) + len(misshapen)} weights taken." in first
    assert heading == f"Not taken, because of another shape in the source: {len(misshapen)}"
    assert all(line.startswith("  top_down/image/") for line in misshapen)
    actual, expected = values(model), values(source)
    assert_same({name: actual[name] for name in taken}, {name: expected[name] for name in taken})
    np.testing.assert_array_equal(model.top_down.image.kernel.numpy(), before)
    # New kernels need the long power iteration of a model's first step.
    assert float(model.spectral_regularizer.warmed_up.numpy()) == 0.0
    # Nor are stacks of another count taken in part.
    taken, report = initialize(compiled(dataclasses.replace(MODEL, num_groups_per_scale=2)), path)
    name = "top_down/scales/0/posteriors/kernel"
    assert name not in taken and f"\n  {name}: [1, 3, 3, 4, 4] in the source, [2, 3, 3, 4, 4] here\n" in report


@pytest.mark.slow
def test_power_vectors_go_with_their_kernels(run):
    path, source = run
    # Without flows, all kernels behind them have other numbers.
    model = compiled(dataclasses.replace(MODEL, num_flows=0))
    _, heading, *unused = initialize(model, path)[1].splitlines()
    assert heading == f"Not used of the source, because this model has no such weights: {len(unused)}"
    assert unused and all("/flows/" in name for name in unused)
    pairs = zip(source.convolutions, source.spectral_regularizer.vectors, strict=True)
    kernel_vectors = {id(layer.kernel): vector for layer, vector in pairs}
    shifted = 0
    for index, (layer, vector) in enumerate(zip(model.convolutions, model.spectral_regularizer.vectors, strict=True)):
        name = next(name for name, weight in named_weights(model).items() if weight is layer.kernel)
        expected = kernel_vectors[id(named_weights(source)[name])]
        shifted += expected is not source.spectral_regularizer.vectors[index]
        np.testing.assert_array_equal(vector.numpy(), expected.numpy(), err_msg=name)
    assert shifted
    assert model.spectral_regularizer.warmed_up.numpy() == source.spectral_regularizer.warmed_up.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(("source_cells", "kept"), [("res_elu", True), ("res_bnelu", False)])
def test_the_first_batch_sets_scales_unless_trained_ones_were_taken(tmp_path, source_cells, kept):
    path, source = saved_run(tmp_path / "source", tiny_config(cell_set=source_cells, num_channels_encoder=4))
    assert source.is_data_dependent is kept
    # Other cells have other names or, without batch norm, other channels.
    model = compiled(tiny_config(cell_set="res_elu", num_channels_encoder=4))
    assert model.is_data_dependent
    initialize(model, path)
    assert bool(model.data_initialised.numpy() > 0.0) is kept


@pytest.mark.slow
def test_a_source_of_which_nothing_fits_is_refused_and_nothing_assigned(tmp_path):
    path, _ = saved_run(tmp_path / "small", tiny_config(squeeze_excite=False))
    other = dict(num_latent_per_group=3, num_channels_encoder=20, num_channels_decoder=20, squeeze_excite=False)
    model = compiled(dataclasses.replace(MODEL, num_bits=8, likelihood="normal", num_groups_per_scale=2, **other))
    before = values(model)
    differing = "model.num_groups_per_scale is 1 there and 2 here"
    refuses(rf"{path}.*none of its \d+ weights fits one of the \d+ .* {differing}", initialize, model, path)
    other_scale = compiled(tiny_config(squeeze_excite=False, residual_scale=0.3))
    refuses("weights are for --config.model.residual_scale=0.1, not 0.3", initialize, other_scale, path)
    assert_same(values(model), before)


def test_a_wrong_source_is_named(run, tmp_path):
    wrong = "train.initialize_from, a run folder or a published file"
    for place, message in (
        ("notes.txt", f"{wrong} .*notes.txt: a file, not a run folder .*; give a run folder"),
        ("nowhere", f"{wrong} .*nowhere: no such folder; give a run folder"),
        ("nowhere.pt", f"{wrong} .*nowhere.pt"),
        ("new", f"{wrong} .*new: no checkpoint"),
    ):
        (tmp_path / "notes.txt").write_text("years of work")
        open_for_training(tmp_path / "new", ExperimentConfig(model=MODEL))
        refuses(message, initialize, run[1], str(tmp_path / place))


@pytest.mark.slow
@pytest.mark.torch
def test_a_published_file_is_taken_whole_where_torch_is(published, monkeypatch):
    path = str(published.path("normal_decoder_tiny.pt"))
    source = nvae_tf.from_torch_checkpoint(path)
    model = compiled(source.config)
    taken, report = initialize(model, path)
    assert report == f"Starts from {path}: all {len(taken)} weights taken."
    assert_same(published.state_of(model), published.state_of(source))
    monkeypatch.setitem(sys.modules, "torch", None)
    refuses(r"train\.initialize_from.*torch is not installed: pip install", initialize, model, path)


def test_a_saved_model_is_a_run_folder_that_gives_it_back(tmp_path):
    model = shaken(tiny_model(NVAEAdamax(), num_flows=1, seed=3, objective=ObjectiveConfig(total_steps=40)))
    model.optimizer.iterations.assign(7)
    nvae_tf.save(model, tmp_path / "mine")
    run = loading.load_run(tmp_path / "mine")
    assert_same(run.model.weights, model.weights)
    assert (run.step, run.model.seed, run.model.objective.total_steps) == (7, 3, 40)
    assert run.config.data.source == "auto" and run.config.data.image_shape == (4, 4, 1)
    nvae_tf.save(tiny_model(num_flows=1), tmp_path / "other", CONFIG)
    other = loading.TrainedRun(tmp_path / "other")
    assert other.step == ObjectiveConfig().total_steps and other.config.data == CONFIG.data
    before = sorted(tmp_path.rglob("*"))
    for where, config, message in (
        ("mine", None, "save: .*mine: not an empty folder; name a new or empty one"),
        ("new", ExperimentConfig(), "config.model is not what this model was made with"),
    ):
        refuses(message, nvae_tf.save, model, tmp_path / where, config)
    assert sorted(tmp_path.rglob("*")) == before
