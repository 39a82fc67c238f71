import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from nvae_tf.training.loop import StepProfiler

_DOUBLE = tf.function(lambda value: 2.0 * value, input_signature=[tf.TensorSpec([4])])


@pytest.fixture
def lines():
    return []


def take_steps(profiler, numbers):
    for number in numbers:
        with profiler.step(number):
            _DOUBLE(tf.ones(4))


def profiled_steps(folder):
    found = []
    for file in sorted(folder.glob("plugins/profile/*/*.xplane.pb")):
        planes = xplane_pb2.XSpace.FromString(file.read_bytes()).planes
        events = [(plane, event) for plane in planes for line in plane.lines for event in line.events]
        stats = [(plane, stat) for plane, event in events for stat in event.stats]
        numbered = (stat for plane, stat in stats if plane.stat_metadata[stat.metadata_id].name == "step_num")
        found.append(sorted(stat.int64_value for stat in numbered))
    return found


@pytest.mark.parametrize("steps", [(3, 5), (2, 2)])
def test_the_asked_for_steps_are_profiled(tmp_path, lines, steps):
    first, last = steps
    with StepProfiler(steps, tmp_path, lines.append) as profiler:
        take_steps(profiler, range(1, last + 1))
        # Already written: what comes between this step and the next, as an evaluation, is not in it.
        assert profiled_steps(tmp_path) == [[*range(first, last + 1)]]
        take_steps(profiler, range(last + 1, last + 4))
    assert lines == [f"A profile of steps {first} to {last} is in {tmp_path}."]
    assert len(profiled_steps(tmp_path)) == 1


def test_a_run_that_ends_in_between_leaves_what_there_is(tmp_path, lines):
    with pytest.raises(KeyboardInterrupt), StepProfiler((2, 9), tmp_path, lines.append) as profiler:
        take_steps(profiler, range(1, 4))
        with profiler.step(4):
            raise KeyboardInterrupt
    assert lines == [f"A profile of steps 2 to 4 is in {tmp_path}."]
    assert profiled_steps(tmp_path) == [[2, 3, 4]]


@pytest.mark.parametrize(("back_to", "expected"), [(1, [3, 4, 5]), (4, [3, 4, 4, 5, 5, 6, 7])])
def test_a_run_that_goes_back_gets_one_profile(tmp_path, lines, back_to, expected):
    with StepProfiler((3, 7), tmp_path, lines.append) as profiler:
        take_steps(profiler, range(1, 6))
        take_steps(profiler, range(back_to, 10))
    assert profiled_steps(tmp_path) == [expected] and len(lines) == 1


@pytest.mark.parametrize(
    ("problem", "reason"), [("busy", "Another profiler is running. The run goes on."), ("a file in the way", "")]
)
def test_a_profile_that_can_not_be_made_is_reported_once(tmp_path, lines, problem, reason):
    if problem == "busy":
        tf.profiler.experimental.start(str(tmp_path / "other"))
    else:
        (tmp_path / "run").write_text(problem)
    try:
        with StepProfiler((2, 3), tmp_path / "run", lines.append) as profiler:
            take_steps(profiler, [*range(1, 5), *range(1, 5)])
    finally:
        if problem == "busy":
            tf.profiler.experimental.stop()
    assert len(lines) == 1 and lines[0].startswith(f"No profile of steps 2 to 3: {reason}")
    assert not (tmp_path / "run").is_dir()


def test_a_run_that_never_takes_the_first_step_says_so(tmp_path, lines):
    for steps, numbers in (((), range(1, 4)), ((3, 5), range(4, 8))):
        with StepProfiler(steps, tmp_path, lines.append) as profiler:
            take_steps(profiler, numbers)
    profiler = StepProfiler((10, 20), tmp_path, lines.append)
    profiler.note_steps(1, 30)
    profiler.note_steps(31, 30)
    assert not lines and not list(tmp_path.iterdir())
    profiler.note_steps(1, 9)
    profiler.note_steps(11, 30)
    assert [line.startswith("No profile: train.profile_steps begin with 10") for line in lines] == [True, True]
