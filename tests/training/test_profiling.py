"""Profiles of training steps: which steps are in them, and that nothing about them ends a run."""

import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from nvae_tf.training.profiling import StepProfiler

_DOUBLE = tf.function(lambda value: 2.0 * value, input_signature=[tf.TensorSpec([4])])


@pytest.fixture
def said():
    return []


def take_steps(profiler, numbers):
    for number in numbers:
        with profiler.step(number):
            _DOUBLE(tf.ones(4))


def profiled_steps(folder):
    """The numbers of the steps in each profile below a folder."""
    found = []
    for file in sorted(folder.glob("plugins/profile/*/*.xplane.pb")):
        space = xplane_pb2.XSpace.FromString(file.read_bytes())
        found.append(
            sorted(
                stat.int64_value
                for plane in space.planes
                for line in plane.lines
                for event in line.events
                for stat in event.stats
                if plane.stat_metadata[stat.metadata_id].name == "step_num"
            )
        )
    return found


def test_the_asked_for_steps_are_profiled(tmp_path, said):
    with StepProfiler((3, 5), tmp_path, said.append) as profiler:
        take_steps(profiler, range(1, 6))
        # Already written: what comes between this step and the next, as an evaluation, is not in it.
        assert profiled_steps(tmp_path) == [[3, 4, 5]]
        take_steps(profiler, range(6, 9))
    assert said == [f"A profile of steps 3 to 5 is in {tmp_path}."]
    assert profiled_steps(tmp_path) == [[3, 4, 5]]


def test_one_step_is_a_profile_too(tmp_path, said):
    with StepProfiler((2, 2), tmp_path, said.append) as profiler:
        take_steps(profiler, range(1, 4))
    assert profiled_steps(tmp_path) == [[2]]


@pytest.mark.parametrize(("steps", "numbers"), [((), range(1, 4)), ((3, 5), range(4, 8)), ((3, 5), range(1, 3))])
def test_without_its_first_step_there_is_none(tmp_path, said, steps, numbers):
    with StepProfiler(steps, tmp_path, said.append) as profiler:
        take_steps(profiler, numbers)
    assert not said and not list(tmp_path.iterdir())


def test_a_run_that_ends_in_between_leaves_what_there_is(tmp_path, said):
    with pytest.raises(KeyboardInterrupt), StepProfiler((2, 9), tmp_path, said.append) as profiler:
        take_steps(profiler, range(1, 4))
        with profiler.step(4):
            raise KeyboardInterrupt
    assert said == [f"A profile of steps 2 to 4 is in {tmp_path}."]
    assert profiled_steps(tmp_path) == [[2, 3, 4]]
    # The profiler is free again.
    tf.profiler.experimental.start(str(tmp_path / "next"))
    tf.profiler.experimental.stop()


@pytest.mark.parametrize(
    ("back_to", "expected"), [(1, [3, 4, 5]), (3, [3, 3, 4, 4, 5, 5, 6, 7]), (4, [3, 4, 4, 5, 5, 6, 7])]
)
def test_a_run_that_goes_back_gets_one_profile(tmp_path, said, back_to, expected):
    with StepProfiler((3, 7), tmp_path, said.append) as profiler:
        take_steps(profiler, range(1, 6))
        take_steps(profiler, range(back_to, 10))
    assert profiled_steps(tmp_path) == [expected] and len(said) == 1


def test_a_profiler_that_is_busy_is_told_once(tmp_path, said):
    tf.profiler.experimental.start(str(tmp_path / "other"))
    try:
        with StepProfiler((2, 3), tmp_path / "run", said.append) as profiler:
            take_steps(profiler, range(1, 5))
            take_steps(profiler, range(1, 5))
    finally:
        # Still running, and not ended by ours.
        tf.profiler.experimental.stop()
    assert said == ["No profile of steps 2 to 3: Another profiler is running. The run goes on."]
    assert not (tmp_path / "run").exists()


def test_a_folder_that_can_not_be_written_is_told_once(tmp_path, said):
    (tmp_path / "file").write_text("in the way")
    with StepProfiler((2, 3), tmp_path / "file", said.append) as profiler:
        take_steps(profiler, range(1, 5))
    assert len(said) == 1 and said[0].startswith("No profile of steps 2 to 3: ") and str(tmp_path / "file") in said[0]


def test_a_profile_that_can_not_be_saved_is_told_once(tmp_path, said):
    with StepProfiler((2, 3), tmp_path / "run", said.append) as profiler:
        take_steps(profiler, range(1, 3))
        # Somebody else has ended it.
        tf.profiler.experimental.stop(save=False)
        take_steps(profiler, range(3, 5))
    assert len(said) == 1 and said[0].startswith("No profile of steps 2 to 3: ")


def test_steps_that_are_not_made_are_told(tmp_path):
    told = []
    profiler = StepProfiler((10, 20), tmp_path, told.append)
    profiler.note_steps(1, 30)
    profiler.note_steps(31, 30)
    assert not told
    profiler.note_steps(1, 9)
    profiler.note_steps(11, 30)
    assert [line.startswith("No profile: train.profile_steps begin with 10") for line in told] == [True, True]
