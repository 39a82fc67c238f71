import errno
import re
import shutil
import warnings

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.config import ExperimentConfig, TrainConfig
from nvae_tf.optimization import NVAEAdamax
from nvae_tf.runs import checkpoints
from nvae_tf.runs.run_folder import RunFolder, open_for_training
from tests import refuses
from tests.tiny_model import tiny_config, tiny_model

CONFIG = ExperimentConfig(model=tiny_config(num_latent_scales=1), train=TrainConfig(seed=3))


def compiled_model(dtype=None):
    return tiny_model(NVAEAdamax(), dtype=dtype, num_latent_scales=1)


@pytest.fixture(scope="module")
def model():
    return compiled_model()


@pytest.fixture
def empty_run(tmp_path):
    return open_for_training(tmp_path / "run", CONFIG)


@pytest.fixture
def folder(empty_run, model):
    save(state_of(empty_run, model), model, 5, 10)
    return empty_run


def state_of(folder, model, keep=2):
    return checkpoints.TrainingState(folder.checkpoints, model, keep)


def mark(model, number):
    for variable in [*model.weights, *model.optimizer.variables[1:]]:
        variable.assign(tf.fill(variable.shape, float(number)))


def number_of(model):
    (number,) = {float(value) for weight in model.weights for value in np.ravel(weight.numpy())}
    return number


def save(state, model, *steps):
    for step in steps:
        mark(model, step)
        state.save(step)


def save_if_best(state, model, step, score, number=None):
    mark(model, step if number is None else number)
    state.save_if_best(step, score)


def restored(folder, model):
    """The state of a new process, its step, and what it has reported."""
    state, reported = state_of(folder, model), []
    return state, state.restore(reported.append), reported


def saved_steps(place):
    assert checkpoints.steps_of_files(place, "index") == checkpoints.steps_of_files(place, "data")
    return checkpoints.steps_of_files(place, "index")


def contents(*places):
    return {file: file.read_bytes() for place in places for file in place.iterdir() if file.is_file()}


def test_a_run_goes_on_in_another_precision(tmp_path):
    """The scale of the loss is the only thing that a checkpoint of `mixed_float16` has besides."""
    full, half = (compiled_model(dtype=precision) for precision in ("float32", "mixed_float16"))
    half.optimizer.dynamic_scale.assign(64.0)
    for step, (writer, reader) in enumerate([(full, half), (half, full), (half, half)], start=1):
        for variable in [*writer.weights, *writer.optimizer.variables]:
            if variable.path != half.optimizer.dynamic_scale.path and variable.dtype == "float32":
                variable.assign(tf.fill(variable.shape, float(step)))
        place = RunFolder(tmp_path / str(step))
        state_of(place, writer).save(step)
        half.optimizer.dynamic_scale.assign(64.0 if step < 3 else 32.0)
        assert state_of(place, reader).restore() == step
        assert number_of(reader) == step
        inner = getattr(reader.optimizer, "inner_optimizer", reader.optimizer)
        assert {float(value) for slot in inner._momentums for value in np.ravel(slot.numpy())} == {step}
    assert float(half.optimizer.dynamic_scale) == 64.0


def flip_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


