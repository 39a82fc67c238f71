"""The checkpoint with the best score: when it is written, what kills and full disks leave of it, and loading it."""

import resource
import shutil

import numpy as np
import pytest
import tensorflow as tf

import nvae_tf
from nvae_tf.config import ExperimentConfig, TrainConfig
from nvae_tf.optimization import NVAEAdamax
from nvae_tf.training.checkpoints import CheckpointNotWritten, TrainingState, find_best, restore_weights, steps_of_files
from nvae_tf.training.run_folder import open_for_training
from tests.tiny_model import tiny_config

CONFIG = ExperimentConfig(model=tiny_config(num_latent_scales=1), train=TrainConfig(seed=3))


@pytest.fixture(scope="module")
def model():
    made = nvae_tf.NVAE(CONFIG.model)
    optimizer = NVAEAdamax()
    optimizer.build(made.trainable_variables)
    made.compile(optimizer=optimizer)
    return made


@pytest.fixture
def folder(tmp_path):
    return open_for_training(tmp_path / "run", CONFIG)


def state_of(folder, model, keep=2):
    """What a new process begins with."""
    return TrainingState(folder.checkpoints, model, model.optimizer, keep)


def mark(model, number):
    """Gives the model and its optimizer weights that tell a number."""
    for variable in [*model.weights, *model.optimizer.variables[1:]]:
        variable.assign(tf.fill(variable.shape, float(number)))


def number_of(model):
    (number,) = {float(value) for weight in model.weights for value in np.ravel(weight.numpy())}
    return number


def evaluated(state, model, step, score, number=None):
    mark(model, step if number is None else number)
    state.save_if_best(step, score)


def place(folder):
    return folder.checkpoints / "best"


def best_steps(folder):
    assert steps_of_files(place(folder), "index") == steps_of_files(place(folder), "data")
    return steps_of_files(place(folder), "index")


