"""What can be told of a command before TensorFlow or torch is started."""

import importlib.util
import pathlib
import tempfile


def check_torch() -> None:
    """Raises ValueError where torch is not installed; the message says how it is."""
    try:
        found = importlib.util.find_spec("torch")
    except ValueError:
        found = None
    if found is None:
        raise ValueError("published .pt files need PyTorch, an optional extra: `make torch` installs it")


def check_file(path: pathlib.Path) -> None:
    """Raises FileNotFoundError or ValueError unless there is a file at `path`."""
    if path.is_dir():
        raise ValueError(f"--checkpoint={path}: a folder; give the path of a published checkpoint (.pt)")
    if not path.is_file():
        raise FileNotFoundError(f"--checkpoint={path}: no such file; give the path of a published checkpoint (.pt)")


def check_new_file(flag: str, path: pathlib.Path) -> None:
    """Raises ValueError if a new file can't be written at `path`, or if there is something."""
    if path.exists():
        raise ValueError(f"{flag}={path}: is there already; give another name")
    parent = path.absolute().parent
    if not parent.is_dir():
        raise ValueError(f"{flag}={path}: there is no folder {parent}; make it, or give another name")
    check_writable(flag, path, parent)


def check_writable(flag: str, path: pathlib.Path, folder: pathlib.Path) -> None:
    """Raises ValueError if nothing named as `path` can be made in a folder.

    It is tried: permissions say nothing of read-only disks, of folders of the system, or of names that are too long.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.partial-", dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{flag}={path}: can't be made, {folder} can't be written to ({error.strerror}); give another name"
        ) from error


def check_apart(report: pathlib.Path, output: pathlib.Path) -> None:
    """Raises ValueError if the report would lie in the run folder, or where that or a folder above it is to be made."""
    file, folder = report.resolve(), output.resolve()
    if folder in (file, *file.parents) or file in folder.parents:
        raise ValueError(f"--report={report}: in the way of --output={output}, which is made as a whole; name another")
