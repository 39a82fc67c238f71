"""What libraries written in C++ say on standard error, past Python."""

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def native_messages_kept_back() -> Iterator[None]:
    """Keeps them from the terminal: TFLite's converter answers a failure with all of the graph, and the interpreter
    that it takes the ranges of int8 with tells its delegate. What an exception says is not touched.
    """
    sys.stderr.flush()
    standard_error = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
