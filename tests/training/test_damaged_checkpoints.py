"""Checkpoints that are damaged, half-written or deleted: the newest whole one is used, and told."""

import re
import resource
import shutil
import warnings

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.config import ExperimentConfig, TrainConfig
from nvae_tf.optimization import NVAEAdamax
from nvae_tf.training.checkpoints import CheckpointNotWritten, TrainingState, read_list
from nvae_tf.training.run_folder import CHANGEABLE_SETTINGS, open_for_training
from tests.tiny_model import tiny_config

CONFIG = ExperimentConfig(model=tiny_config(), train=TrainConfig(seed=3))


@pytest.fixture(scope="module")
def model():
    made = nvae_tf.NVAE(CONFIG.model)
    optimizer = NVAEAdamax()
    optimizer.build(made.trainable_variables)
    made.compile(optimizer=optimizer)
    return made


def state_of(folder, model, keep=2):
    return TrainingState(folder.checkpoints, model, model.optimizer, keep)


def mark(model, step):
    """Gives the model and its optimizer weights that tell the step."""
    for variable in [*model.weights, *model.optimizer.variables[1:]]:
        variable.assign(tf.fill(variable.shape, float(step)))


def save(state, model, *steps):
    for step in steps:
        mark(model, step)
        state.save(step)


def steps_of(model):
    """The steps that the weights tell."""
    variables = [*model.weights, *model.optimizer.variables[1:]]
    return set(np.concatenate([np.ravel(variable.numpy()) for variable in variables]))


def files_of(folder, step):
    return sorted(folder.checkpoints.glob(f"step-{step}.*"))


def saved_steps(folder):
    return sorted(int(file.stem.removeprefix("step-")) for file in folder.checkpoints.glob("step-*.index"))


@pytest.fixture
def folder(tmp_path, model):
    """A run folder with checkpoints of the steps 5 and 10."""
    opened = open_for_training(tmp_path / "run", CONFIG)
    save(state_of(opened, model), model, 5, 10)
    return opened


def flip_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


CHANGES = {
    "half": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content[:-1],
    "a bit flipped": flip_bit,
    "empty": lambda content: b"",
    "gone": None,
}
DAMAGES = [*((change, (kind,)) for change in CHANGES for kind in ("data", "index")), ("gone", ("data", "index"))]


def damage(folder, step, change, kinds):
    for kind in kinds:
        (file,) = folder.checkpoints.glob(f"step-{step}.{kind}*")
        if CHANGES[change] is None:
            file.unlink()
        else:
            file.write_bytes(CHANGES[change](file.read_bytes()))


def remove(folder, step):
    damage(folder, step, "gone", ("data", "index"))


@pytest.mark.parametrize(("change", "kinds"), DAMAGES)
def test_training_goes_on_from_the_one_before(folder, model, change, kinds):
    damage(folder, 10, change, kinds)
    left = {file: file.read_bytes() for file in files_of(folder, 10)}
    mark(model, 99)
    told = []
    state = state_of(folder, model)
    assert state.restore(told.append) == 5 and steps_of(model) == {5.0}
    assert len(told) == 1
    assert re.fullmatch(r".*checkpoints: passed over step-10 \(.+\); step-5 is used\.", told[0])
    assert {file: file.read_bytes() for file in files_of(folder, 10)} == left
    # The damaged one does not count as one of the two, and is replaced when its step comes.
    save(state, model, 7)
    assert list(read_list(folder.checkpoints).written) == [5, 7]
    save(state, model, 10)
    assert saved_steps(folder) == [7, 10] and len(files_of(folder, 10)) == 2
    mark(model, 99)
    assert state_of(folder, model).restore(told.append) == 10 and steps_of(model) == {10.0}
    assert len(told) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("change", "kinds"), DAMAGES)
def test_loading_takes_the_one_before_and_warns(folder, change, kinds):
    damage(folder, 10, change, kinds)
    with pytest.warns(UserWarning, match=r"passed over step-10 \(.+\); step-5 is used") as warned:
        loaded = nvae_tf.load(folder.path)
    assert {float(weight.numpy().max()) for weight in loaded.weights} == {5.0}
    first = warned[0]
    assert "\n" not in warnings.formatwarning(first.message, first.category, first.filename, first.lineno).strip()


def test_one_that_was_copied_to_another_step_is_passed_over(folder, model):
    for file in files_of(folder, 5):
        shutil.copy(file, file.with_name(file.name.replace("step-5", "step-20")))
    told = []
    state = state_of(folder, model)
    assert state.restore(told.append) == 10 and steps_of(model) == {10.0}
    assert told == [
        f"{folder.checkpoints}: passed over step-20 (its files hold the checkpoint of step 5); step-10 is used."
    ]


