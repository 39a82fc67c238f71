"""What a person sees of a run: one line written anew on a terminal, a plain line now and then elsewhere."""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, TextIO

_SECONDS_BETWEEN_UPDATES = 0.2
_SECONDS_BETWEEN_LINES = 10.0
_CLEAR_TO_END = "\x1b[K"


class Report(NamedTuple):
    """Where work that may take minutes reports: a line that the next one may replace, and text that stays."""

    progress: Callable[[str], object] = lambda text: None
    keep: Callable[[str], object] = lambda text: None


class StatusLine:
    """A line of text that is shown now and then; never more often than a reader or a log file wants it."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stdout
        self._is_terminal = self._stream.isatty()
        self._interval = _SECONDS_BETWEEN_UPDATES if self._is_terminal else _SECONDS_BETWEEN_LINES
        self._shown_at = float("-inf")

    @property
    def is_due(self) -> bool:
        """Whether enough time has passed since the line was shown."""
        return time.monotonic() - self._shown_at >= self._interval

    def show(self, text: str) -> None:
        """Shows a line that the next one replaces, where that is possible."""
        self._shown_at = time.monotonic()
        if self._is_terminal:
            columns = shutil.get_terminal_size().columns
            self._write(f"\r{text[: columns - 1]}{_CLEAR_TO_END}")
        else:
            self._write(f"{text}\n")

    def show_if_due(self, text: str) -> None:
        """Shows a line, if enough time has passed since the last."""
        if self.is_due:
            self.show(text)

    def keep(self, text: str) -> None:
        """Writes a line that stays."""
        self._write(f"\r{text}{_CLEAR_TO_END}\n" if self._is_terminal else f"{text}\n")

    def _write(self, text: str) -> None:
        # Names of files need not be text.
        encoding = self._stream.encoding or "utf-8"
        # A run goes on when the terminal that it writes to is closed.
        with contextlib.suppress(OSError):
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()

    def report(self) -> Report:
        """This line as the place where the loading of data reports."""
        # A moment's work need not be reported.
        self._shown_at = time.monotonic()
        return Report(self.show_if_due, self.keep)


class Speed:
    """Steps a second of late, without the pauses between them."""

    _WEIGHT_OF_NEW = 0.3

    def __init__(self):
        self.steps_per_second: float | None = None
        self._steps = 0
        self._started: float | None = None

    def pause(self) -> None:
        """What comes now, until the next step, does not count."""
        self._measure()
        self._started = None

    def count_step(self) -> None:
        """One step is done. The first after a pause starts the clock and does not count: it may build a graph."""
        if self._started is None:
            self._started = time.monotonic()
            self._steps = 0
            return
        self._steps += 1
        if time.monotonic() - self._started > 1.0:
            self._measure()

    def _measure(self) -> None:
        now = time.monotonic()
        if self._steps and self._started is not None and now > self._started:
            latest = self._steps / (now - self._started)
            before = latest if self.steps_per_second is None else self.steps_per_second
            self.steps_per_second = before + self._WEIGHT_OF_NEW * (latest - before)
            self._started, self._steps = now, 0


def duration(seconds: float) -> str:
    """Seconds as people say them: `42 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    seconds = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (name, size), (smaller_name, smaller_size) in zip(units, units[1:], strict=False):
        if seconds >= size:
            return f"{seconds // size} {name} {seconds % size // smaller_size} {smaller_name}"
    return f"{seconds} s"
