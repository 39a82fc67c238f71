"""A bar on standard error for jobs that take a while."""

import math
import shutil
import sys
import time

_WIDTH = 30
_SECONDS_BETWEEN = 0.1


class ProgressBar:
    """Shows how much is done, on a terminal only; as a context manager it clears its line at the end.

    Args:
      total: how much there is to do.
      what: of what, e.g. `images`.
    """

    def __init__(self, total: int, what: str):
        self._total, self._what = total, what
        self._began, self._shown = time.monotonic(), -math.inf
        self._visible = sys.stderr.isatty()

    def show(self, done: int) -> None:
        """Draws the bar, not oftener than a person can read it."""
        now = time.monotonic()
        if not self._visible or (now - self._shown < _SECONDS_BETWEEN and done < self._total):
            return
        self._shown = now
        sys.stderr.write("\r" + self.line(done, now - self._began) + "\033[K")
        sys.stderr.flush()

    def line(self, done: int, seconds: float) -> str:
        """The bar's text after so many seconds."""
        full = _WIDTH * done // self._total
        left = f", {seconds / done * (self._total - done):.0f} s left" if done else ""
        text = f"[{'#' * full}{'.' * (_WIDTH - full)}] {done:,} of {self._total:,} {self._what}{left}"
        return text[: shutil.get_terminal_size().columns - 1]

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error: object) -> None:
        if self._visible:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()