def test_weights_that_no_step_has_trained_are_loaded_with_a_warning(tmp_path, model):
    opened = open_for_training(tmp_path / "run", CONFIG)
    save(state_of(opened, model), model, 0)
    with pytest.warns(UserWarning, match="step-0 is used, the weights before the first training step"):
        nvae_tf.load(opened.path)
    # Those of an imported file whose step is not known are trained.
    opened.origin_file.write_text('{"source_file": "x.pt", "step": 0}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nvae_tf.load(opened.path)


def test_nothing_is_told_of_a_folder_that_is_right(folder, model):
    told = []
    assert state_of(folder, model).restore(told.append) == 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nvae_tf.load(folder.path)
    assert not told


def test_without_a_whole_one_it_is_an_error_and_nothing_is_touched(folder, model):
    damage(folder, 10, "half", ["data"])
    damage(folder, 5, "half", ["index"])
    before = {file: file.read_bytes() for file in folder.checkpoints.iterdir()}
    message = r"step-10: the checkpoint is damaged \(.*no other that is whole.*Restore its files.* or delete "
    with pytest.raises(ValueError, match=message):
        nvae_tf.load(folder.path)
    mark(model, 99)
    with pytest.raises(ValueError, match=message):
        state_of(folder, model).restore()
    assert steps_of(model) == {99.0}
    assert {file: file.read_bytes() for file in folder.checkpoints.iterdir()} == before


def test_after_all_were_deleted_a_run_starts_anew_and_tells(folder, model):
    remove(folder, 5)
    remove(folder, 10)
    told = []
    state = state_of(folder, model)
    assert state.restore(told.append) == 0
    assert "step-10 (its files are gone); step-5 (its files are gone); there is none before" in told[0]
    save(state, model, 3)
    assert list(read_list(folder.checkpoints).written) == [3]
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        remove(folder, 3)
        nvae_tf.load(folder.path)


def unlink(file):
    file.unlink()


def empty(file):
    file.write_bytes(b"")


def garble(file):
    file.write_bytes(b"{ not a list \xff")


@pytest.mark.parametrize("spoil", [unlink, empty, garble])
def test_without_the_list_nothing_is_lost_and_old_ones_are_still_deleted(folder, model, spoil):
    spoil(folder.checkpoints / "checkpoint")
    told = []
    state = state_of(folder, model)
    assert state.restore(told.append) == 10 and not told
    save(state, model, 15)
    assert saved_steps(folder) == [10, 15]
    assert tf.train.latest_checkpoint(str(folder.checkpoints)).endswith("step-15")


def test_a_save_that_a_killed_process_left_half_written_is_told_and_cleared(folder, model):
    partial = folder.checkpoints / ".step-12.partial"
    (partial / "step-12_temp").mkdir(parents=True)
    (partial / "step-12_temp" / "part-00000-of-00001.data-00000-of-00001").write_bytes(b"half")
    (folder.checkpoints / ".checkpoint.123.partial").write_text("model_checkpoint_path")
    # A reader beside a training sees such a folder whenever the training saves.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nvae_tf.load(folder.path)
    told = []
    assert state_of(folder, model).restore(told.append) == 10
    assert "passed over step-12 (half-written); step-10 is used" in told[0]
    assert not list(folder.checkpoints.glob(".*"))


def sizes_limited_to(size):
    """No file of this process may grow beyond a size, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    return limits


@pytest.mark.parametrize("size", [0, 3000])
def test_what_can_not_be_written_leaves_nothing_behind(folder, model, size):
    state = state_of(folder, model)
    state.restore()
    before = {file: file.read_bytes() for file in folder.checkpoints.iterdir()}
    limits = sizes_limited_to(size)
    try:
        with pytest.raises(CheckpointNotWritten, match="checkpoint of step 12 .*File too large.* step 10 is whole"):
            state.save(12)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {file: file.read_bytes() for file in folder.checkpoints.iterdir()} == before
    state.save(12)
    assert saved_steps(folder) == [10, 12]


def test_a_folder_that_can_not_be_made_is_told_with_its_place(tmp_path, model):
    (tmp_path / "checkpoints").write_text("a file")
    state = TrainingState(tmp_path / "checkpoints", model, model.optimizer, keep=2)
    with pytest.raises(CheckpointNotWritten, match=r"checkpoints: .* of step 1 .*starts anew") as error:
        state.save(1)
    assert "\n" not in str(error.value)


def test_when_and_how_many_checkpoints_are_kept_may_change():
    assert {"train.checkpoint_every_minutes", "train.keep_checkpoint_every_hours"} <= set(CHANGEABLE_SETTINGS)
    TrainConfig(checkpoint_every_minutes=0.0, keep_checkpoint_every_hours=0.0)
    with pytest.raises(ValueError, match="train.checkpoint_every_minutes = -0.5: must be at least 0"):
        TrainConfig(checkpoint_every_minutes=-0.5)


def test_a_checkpoint_with_nan_in_it_is_passed_over(folder, model):
    state = state_of(folder, model)
    save(state, model, 1, 2)
    model.trainable_weights[3].assign(tf.fill(model.trainable_weights[3].shape, float("nan")))
    state.save(3)
    told = []
    assert state_of(folder, model).restore(told.append) == 2
    assert len(told) == 1 and "step-3" in told[0] and "is not finite" in told[0] and "step-2 is used" in told[0]
    assert steps_of(model) == {2.0}


def test_a_run_goes_on_in_another_precision(tmp_path):
    """The scale of the loss is the only thing that a checkpoint of `mixed_float16` has besides."""
    models = {}
    for precision in ("float32", "mixed_float16"):
        made = nvae_tf.NVAE(CONFIG.model, dtype=precision)
        made.compile(optimizer=NVAEAdamax(), jit_compile=False)
        made.optimizer.build(made.trainable_variables)
        models[precision] = made
    half, full = models["mixed_float16"], models["float32"]
    half.optimizer.dynamic_scale.assign(64.0)
    for step, (writer, reader) in enumerate([(full, half), (half, full), (half, half)], start=1):
        for variable in [*writer.weights, *writer.optimizer.variables]:
            if variable.path != half.optimizer.dynamic_scale.path and variable.dtype == "float32":
                variable.assign(tf.fill(variable.shape, float(step)))
        place = tmp_path / str(step)
        TrainingState(place, writer, writer.optimizer, keep=1).save(step)
        half.optimizer.dynamic_scale.assign(64.0 if step < 3 else 32.0)
        assert TrainingState(place, reader, reader.optimizer, keep=1).restore() == step
        assert all(np.all(weight.numpy() == step) for weight in reader.weights)
    assert float(half.optimizer.dynamic_scale) == 64.0