CHANGES = {"half": lambda content: content[: len(content) // 2], "a bit flipped": flip_bit, "gone": None}


def damage(place, step, kind="data", change="half"):
    (file,) = place.glob(f"step-{step}.{kind}*")
    content = file.read_bytes()
    file.unlink()
    if CHANGES[change]:
        file.write_bytes(CHANGES[change](content))


@pytest.mark.parametrize(("change", "kind"), [("half", "data"), ("a bit flipped", "data"), ("gone", "index")])
def test_instead_of_a_damaged_one_the_one_before_is_used(folder, model, change, kind):
    damage(folder.checkpoints, 10, kind, change)
    before = contents(folder.checkpoints)
    with pytest.warns(UserWarning, match=r"passed over step-10 \(.+\); step-5 is used") as warned:
        assert number_of(nvae_tf.load(folder.path)) == 5.0
    first = warned[0]
    assert "\n" not in warnings.formatwarning(first.message, first.category, first.filename, first.lineno).strip()
    mark(model, 99)
    state, step, (line,) = restored(folder, model)
    assert step == 5 and number_of(model) == 5.0
    assert re.fullmatch(r".*checkpoints: passed over step-10 \(.+\); step-5 is used\.", line)
    assert contents(folder.checkpoints) == before
    # The damaged one does not count as one of the two, and is replaced when its step comes.
    save(state, model, 7)
    assert checkpoints.listed_steps(folder.checkpoints) == [5, 7]
    save(state, model, 10)
    assert saved_steps(folder.checkpoints) == [7, 10]
    assert restored(folder, model)[1:] == (10, [])
    save(state, model, 12)
    assert saved_steps(folder.checkpoints) == [10, 12]


def test_one_with_nan_is_passed_over(folder, model):
    mark(model, 15)
    model.trainable_weights[3].assign(tf.fill(model.trainable_weights[3].shape, float("nan")))
    state_of(folder, model, keep=3).save(15)
    _, step, (line,) = restored(folder, model)
    assert step == number_of(model) == 10.0
    assert re.search(r"step-15 \(model/.* is not finite\); step-10 is used", line)


def test_without_a_whole_one_it_is_an_error_and_nothing_is_touched(folder, model):
    damage(folder.checkpoints, 10)
    damage(folder.checkpoints, 5, "index")
    before = contents(folder.checkpoints)
    mark(model, 99)
    for use in (lambda: nvae_tf.load(folder.path), state_of(folder, model).restore):
        refuses(r"step-10: the checkpoint is damaged \(.*no other that is whole.*delete ", use)
    assert number_of(model) == 99.0 and contents(folder.checkpoints) == before


def test_weights_that_no_step_has_trained_are_loaded_with_a_warning(empty_run, model):
    save(state_of(empty_run, model), model, 0)
    with pytest.warns(UserWarning, match="step-0 is used, the weights before the first training step"):
        nvae_tf.load(empty_run.path)
    # The weights of an imported file whose step is not known are trained.
    empty_run.origin_file.write_text('{"source_file": "x.pt", "step": 0}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nvae_tf.load(empty_run.path)


def test_a_save_that_a_killed_process_left_half_written_is_reported_and_removed(folder, model):
    partial = folder.checkpoints / ".step-12.partial"
    (partial / "step-12_temp").mkdir(parents=True)
    (partial / "step-12_temp" / "part-00000-of-00001.data-00000-of-00001").write_bytes(b"half")
    (folder.checkpoints / ".checkpoint.123.partial").write_text("model_checkpoint_path")
    # A reader beside a training sees such a folder whenever the training saves.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nvae_tf.load(folder.path)
    _, step, (line,) = restored(folder, model)
    assert step == 10 and "passed over step-12 (half-written); step-10 is used" in line
    assert not list(folder.checkpoints.glob(".*"))


@pytest.mark.parametrize("size", [1, 3000])
def test_what_can_not_be_written_leaves_nothing_behind(folder, model, small_files, tmp_path, size):
    state = state_of(folder, model)
    state.restore()
    save_if_best(state, model, 10, 2.0)
    places = folder.checkpoints, folder.best_checkpoints
    before = contents(*places)
    small_files(size)
    refuses("the checkpoint of step 12 .*File too large.* from step 10, ", state.save, 12, error=OSError)
    with pytest.raises(OSError, match="best: .* of step 12 .*File too large.* from step 10, "):
        state.save_if_best(12, 1.0)
    with pytest.raises(OSError, match="of step 1 .*File too large.* starts anew"):
        state_of(RunFolder(tmp_path / "new"), model).save(1)
    small_files(None)
    assert contents(*places) == before and not [hidden for place in places for hidden in place.glob(".*")]
    state, *_ = restored(folder, model)
    save(state, model, 14)
    state.save_if_best(14, 1.0)
    assert (saved_steps(folder.checkpoints), saved_steps(folder.best_checkpoints)) == ([10, 14], [14])


def test_a_list_that_can_not_be_written_leaves_the_checkpoint(folder, model, monkeypatch):
    def full_disk(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    state, *_ = restored(folder, model)
    monkeypatch.setattr(checkpoints, "atomic_write", full_disk)
    refuses("of step 12 .*No space left.* from step 12, whose", save, state, model, 12, error=OSError)
    assert saved_steps(folder.checkpoints) == [10, 12]


def test_step_0_is_kept_until_there_is_another(empty_run, model):
    save(state_of(empty_run, model, keep=3), model, 0)
    assert saved_steps(empty_run.checkpoints) == [0]
    # A later one that is damaged neither counts nor goes.
    shutil.copy(empty_run.checkpoints / "step-0.index", empty_run.checkpoints / "step-9.index")
    later, step, _ = restored(empty_run, model)
    assert step == 0
    save(later, model, 5, 7, 8)
    assert checkpoints.steps_of_files(empty_run.checkpoints) == [7, 8, 9]
    assert checkpoints.listed_steps(empty_run.checkpoints) == [7, 8]
    moved = empty_run.path.rename(empty_run.path.with_name("moved"))
    assert tf.train.latest_checkpoint(str(moved / "checkpoints")) == str(moved / "checkpoints" / "step-8")


def test_what_is_not_listed_is_kept_for_good_if_it_is_older_than_the_list(folder, model):
    place = folder.checkpoints
    listed = (place / "checkpoint").read_text()
    # As earlier versions left what they had kept after some hours; and as a killed process leaves its last.
    save(state_of(folder, model, keep=9), model, 3, 12)
    (place / "checkpoint").write_text(listed)
    state, step, reported = restored(folder, model)
    assert step == 12 and not reported
    save(state, model, 14)
    assert saved_steps(place) == [3, 12, 14] and checkpoints.listed_steps(place) == [12, 14]


def test_only_a_lower_score_is_kept(empty_run, model):
    kept = []
    # What the scores have in single precision is not below them.
    for step, score in enumerate((float("nan"), 123.456, 123.456, 200.1, 123.4, float("nan"), 123.41), start=1):
        state, *_ = restored(empty_run, model)
        save_if_best(state, model, step, score)
        kept.append(saved_steps(empty_run.best_checkpoints))
    assert kept == [[], [2], [2], [2], [5], [5], [5]]
    assert number_of(nvae_tf.load(empty_run.path, "best")) == 5.0
    before = contents(empty_run.best_checkpoints)
    save(state, model, 5, 6, 7)
    assert saved_steps(empty_run.checkpoints) == [6, 7] and contents(empty_run.best_checkpoints) == before
    # Its own step may come again, after a kill.
    save_if_best(state, model, 5, 100.0, number=2)
    assert number_of(nvae_tf.load(empty_run.path, "best")) == 2.0


def test_a_process_killed_before_it_deleted_the_best_before(empty_run, model, tmp_path):
    state, place = state_of(empty_run, model), empty_run.best_checkpoints
    save_if_best(state, model, 15, 2.0)
    shutil.copytree(place, tmp_path / "left")
    save_if_best(state, model, 10, 1.0)
    shutil.copytree(tmp_path / "left", place, dirs_exist_ok=True)
    assert saved_steps(place) == [10, 15]
    # And while it wrote another: the data are moved before the index.
    (place / ".step-17.partial" / "step-17_temp").mkdir(parents=True)
    shutil.copy(place / "step-10.data-00000-of-00001", place / "step-16.data-00000-of-00001")
    assert number_of(nvae_tf.load(empty_run.path, "best")) == 10.0
    later, *_ = restored(empty_run, model)
    assert not list(place.glob(".*"))
    save_if_best(later, model, 20, 1.5)
    assert number_of(nvae_tf.load(empty_run.path, "best")) == 10.0
    save_if_best(later, model, 21, 0.5)
    assert saved_steps(place) == [21]


def test_a_damaged_best_is_reported_and_the_next_score_counts(empty_run, model):
    state = state_of(empty_run, model)
    save_if_best(state, model, 10, 2.0)
    state.save(12)
    damage(empty_run.best_checkpoints, 10)
    with pytest.raises(ValueError, match=r"best: the best checkpoint is damaged: .*step-10 \(.*take the latest: --ch"):
        nvae_tf.load(empty_run.path, checkpoint="best")
    later, step, (line,) = restored(empty_run, model)
    assert step == 12 and re.search(r"best: passed over step-10 \(.*there is none before", line)
    save_if_best(later, model, 15, 3.0)
    assert saved_steps(empty_run.best_checkpoints) == [15]


def test_what_is_missing_is_named_with_what_to_do(empty_run, model):
    for checkpoint, error, message in (
        ("latest", FileNotFoundError, "no checkpoint in .*checkpoints; nvae-train writes one.* --checkpoint=best"),
        ("best", FileNotFoundError, "no best checkpoint in .*best; nvae-train .*Train on, or take"),
        ("bset", ValueError, r"checkpoint = 'bset': .*latest, best.*did you mean 'best'\?"),
    ):
        refuses(message, nvae_tf.load, empty_run.path, checkpoint=checkpoint, error=error)
    # One that is replaced while it is loaded is not called damaged.
    with pytest.raises(ValueError, match="step-10: the checkpoint is gone.*Try again"):
        checkpoints.restore_weights(model, str(empty_run.checkpoints / "step-10"))
