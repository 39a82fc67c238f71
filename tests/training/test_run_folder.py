"""Run folders: what is refused, what is continued, and what loading tells of a folder that is not right."""

import dataclasses
import re

import numpy as np
import pytest

import nvae_tf
from nvae_tf.config import ExperimentConfig, TrainConfig, config_to_json
from nvae_tf.optimization import NVAEAdamax
from nvae_tf.published.names import named_weights, nested
from nvae_tf.training.kept_checkpoints import step_of
from nvae_tf.training.run_folder import CHANGEABLE_SETTINGS, RunFolder, open_for_training
from nvae_tf.training.training_state import TrainingState
from tests.tiny_model import tiny_config

MODEL = tiny_config(num_flows=1)
CONFIG = ExperimentConfig(model=MODEL, train=TrainConfig(seed=3))


def model_of(config=MODEL):
    model = nvae_tf.NVAE(config)
    optimizer = NVAEAdamax()
    optimizer.build(model.trainable_variables)
    model.compile(optimizer=optimizer)
    return model


def with_other_weights(model):
    random = np.random.RandomState(1)
    for variable in [*model.weights, *model.optimizer.variables[1:]]:
        variable.assign(random.uniform(0.1, 1.0, variable.shape))
    return model


def values(variables):
    return [variable.numpy() for variable in variables]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def state_of(folder, model, keep=2):
    return TrainingState(folder.checkpoints, model, model.optimizer, keep)


@pytest.fixture(scope="module")
def saved_model():
    return with_other_weights(model_of())


@pytest.fixture
def folder(tmp_path, saved_model):
    """A run folder with checkpoints of the steps 5 and 10."""
    opened = open_for_training(tmp_path / "runs" / "one", CONFIG)
    state = state_of(opened, saved_model)
    for step in (2, 5, 10):
        state.save(step)
    return opened


def test_loading_gives_the_model_with_its_weights_and_seed(folder, saved_model):
    loaded = nvae_tf.load(folder.path)
    assert loaded.config == MODEL and loaded.seed == 3
    assert_same(values(loaded.weights), values(saved_model.weights))
    assert_same([loaded.generate(3, seed=1)], [saved_model.generate(3, seed=1)])


def test_a_moved_folder_loads(folder, saved_model, tmp_path):
    moved = folder.path.rename(tmp_path / "elsewhere")
    assert_same(values(nvae_tf.load(str(moved)).weights), values(saved_model.weights))


def test_restoring_brings_back_optimizer_step_and_running_means(folder, saved_model):
    saved_model.running.loss.update_state(2.5)
    state_of(folder, saved_model).save(12)
    saved_model.running.loss.reset_state()
    other = model_of()
    assert state_of(folder, other).restore() == 12
    assert_same(values(other.optimizer.variables), values(saved_model.optimizer.variables))
    assert float(other.running.loss.result()) == 2.5


def test_only_the_latest_checkpoints_are_kept(folder, saved_model):
    assert sorted(step_of(file.stem) for file in folder.checkpoints.glob("*.index")) == [5, 10]
    # A later process goes on counting.
    state_of(folder, saved_model, keep=1).save(11)
    assert [step_of(file.stem) for file in folder.checkpoints.glob("*.index")] == [11]


def test_nothing_to_restore_is_step_0(tmp_path, saved_model):
    assert state_of(RunFolder(tmp_path), saved_model).restore() == 0


@pytest.mark.parametrize("change", [{"num_flows": 0}, {"num_groups_per_scale": 2}, {"num_channels_decoder": 4}])
def test_a_checkpoint_of_another_architecture_is_named_and_not_loaded(folder, change):
    other = dataclasses.replace(MODEL, **change)
    folder.config_file.write_text(config_to_json(dataclasses.replace(CONFIG, model=other)))
    with pytest.raises(
        ValueError, match=r"step-10: a checkpoint of another architecture.*top_down/.*in the checkpoint"
    ):
        nvae_tf.load(folder.path)
    model = model_of(other)
    before = values(model.weights)
    with pytest.raises(ValueError, match="another architecture"):
        state_of(folder, model).restore()
    assert_same(values(model.weights), before)