def contents(folder):
    return {file: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def data_file(folder, step):
    (file,) = folder.glob(f"step-{step}.data*")
    return file


def cut_short(file):
    file.write_bytes(file.read_bytes()[:500])


@pytest.mark.parametrize("processes", ["one process", "a process each"])
def test_only_a_lower_score_is_kept(folder, model, processes):
    state = state_of(folder, model)
    kept = []
    # What the scores have in single precision is not below them.
    for step, score in enumerate((float("nan"), 123.456, 123.456, 200.1, 123.4, float("nan"), 123.41), start=1):
        if processes == "a process each":
            state = state_of(folder, model)
            state.restore()
        evaluated(state, model, step, score)
        kept.append(best_steps(folder))
    assert kept == [[], [2], [2], [2], [5], [5], [5]]
    assert number_of(nvae_tf.load(folder.path, "best")) == 5.0


def test_an_equal_score_of_the_same_step_is_not_written_again(folder, model):
    evaluated(state_of(folder, model), model, 10, 123.456, number=1)
    before = contents(place(folder))
    # A process that has the evaluation of its step already asks again.
    state = state_of(folder, model)
    state.restore()
    evaluated(state, model, 10, 123.456, number=2)
    assert contents(place(folder)) == before


def test_a_run_that_was_killed_before_it_wrote_the_best_writes_it_when_it_goes_on(folder, model):
    state = state_of(folder, model)
    evaluated(state, model, 10, 2.0)
    mark(model, 20)
    state.save(20)
    mark(model, 99)
    later = state_of(folder, model)
    assert later.restore() == 20
    later.save_if_best(20, 1.0)
    assert best_steps(folder) == [20] and number_of(nvae_tf.load(folder.path, "best")) == 20.0


def test_steps_that_a_run_goes_back_by_stay_the_best_until_they_are_beaten(folder, model):
    state = state_of(folder, model)
    state.save(5)
    evaluated(state, model, 10, 2.0, number=1)
    assert state.restore() == 5
    evaluated(state, model, 8, 3.0)
    assert best_steps(folder) == [10]
    evaluated(state, model, 10, 1.5, number=2)
    assert best_steps(folder) == [10] and number_of(nvae_tf.load(folder.path, "best")) == 2.0


def test_the_others_come_and_go_beside_it(folder, model):
    state = state_of(folder, model, keep=1)
    evaluated(state, model, 3, 1.0)
    before = contents(place(folder))
    for step in (3, 4, 5):
        state.save(step)
    state_of(folder, model, keep=1).restore()
    assert steps_of_files(folder.checkpoints, "index") == [5] and contents(place(folder)) == before
    assert tf.train.latest_checkpoint(str(folder.checkpoints)).endswith("step-5")


@pytest.mark.parametrize(("left", "new"), [((10, 2.0), (15, 1.0)), ((15, 2.0), (10, 1.0))])
def test_a_process_killed_before_it_deleted_the_one_before(folder, model, tmp_path, left, new):
    state = state_of(folder, model)
    evaluated(state, model, *left)
    shutil.copytree(place(folder), tmp_path / "left")
    evaluated(state, model, *new)
    shutil.copytree(tmp_path / "left", place(folder), dirs_exist_ok=True)
    assert best_steps(folder) == [10, 15]
    assert number_of(nvae_tf.load(folder.path, "best")) == new[0]
    told = []
    later = state_of(folder, model)
    later.restore(told.append)
    assert best_steps(folder) == [new[0]] and not told
    evaluated(later, model, 20, 1.5)
    assert best_steps(folder) == [new[0]]


def test_a_process_killed_while_it_wrote_leaves_the_one_before(folder, model):
    state = state_of(folder, model)
    evaluated(state, model, 10, 2.0)
    partial = place(folder) / ".step-15.partial"
    (partial / "step-15_temp").mkdir(parents=True)
    (partial / "step-15_temp" / "part-00000-of-00001.data-00000-of-00001").write_bytes(b"half")
    # The data are moved before the index.
    shutil.copy(data_file(place(folder), 10), place(folder) / "step-12.data-00000-of-00001")
    assert number_of(nvae_tf.load(folder.path, "best")) == 10.0
    told = []
    state_of(folder, model).restore(told.append)
    assert not list(place(folder).glob(".*")) and not told
    evaluated(state_of(folder, model), model, 15, 1.0)
    assert best_steps(folder) == [15]


@pytest.mark.parametrize("size", [0, 3000])
def test_a_full_disk_leaves_the_one_before_and_names_where_the_run_goes_on(folder, model, size):
    state = state_of(folder, model)
    evaluated(state, model, 10, 2.0)
    state.save(12)
    before = contents(place(folder)) | contents(folder.checkpoints)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        with pytest.raises(CheckpointNotWritten, match="best: .* of step 15 .*File too large.* step 12 is whole"):
            state.save_if_best(15, 1.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(place(folder)) | contents(folder.checkpoints) == before
    assert not list(place(folder).glob(".*"))
    state.save_if_best(15, 1.0)
    assert best_steps(folder) == [15]


def test_a_damaged_one_is_told_and_the_next_score_counts(folder, model):
    state = state_of(folder, model)
    evaluated(state, model, 10, 2.0)
    state.save(12)
    cut_short(data_file(place(folder), 10))
    with pytest.raises(ValueError, match=r"best: the best checkpoint is damaged: step-10 \(.*take the latest") as error:
        nvae_tf.load(folder.path, checkpoint="best")
    assert "--checkpoint=latest" in str(error.value) and "\n" not in str(error.value)
    assert number_of(nvae_tf.load(folder.path)) == 10.0
    told = []
    later = state_of(folder, model)
    assert later.restore(told.append) == 12
    assert len(told) == 1 and "best: step-10 (" in told[0] and "the next step that is evaluated counts" in told[0]
    evaluated(later, model, 15, 3.0)
    assert best_steps(folder) == [15]


def test_one_whose_score_is_no_number_is_not_used(tmp_path):
    best = tmp_path / "best"
    best.mkdir()
    step = tf.Variable(4, dtype=tf.int64)
    tf.train.Checkpoint(step=step, best_score=tf.Variable("x")).write(str(best / "step-4"))
    found = find_best(best)
    assert found.path is None and found.unusable == {4: "its score is not a number"}


def test_what_is_missing_is_told_with_what_to_do(folder, model):
    state_of(folder, model).save(12)
    with pytest.raises(
        FileNotFoundError, match="no best checkpoint in .*best; with train.keep_best .*Train on, or take"
    ):
        nvae_tf.load(folder.path, checkpoint="best")
    with pytest.raises(ValueError, match=r"checkpoint = 'bset': .*latest, best.*did you mean 'best'\?"):
        nvae_tf.load(folder.path, checkpoint="bset")
    assert not place(folder).exists()


def test_where_the_latest_is_missing_or_damaged_the_best_is_the_way_out(folder, model):
    state = state_of(folder, model)
    evaluated(state, model, 10, 2.0)
    with pytest.raises(FileNotFoundError, match="no checkpoint in .*The best one, of step 10, is whole: .*=best"):
        nvae_tf.load(folder.path)
    mark(model, 15)
    state.save(15)
    cut_short(data_file(folder.checkpoints, 15))
    with pytest.raises(ValueError, match="step-15: the checkpoint is damaged.*The best one, of step 10, is whole"):
        nvae_tf.load(folder.path)
    with pytest.raises(ValueError, match=r"damaged.* Or copy .*best/step-10\.\* into ") as error:
        state_of(folder, model).restore()
    assert "\n" not in str(error.value)
    for file in place(folder).glob("step-10.*"):
        shutil.copy(file, folder.checkpoints)
    told = []
    mark(model, 99)
    assert state_of(folder, model).restore(told.append) == 10 and number_of(model) == 10.0
    assert "passed over step-15" in told[0]


def test_one_that_is_replaced_while_it_is_loaded_is_not_called_damaged(folder, model):
    with pytest.raises(ValueError, match="step-10: the checkpoint was there a moment ago and is gone.*Try again"):
        restore_weights(model, str(place(folder) / "step-10"))
