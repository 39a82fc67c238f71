"""How far an evaluation is: a bar, images a second, and the time that is left."""

import time
from collections.abc import Callable

from nvae_tf.progress import StatusLine, duration

_WIDTH = 24


class ImageProgress:
    """Counts images of batches that may come in any order.

    Args:
      status: where it is shown.
      total: how many images there are.
      done: how many were done before.
    """

    def __init__(self, status: StatusLine, total: int, done: int = 0):
        self._status, self._total = status, total
        self._before = self._done = done
        self._started = time.monotonic()

    def of_batch(self, first: int) -> Callable[[int], None]:
        """What to call with the number of the image that a batch has come to, counted from `first` of the whole set."""
        done = self._done

        def show(reached: int) -> None:
            self._done = done + reached - first
            self._status.show_if_due(self.line(time.monotonic() - self._started))

        return show

    def count_other(self, images: int) -> None:
        """Another process has done so many."""
        self._before += images
        self._done += images

    def line(self, seconds: float) -> str:
        """What is shown after so many seconds."""
        part = self._done / self._total
        filled = round(_WIDTH * part)
        text = f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {self._done:,} of {self._total:,} images"
        here = self._done - self._before
        if here and seconds > 1.0:
            rate = here / seconds
            text += f", {rate:,.3g} images/s, {duration((self._total - self._done) / rate)} left"
        return text
