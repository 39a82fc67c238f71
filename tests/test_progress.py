import io
import os
import pty
import types

import pytest

from nvae_tf import progress
from nvae_tf.progress import ImageProgress, Speed, StatusLine, duration


@pytest.fixture
def clock(monkeypatch):
    """Stands for the `time` module."""
    clock = types.SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_a_plain_line_a_minute(clock):
    stream = io.StringIO()
    status = StatusLine(stream)
    for text in ("step 1", "step 20", "step 50"):
        status.show_if_due(text, 0.5)
        clock.now += 31.0
    status.print("done")
    assert stream.getvalue() == "step 1\nstep 50\ndone\n"


@pytest.mark.parametrize("width", [40, 80])
def test_a_terminal_gets_one_line_with_a_bar_that_is_cut_to_its_width(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    reader, writer = pty.openpty()
    with open(writer, "w", encoding="ascii") as stream:
        status = StatusLine(stream)
        status.show_if_due("loading " + "x" * 90)
        status.show("step 50/100  loss 3.25 " + "x" * 90, 0.5)
        status.print("done \udcff")
    output = b""
    # The system hands on in pieces what was written.
    while not output.endswith(b"udcff\r\n"):
        output += os.read(reader, 10_000)
    os.close(reader)
    _, loading, step, done, _ = output.decode().replace("\x1b[K", "").split("\r")
    assert loading.startswith("loading xxx") and step.startswith("###    step 50/100  loss 3.25 xxx")
    assert len(loading) < width and len(step) < width and done == "done \\udcff"


def test_speed_counts_steps_without_pauses_and_without_the_first_and_follows_a_change(clock):
    speed = Speed()
    clock.now += 30.0  # the graph is built
    speed.count_step()
    assert speed.steps_per_second is None
    for pause in (500.0, 0.0):
        for _ in range(30):
            clock.now += 0.1
            speed.count_step()
        assert speed.steps_per_second == pytest.approx(10.0, rel=0.01)
        speed.pause()
        clock.now += pause  # an evaluation
    for _ in range(100):
        clock.now += 0.5
        speed.count_step()
    assert speed.steps_per_second == pytest.approx(2.0, rel=0.1)


def test_progress_counts_batches_and_shows_what_is_left(clock):
    shown = []
    progress = ImageProgress(lambda text, fraction: shown.append((text, fraction)), total=100)
    progress.show(0)
    clock.now += 2.0
    progress.show(10)
    clock.now += 6.0
    progress.add(40)
    assert shown[0] == ("0 of 100 images", 0.0)
    assert shown[1] == ("10 of 100 images, 5 images/s, 18 s left", 0.1)
    assert shown[2] == ("40 of 100 images, 5 images/s, 12 s left", 0.4)


def test_durations_have_two_units():
    texts = {0.2: "0 s", 59.4: "59 s", 185: "3 min 5 s", 7800: "2 h 10 min", 273659: "3 d 4 h"}
    assert {seconds: duration(seconds) for seconds in texts} == texts
