"""How every command tells a user's mistake: one line and exit code 2 instead of a traceback."""

import contextlib
import importlib
import os
import sys
import traceback
import types
from collections.abc import Iterator

USER_ERROR_CODE = 2
INTERRUPTED_CODE = 130
TRACEBACK_VARIABLE = "NVAE_TF_TRACEBACK"


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns the errors that a user can cause into `error: ...` on standard error and exit code 2.

    Those are ValueError (a setting, an image, a checkpoint that does not fit), ConnectionError (data that
    can't be fetched) and the other OSErrors of files and folders (missing, existing, not writable). With the
    environment variable `NVAE_TF_TRACEBACK` set to something, the traceback is printed too. Ctrl-C ends with code 130.

    Example:
      >>> def main(_):
      ...     with exit_on_user_error():
      ...         run_everything()

    Raises:
      SystemExit: code 2 for such an error, 130 for Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(INTERRUPTED_CODE) from None
    except (ValueError, OSError) as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(USER_ERROR_CODE) from None


def first_line(error: Exception) -> str:
    """What an exception says, in one line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def require(module: str, extra: str) -> types.ModuleType:
    """Imports and returns a module that an extra of this package installs.

    Raises:
      ValueError: it is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ValueError(f'{module} is not installed: pip install "nvae_tf[{extra}]"') from None
