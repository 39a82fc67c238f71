"""Iterators over images that Python reads end before Python does."""

import atexit
import weakref
from collections.abc import Generator

_OPEN: weakref.WeakSet[Generator] = weakref.WeakSet()


def closed_at_exit(iteration: Generator) -> Generator:
    """The same generator, which is closed when the process ends, if it still runs.

    Threads of tf.data that call Python must be gone before the interpreter is taken down: otherwise they wait for its
    lock, and it waits for them, for ever.
    """
    _OPEN.add(iteration)
    return iteration


@atexit.register
def _close_all() -> None:
    for iteration in list(_OPEN):
        iteration.close()
