"""Where the loading of data tells what it is doing, since it may take minutes."""

from collections.abc import Callable
from typing import NamedTuple


def _say_nothing(text: str) -> None:
    del text


class Report(NamedTuple):
    """Two ways to tell.

    Attributes:
      progress: takes a line that the next one may replace.
      keep: takes text that should stay to be read.
    """

    progress: Callable[[str], None] = _say_nothing
    keep: Callable[[str], None] = _say_nothing
