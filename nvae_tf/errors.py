"""What a command writes on standard error: a user's mistake in one line, and TensorFlow's start without its notes."""

import contextlib
import importlib
import os
import re
import sys
import tempfile
import traceback
import types
from collections.abc import Iterator

from nvae_tf.config import NotRegistered

# What stands before the reason in TensorFlow's messages: a heading, where operations were defined, lines of Python.
_HEADINGS = re.compile(r"Graph execution error|Detected at node|<stack traces unavailable>|Node: |File |\s")
# Written at every start on a machine without a GPU, by code that does not know TF_CPP_MIN_LOG_LEVEL yet.
_NOTES = "absl::InitializeLog|oneDNN custom|find cuda drivers|available CPU instructions|enable the following instr"


@contextlib.contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns the errors that a user can cause, ValueError and OSError, into `error: ...` and exit code 2, or their own
    `exit_code`; 130 for Ctrl-C. With the environment variable `NVAE_TF_TRACEBACK` the traceback is printed too.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
    except (ValueError, OSError) as error:
        if os.environ.get("NVAE_TF_TRACEBACK"):
            traceback.print_exc()
        # The system's own errors would begin with [Errno 2].
        text = f"{error.filename}: {error.strerror}" if getattr(error, "errno", None) and error.filename else error
        print(f"error: {text}", file=sys.stderr, flush=True)
        raise SystemExit(getattr(error, "exit_code", 2)) from None


def first_line(error: Exception) -> str:
    """The first line of an exception's message; the name of its class where that is empty."""
    # Pillow's have parts of files as the `repr` of bytes: b'IDAT'.
    return re.sub(r"\bb(?='[^']*')", "", (str(error).strip().splitlines() or [type(error).__name__])[0])


def reason_of_tensorflow(message: str) -> str:
    """TensorFlow's message from the first line that has a cause."""
    lines = [line for line in re.split("(?m)^Node: .*$", message)[-1].splitlines() if line.strip()]
    first = next((number for number, line in enumerate(lines) if not _HEADINGS.match(line)), 0)
    return "\n".join(lines[first:]) or message


@contextlib.contextmanager
def wrap_read_errors(start: str, end: str, kind: type[Exception] = ValueError) -> Iterator[None]:
    """Raises ValueError, or `kind`: `start`, reason and `end`, for the many errors that damaged files lead to."""
    try:
        yield
    except NotRegistered:  # says all that is to be done
        raise
    except Exception as error:
        raise kind(f"{start}{first_line(error)}{end}") from None


@contextlib.contextmanager
def standard_error_into(lines: list[str]) -> Iterator[None]:
    """Adds to `lines` what the block writes to standard error, libraries in C++ too, which don't know `sys.stderr`."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as written:
        standard_error = os.dup(2)
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)
            written.seek(0)
            lines += written.read().decode(errors="replace").splitlines()


def start_tensorflow_quietly() -> None:
    """Imports TensorFlow and looks for devices, without the notes about its build that it writes on standard error."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # That no GPU answers is worth knowing where there is a driver for one.
    notes = _NOTES if os.path.exists("/proc/driver/nvidia") else f"{_NOTES}|failed call to cuInit"
    lines: list[str] = []
    try:
        with standard_error_into(lines):
            import tensorflow as tf

            tf.config.list_physical_devices()
    finally:
        for line in lines:
            if not re.search(notes, line):
                print(line, file=sys.stderr)


def require(module: str, extra: str) -> types.ModuleType:
    """Imports a module that an extra of this package installs; the ValueError has the command that installs it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ValueError(f'{module} is not installed: pip install "nvae_tf[{extra}]"') from None
