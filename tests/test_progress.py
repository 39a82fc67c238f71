"""The status line on a terminal and in a log, the speed, and how durations are said."""

import io

import pytest

from nvae_tf import progress
from nvae_tf.progress import Speed, StatusLine, duration


class Clock:
    """Stands for the `time` module."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_plain_lines_now_and_then(clock):
    stream = io.StringIO()
    status = StatusLine(stream)
    assert status.is_due
    status.show("step 1")
    assert not status.is_due
    clock.now += 11.0
    assert status.is_due
    status.show("step 50")
    status.keep("done")
    assert stream.getvalue() == "step 1\nstep 50\ndone\n"


def test_a_terminal_gets_one_line_that_changes(clock):
    stream = Terminal()
    status = StatusLine(stream)
    status.show("step 1")
    clock.now += 0.5
    assert status.is_due
    status.show("step 2")
    status.keep("done")
    assert stream.getvalue() == "\rstep 1\x1b[K\rstep 2\x1b[K\rdone\x1b[K\n"


def test_a_line_longer_than_the_terminal_is_cut(clock, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    StatusLine(stream).show("x" * 50)
    assert stream.getvalue() == "\r" + "x" * 19 + "\x1b[K"


def test_speed_counts_steps_without_pauses_and_without_the_first(clock):
    speed = Speed()
    clock.now += 30.0  # the graph is built
    speed.count_step()
    assert speed.steps_per_second is None
    for _ in range(30):
        clock.now += 0.1
        speed.count_step()
    assert speed.steps_per_second == pytest.approx(10.0, rel=0.01)
    speed.pause()
    clock.now += 500.0  # an evaluation
    for _ in range(30):
        clock.now += 0.1
        speed.count_step()
    assert speed.steps_per_second == pytest.approx(10.0, rel=0.01)


def test_speed_follows_a_change(clock):
    speed = Speed()
    for seconds in [0.1] * 100 + [0.5] * 100:
        clock.now += seconds
        speed.count_step()
    assert speed.steps_per_second == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.4, "59 s"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (3 * 86400 + 4 * 3600 + 59, "3 d 4 h"),
    ],
)
def test_durations_have_two_units(seconds, text):
    assert duration(seconds) == text