def test_what_is_missing_is_told(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        nvae_tf.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: not a run folder, it has no config.json"):
        nvae_tf.load(tmp_path / "empty")
    new = open_for_training(tmp_path / "new", CONFIG)
    with pytest.raises(FileNotFoundError, match="new: no checkpoint in .*checkpoints"):
        nvae_tf.load(new.path)


DAMAGED = [b'{"model": ', b"\xff\xfe\x80", b'{"architecture": 3}', b"[]", b"null", b"[" * 10**5, b'{"model":' * 10**5]


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: repr(content[:12]))
def test_a_damaged_config_is_told_with_its_place(folder, content):
    folder.config_file.write_bytes(content)
    for use in (nvae_tf.load, lambda path: open_for_training(path, CONFIG)):
        with pytest.raises(ValueError, match="config.json") as error:
            use(folder.path)
        assert "\n" not in str(error.value)


def test_an_impossible_config_is_told(folder):
    impossible = dataclasses.replace(CONFIG, model=dataclasses.replace(MODEL, padded_height=5))
    folder.config_file.write_text(config_to_json(impossible))
    with pytest.raises(ValueError, match="model.padded_height = 5: not divisible by 2"):
        nvae_tf.load(folder.path)


def test_a_foreign_folder_is_refused_and_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="not empty and not a run folder, it holds thesis.txt"):
        open_for_training(tmp_path, CONFIG)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(ValueError, match="thesis.txt: a file"):
        open_for_training(tmp_path / "thesis.txt", CONFIG)


def test_a_run_with_other_settings_is_refused_and_not_touched(folder):
    before = folder.config_file.read_text()
    other = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, seed=64, steps=7))
    with pytest.raises(ValueError, match="train.seed was 3 and is now 64") as error:
        open_for_training(folder.path, other)
    assert "train.steps" not in str(error.value)
    assert folder.config_file.read_text() == before


def test_a_longer_run_with_other_intervals_goes_on_and_is_written_down(folder):
    longer = dataclasses.replace(CONFIG, train=dataclasses.replace(CONFIG.train, steps=7, log_every_steps=1))
    open_for_training(folder.path, longer)
    assert folder.config_file.read_text() == config_to_json(longer)
    assert {"train.steps", "train.log_every_steps"} <= set(CHANGEABLE_SETTINGS)


def with_data(**changes):
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, **changes))


def test_a_run_goes_on_where_its_images_lie_now(folder):
    moved = with_data(path="/elsewhere", cache="/decoded", on_bad_file="skip", max_pixels=10**6)
    open_for_training(folder.path, moved)
    assert folder.config_file.read_text() == config_to_json(moved)


@pytest.mark.parametrize(
    "change", [{"num_bits": 5}, {"source_name": "cifar100"}, {"crop_box": (0, 0, 8, 8)}, {"test_fraction": 0.2}]
)
def test_a_run_does_not_go_on_with_other_images(folder, change):
    ((name, value),) = change.items()
    before = folder.config_file.read_text()
    with pytest.raises(ValueError, match=re.escape(f"data.{name} was {getattr(CONFIG.data, name)!r}")) as error:
        open_for_training(folder.path, with_data(**change))
    assert str(value) in str(error.value) and folder.config_file.read_text() == before


def test_a_box_is_the_same_after_it_was_written_down(tmp_path):
    config = with_data(crop_box=(1, 2, 30, 40))
    open_for_training(tmp_path, config)
    open_for_training(tmp_path, config)


def test_every_weight_has_one_readable_name(saved_model):
    names = named_weights(saved_model)
    assert {id(variable) for variable in names.values()} == {id(variable) for variable in saved_model.weights}
    assert "top_down/scales/0/posteriors/kernel" in names
    assert list(names) == list(named_weights(nvae_tf.NVAE(MODEL)))
    tree = nested({"a/b": 1, "a/c/0": 2, "d": 3})
    assert tree == {"a": {"b": 1, "c": {"0": 2}}, "d": 3}


def test_a_run_is_not_made_shorter_than_it_is(tmp_path):
    config = dataclasses.replace(CONFIG, objective=dataclasses.replace(CONFIG.objective, total_steps=20))
    folder = open_for_training(tmp_path, config)
    folder.checkpoints.mkdir()
    (folder.checkpoints / "step-20.index").touch()
    shorter = dataclasses.replace(config, objective=dataclasses.replace(config.objective, total_steps=10))
    with pytest.raises(ValueError, match="has 20 steps already, more than the 10 asked for"):
        open_for_training(tmp_path, shorter)
    assert folder.config_file.read_text() == config_to_json(config)
