"""The progress of every command: a bar on a terminal, a plain line a minute elsewhere."""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TextIO

_CLEARED = "\r\x1b[K"  # a terminal's line, which is written again


class Report(NamedTuple):
    """Where work that may take minutes reports: a line with the fraction that is done, and text that stays."""

    progress: Callable[[str, float], object] = lambda text, fraction: None
    print: Callable[[str], object] = lambda text: None


class StatusLine:
    """A line of text, with a bar where the fraction that is done is known."""

    def __init__(self, stream: TextIO | None = None):
        self._stream = stream or sys.stdout
        self._is_terminal = self._stream.isatty()
        self._seconds_between_lines = 0.2 if self._is_terminal else 60.0
        self._shown_at = float("-inf")

    @property
    def is_due(self) -> bool:
        """Whether enough time has passed since the line was shown."""
        return time.monotonic() - self._shown_at >= self._seconds_between_lines

    def show(self, text: str, fraction: float | None = None) -> None:
        """Shows a line, after a bar of the fraction (0 to 1) that is done; on a terminal the next line replaces it."""
        self._shown_at = time.monotonic()
        if self._is_terminal:
            bar = "" if fraction is None else f"{'#' * round(6 * fraction):6} "
            self._write(f"{bar}{text}"[: shutil.get_terminal_size().columns - 1], end="")
        else:
            self.print(text)

    def show_if_due(self, text: str, fraction: float | None = None) -> None:
        """Shows a line, if enough time has passed since the last."""
        if self.is_due:
            self.show(text, fraction)

    def announce(self, text: str) -> None:
        """Shows on a terminal what begins now and may take long; in a log only if a line is due."""
        if self._is_terminal or self.is_due:
            self.show(text)

    def print(self, text: str) -> None:
        """Writes a line that stays."""
        self._write(text, end="\n")

    def _write(self, text: str, end: str) -> None:
        # Names of files need not be text.
        encoding = self._stream.encoding or "utf-8"
        text = text.encode(encoding, "backslashreplace").decode(encoding)
        with contextlib.suppress(OSError):  # a run continues when the terminal that it writes to is closed
            print(f"{_CLEARED if self._is_terminal else ''}{text}", end=end, file=self._stream, flush=True)

    def report(self) -> Report:
        """This line as the place where the loading of data reports."""
        self._shown_at = time.monotonic()  # a moment's work need not be reported
        return Report(self.show_if_due, self.print)


class ImageProgress:
    """Images done, images per second and the time left; `report` takes the line and the fraction that is done."""

    def __init__(self, report: Callable[[str, float], object], total: int):
        self._report, self._total = report, total
        self._done = 0
        self._started = time.monotonic()

    def show(self, done_of_batch: int) -> None:
        """Reports that this number of images of the current batch is done."""
        done, seconds = self._done + done_of_batch, time.monotonic() - self._started
        text = f"{done:,} of {self._total:,} images"
        if done and seconds > 1.0:
            text += f", {done / seconds:,.3g} images/s, {duration((self._total - done) * seconds / done)} left"
        self._report(text, done / self._total)

    def add(self, images: int) -> None:
        """Counts the images of a finished batch, and reports them."""
        self._done += images
        self.show(0)


def image_bar(total: int) -> Any:
    """A bar of images, on a terminal alone: a context manager, whose `update` takes how many more are done."""
    from tqdm import tqdm  # here, as every command imports this module for its --help

    return tqdm(total=total, unit=" images", leave=False, disable=None)


class Speed:
    """Recent steps per second, without the pauses between them."""

    def __init__(self):
        from tqdm.std import EMA

        self._seconds_per_step, self._last = EMA(smoothing=0.05), None

    @property
    def steps_per_second(self) -> float | None:
        """Steps per second; None before the second step."""
        seconds = self._seconds_per_step()
        return 1.0 / seconds if seconds else None

    def pause(self) -> None:
        """Excludes the time from now until the next step."""
        self._last = None

    def count_step(self) -> None:
        """Counts a step. The first after a pause only starts the clock: it may build a graph."""
        now = time.monotonic()
        if self._last is not None:
            self._seconds_per_step(now - self._last)
        self._last = now


def duration(seconds: float) -> str:
    """Seconds in the two largest units: `42 s`, `3 min 5 s`, `2 h 10 min`, `3 d 4 h`."""
    seconds = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (name, size), (smaller_name, smaller_size) in zip(units, units[1:], strict=False):
        if seconds >= size:
            return f"{seconds // size} {name} {seconds % size // smaller_size} {smaller_name}"
    return f"{seconds} s"


def counted(number: int, noun: str) -> str:
    """`1 image`, `1,437 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
