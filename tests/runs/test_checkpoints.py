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
from nvae_tf.runs import checkpoint_files, checkpoints
from nvae_tf.runs.checkpoints import CheckpointNotWritten
from nvae_tf.runs.run_folder import RunFolder, open_for_training
from tests.tiny_model import assert_same, tiny_config, tiny_model, values

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
    return checkpoints.TrainingState(folder.checkpoints, model, model.optimizer, keep)


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


def best_of(folder):
    return folder.checkpoints / "best"


def saved_steps(place):
    assert checkpoint_files.steps_of_files(place, "index") == checkpoint_files.steps_of_files(place, "data")
    return checkpoint_files.steps_of_files(place, "index")


def contents(*places):
    return {file: file.read_bytes() for place in places for file in place.iterdir() if file.is_file()}


def test_restoring_brings_back_optimizer_step_and_metrics(folder, model):
    model.running.loss.update_state(2.5)
    state_of(folder, model).save(12)
    model.running.loss.reset_state()
    other = compiled_model()
    assert state_of(folder, other).restore() == 12
    assert_same(values(other.optimizer.variables), values(model.optimizer.variables))
    assert number_of(other) == number_of(model)
    assert float(other.running.loss.result()) == 2.5


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


CHANGES = {"half": lambda content: content[: len(content) // 2], "a bit flipped": flip_bit}
CHANGES |= {"empty": lambda content: b"", "gone": None}
DAMAGES = [*((change, (kind,)) for change in CHANGES for kind in ("data", "index")), ("gone", ("data", "index"))]


def damage(place, step, change, kinds):
    for kind in kinds:
        (file,) = place.glob(f"step-{step}.{kind}*")
        if CHANGES[change] is None:
            file.unlink()
        else:
            file.write_bytes(CHANGES[change](file.read_bytes()))


@pytest.mark.parametrize(("change", "kinds"), DAMAGES)
def test_training_continues_from_the_one_before(folder, model, change, kinds):
    damage(folder.checkpoints, 10, change, kinds)
    left = [*folder.checkpoints.glob("step-10.*")]
    before = [file.read_bytes() for file in left]
    mark(model, 99)
    reported = []
    state = state_of(folder, model)
    assert state.restore(reported.append) == 5 and number_of(model) == 5.0
    (line,) = reported
    assert re.fullmatch(r".*checkpoints: passed over step-10 \(.+\); step-5 is used\.", line)
    assert [file.read_bytes() for file in left] == before
    # The damaged one does not count as one of the two, and is replaced when its step comes.
    save(state, model, 7)
    assert checkpoint_files.read_list(folder.checkpoints) == [5, 7]
    save(state, model, 10)
    assert saved_steps(folder.checkpoints) == [7, 10]
    assert state_of(folder, model).restore(reported.append) == 10 and len(reported) == 1


def test_loading_takes_the_one_before_and_warns_in_one_line(folder):
    damage(folder.checkpoints, 10, "half", ["data"])
    with pytest.warns(UserWarning, match=r"passed over step-10 \(.+\); step-5 is used") as warned:
        assert number_of(nvae_tf.load(folder.path)) == 5.0
    first = warned[0]
    assert "\n" not in warnings.formatwarning(first.message, first.category, first.filename, first.lineno).strip()


def test_one_of_another_step_and_one_with_nan_are_passed_over(folder, model):
    for file in folder.checkpoints.glob("step-5.*"):
        shutil.copy(file, file.with_name(file.name.replace("step-5", "step-20")))
    mark(model, 15)
    model.trainable_weights[3].assign(tf.fill(model.trainable_weights[3].shape, float("nan")))
    state_of(folder, model, keep=3).save(15)
    reported = []
    assert state_of(folder, model).restore(reported.append) == 10 and number_of(model) == 10.0
    assert "step-20 (its files hold the checkpoint of step 5)" in reported[0]
    assert re.search(r"step-15 \(model/.* is not finite\); step-10 is used", reported[0])


def test_without_a_whole_one_it_is_an_error_and_nothing_is_touched(folder, model):
    damage(folder.checkpoints, 10, "half", ["data"])
    damage(folder.checkpoints, 5, "half", ["index"])
    before = contents(folder.checkpoints)
    mark(model, 99)
    for use in (lambda: nvae_tf.load(folder.path), state_of(folder, model).restore):
        with pytest.raises(ValueError, match=r"step-10: the checkpoint is damaged \(.*no other that is whole.*delete "):
            use()
    assert number_of(model) == 99.0 and contents(folder.checkpoints) == before
    # Where all were deleted a run starts anew, and reports it.
    for step in (5, 10):
        for file in folder.checkpoints.glob(f"step-{step}.*"):
            file.unlink()
    reported = []
    state = state_of(folder, model)
    assert state.restore(reported.append) == 0
    assert "step-10 (its files are gone); step-5 (its files are gone); there is none before" in reported[0]
    save(state, model, 3)
    assert checkpoint_files.read_list(folder.checkpoints) == [3]


def test_weights_that_no_step_has_trained_are_loaded_with_a_warning(empty_run, model):
    save(state_of(empty_run, model), model, 0)
    with pytest.warns(UserWarning, match="step-0 is used, the weights before the first training step"):
        nvae_tf.load(empty_run.path)
    # Those of an imported file whose step is not known are trained.
    empty_run.origin_file.write_text('{"source_file": "x.pt", "step": 0}')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nvae_tf.load(empty_run.path)


@pytest.mark.parametrize("content", [None, b"", b"{ not a list \xff", "a time is missing"])
def test_without_the_list_nothing_is_lost_and_old_ones_are_still_deleted(folder, model, content):
    listed = folder.checkpoints / "checkpoint"
    if content == "a time is missing":
        content = re.sub(rb"all_model_checkpoint_timestamps.*\n", b"", listed.read_bytes(), count=1)
    listed.unlink() if content is None else listed.write_bytes(content)
    state = state_of(folder, model)
    assert state.restore(pytest.fail) == 10
    save(state, model, 15)
    assert saved_steps(folder.checkpoints) == [10, 15]
    assert tf.train.latest_checkpoint(str(folder.checkpoints)).endswith("step-15")
    moved = folder.path.rename(folder.path.with_name("moved"))
    assert tf.train.latest_checkpoint(str(moved / "checkpoints")) == str(moved / "checkpoints" / "step-15")


def test_a_save_that_a_killed_process_left_half_written_is_reported_and_removed(folder, model):
    partial = folder.checkpoints / ".step-12.partial"
    (partial / "step-12_temp").mkdir(parents=True)
    (partial / "step-12_temp" / "part-00000-of-00001.data-00000-of-00001").write_bytes(b"half")
    for name in (".checkpoint.123.partial", "checkpoint.tmp123"):
        (folder.checkpoints / name).write_text("model_checkpoint_path")
    # A reader beside a training sees such a folder whenever the training saves.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nvae_tf.load(folder.path)
    reported = []
    assert state_of(folder, model).restore(reported.append) == 10
    assert "passed over step-12 (half-written); step-10 is used" in reported[0]
    assert not [*folder.checkpoints.glob(".*"), *folder.checkpoints.glob("checkpoint.*")]


def test_where_the_list_alone_can_not_be_written_the_checkpoint_is_there(folder, model, monkeypatch):
    def full_disk(path, text):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint_files, "atomic_write", full_disk)
    with pytest.raises(
        CheckpointNotWritten, match="the list of checkpoints of step 12 could .*No space left.*12 is whole"
    ):
        save(state_of(folder, model), model, 12)
    monkeypatch.undo()
    assert saved_steps(folder.checkpoints) == [5, 10, 12]
    state = state_of(folder, model)
    assert state.restore(pytest.fail) == 12
    save(state, model, 15)
    assert saved_steps(folder.checkpoints) == [12, 15]


@pytest.mark.parametrize("size", [1, 3000])
def test_what_can_not_be_written_leaves_nothing_behind(folder, model, small_files, tmp_path, size):
    state = state_of(folder, model)
    state.restore()
    save_if_best(state, model, 10, 2.0)
    before = contents(folder.checkpoints, best_of(folder))
    small_files(size)
    with pytest.raises(CheckpointNotWritten, match="checkpoint of step 12 .*File too large.* step 10 is whole"):
        state.save(12)
    with pytest.raises(CheckpointNotWritten, match="best: .* of step 12 .*File too large.* step 10 is whole"):
        state.save_if_best(12, 1.0)
    with pytest.raises(CheckpointNotWritten, match="of step 1 .*File too large.* starts anew"):
        state_of(RunFolder(tmp_path / "new"), model).save(1)
    small_files(None)
    assert contents(folder.checkpoints, best_of(folder)) == before
    assert not [*folder.checkpoints.glob(".*"), *best_of(folder).glob(".*")]
    state.save(12)
    state.save_if_best(12, 1.0)
    assert saved_steps(folder.checkpoints) == [10, 12] and saved_steps(best_of(folder)) == [12]


def test_step_0_is_kept_until_there_is_another(empty_run, model):
    state = state_of(empty_run, model, keep=3)
    save(state, model, 0)
    assert saved_steps(empty_run.checkpoints) == [0]
    # A later one that is damaged neither counts nor goes.
    shutil.copy(empty_run.checkpoints / "step-0.index", empty_run.checkpoints / "step-9.index")
    later = state_of(empty_run, model)
    assert later.restore(lambda line: None) == 0
    save(later, model, 5, 7, 8)
    assert checkpoint_files.steps_of_files(empty_run.checkpoints, "index") == [7, 8, 9]
    assert checkpoint_files.read_list(empty_run.checkpoints) == [7, 8]


def test_a_process_killed_between_two_files_leaves_nothing_that_stays(folder, model):
    place, state = folder.checkpoints, state_of(folder, model)
    listed = (place / "checkpoint").read_text()
    save(state, model, 12)
    # Whole but not yet listed; and a deletion that was cut short.
    (place / "checkpoint").write_text(listed)
    shutil.copy(place / "step-10.data-00000-of-00001", place / "step-5.data-00000-of-00001")
    state = state_of(folder, model)
    assert state.restore(pytest.fail) == 12
    save(state, model, 14)
    assert saved_steps(place) == [12, 14] == checkpoint_files.read_list(place)


def test_what_earlier_versions_kept_for_good_stays_where_all_later_ones_are_damaged(folder, model):
    place = folder.checkpoints
    listed = (place / "checkpoint").read_text()
    # As after its hours: there, and not listed.
    save(state_of(folder, model), model, 3)
    (place / "checkpoint").write_text(listed)
    for step in (5, 10):
        damage(place, step, "half", ["data"])
    state = state_of(folder, model)
    assert state.restore(lambda line: None) == 3
    save(state, model, 11, 12, 13)
    assert saved_steps(place) == [3, 5, 10, 12, 13]


def test_the_hash_of_a_checkpoint_is_of_its_files(tmp_path):
    for step, content in ((1, b"one"), (10, b"ten"), (11, b"one")):
        for ending in ("index", "data-00000-of-00001"):
            (tmp_path / f"step-{step}.{ending}").write_bytes(content)
    sums = [checkpoint_files.checkpoint_sha256(str(tmp_path / f"step-{step}")) for step in (1, 10, 11)]
    assert sums[0] == sums[2] != sums[1]
    with pytest.raises(FileNotFoundError, match="the checkpoint is gone"):
        checkpoint_files.checkpoint_sha256(str(tmp_path / "step-2"))


@pytest.mark.parametrize("processes", ["one process", "a process each"])
def test_only_a_lower_score_is_kept(empty_run, model, processes):
    state = state_of(empty_run, model)
    kept = []
    # What the scores have in single precision is not below them.
    for step, score in enumerate((float("nan"), 123.456, 123.456, 200.1, 123.4, float("nan"), 123.41), start=1):
        if processes == "a process each":
            state = state_of(empty_run, model)
            state.restore()
        save_if_best(state, model, step, score)
        kept.append(saved_steps(best_of(empty_run)))
    assert kept == [[], [2], [2], [2], [5], [5], [5]]
    assert number_of(nvae_tf.load(empty_run.path, "best")) == 5.0


def test_the_best_stays_beside_the_others_until_its_own_step_has_a_lower_score(empty_run, model):
    state = state_of(empty_run, model, keep=1)
    save_if_best(state, model, 10, 2.0, number=1)
    before = contents(best_of(empty_run))
    save(state, model, 3, 4, 5)
    assert state_of(empty_run, model, keep=1).restore() == 5
    save_if_best(state, model, 8, 3.0)
    assert saved_steps(empty_run.checkpoints) == [5] and contents(best_of(empty_run)) == before
    save_if_best(state, model, 10, 1.5, number=2)
    assert number_of(nvae_tf.load(empty_run.path, "best")) == 2.0


@pytest.mark.parametrize(("left", "new"), [((10, 2.0), (15, 1.0)), ((15, 2.0), (10, 1.0))])
def test_a_process_killed_before_it_deleted_the_one_before_and_while_it_wrote_the_next(
    empty_run, model, tmp_path, left, new
):
    state, place = state_of(empty_run, model), best_of(empty_run)
    save_if_best(state, model, *left)
    shutil.copytree(place, tmp_path / "left")
    save_if_best(state, model, *new)
    shutil.copytree(tmp_path / "left", place, dirs_exist_ok=True)
    assert saved_steps(place) == [10, 15]
    # And while it wrote another: the data are moved before the index.
    (place / ".step-17.partial" / "step-17_temp").mkdir(parents=True)
    shutil.copy(place / "step-10.data-00000-of-00001", place / "step-16.data-00000-of-00001")
    assert number_of(nvae_tf.load(empty_run.path, "best")) == new[0]
    later = state_of(empty_run, model)
    later.restore(pytest.fail)
    assert not list(place.glob(".*"))
    save_if_best(later, model, 20, 1.5)
    assert checkpoint_files.steps_of_files(place, "index") == [new[0]]
    save_if_best(later, model, 21, 0.5)
    assert saved_steps(place) == [21]


def test_a_damaged_best_is_reported_and_the_next_score_counts(empty_run, model):
    state = state_of(empty_run, model)
    save_if_best(state, model, 10, 2.0)
    state.save(12)
    damage(best_of(empty_run), 10, "half", ["data"])
    with pytest.raises(ValueError, match=r"best: the best checkpoint is damaged: step-10 \(.*take the latest") as error:
        nvae_tf.load(empty_run.path, checkpoint="best")
    assert "--checkpoint=latest" in str(error.value) and "\n" not in str(error.value)
    reported = []
    later = state_of(empty_run, model)
    assert later.restore(reported.append) == 12
    assert len(reported) == 1 and re.search(r"best: step-10 \(.*the next step that is evaluated counts", reported[0])
    save_if_best(later, model, 15, 3.0)
    assert saved_steps(best_of(empty_run)) == [15]


def test_one_whose_score_is_no_number_is_not_used(tmp_path):
    step = tf.Variable(4, dtype=tf.int64)
    tf.train.Checkpoint(step=step, best_score=tf.Variable("x")).write(str(tmp_path / "step-4"))
    best = checkpoint_files.find_best(tmp_path)
    assert best.prefix is None and best.unusable == {4: "its score is not a number"}


def test_what_is_missing_is_named_with_what_to_do(empty_run, model):
    for checkpoint, error, message in (
        ("latest", FileNotFoundError, "no checkpoint in .*checkpoints; nvae-train writes one"),
        ("best", FileNotFoundError, "no best checkpoint in .*best; with train.keep_best .*Train on, or take"),
        ("bset", ValueError, r"checkpoint = 'bset': .*latest, best.*did you mean 'best'\?"),
    ):
        with pytest.raises(error, match=message):
            nvae_tf.load(empty_run.path, checkpoint=checkpoint)
    # One that is replaced while it is loaded is not called damaged.
    with pytest.raises(ValueError, match="step-10: the checkpoint was there a moment ago and is gone.*Try again"):
        checkpoints.restore_weights(model, str(empty_run.checkpoints / "step-10"))


def test_where_the_latest_is_missing_or_damaged_the_best_is_the_way_out(empty_run, model):
    state = state_of(empty_run, model)
    save_if_best(state, model, 10, 2.0)
    with pytest.raises(FileNotFoundError, match="no checkpoint in .*The best one, of step 10, is whole: .*=best"):
        nvae_tf.load(empty_run.path)
    save(state, model, 15)
    damage(empty_run.checkpoints, 15, "half", ["data"])
    with pytest.raises(ValueError, match="step-15: the checkpoint is damaged.*The best one, of step 10, is whole"):
        nvae_tf.load(empty_run.path)
    with pytest.raises(ValueError, match=r"damaged.* Or copy .*best/step-10\.\* into "):
        state_of(empty_run, model).restore()
    for file in best_of(empty_run).glob("step-10.*"):
        shutil.copy(file, empty_run.checkpoints)
    reported = []
    assert state_of(empty_run, model).restore(reported.append) == 10 and number_of(model) == 10.0
    assert "passed over step-15" in reported[0]
