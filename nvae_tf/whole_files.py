"""Files that a reader sees whole: the old one or the new one, never a part."""

import contextlib
import os
import pathlib
import socket
from collections.abc import Iterator

import numpy as np

from nvae_tf.command_errors import first_line


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a file beside `path` to write; it comes into its place when the block ends without an error."""
    # Of several machines' processes more than one may have the same number.
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        # The hidden file is gone when the message is read.
        if error.filename == str(partial):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a text file, UTF-8."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_arrays(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a `.npz` file."""
    with whole_file(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """All arrays of a `.npz` file.

    Raises:
      FileNotFoundError: there is none.
      ValueError: the file is damaged or something else; the message has the reason alone.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise
    # Of damaged files zipfile, zlib and NumPy raise errors of many kinds.
    except Exception as error:
        raise ValueError(first_line(error)) from error
