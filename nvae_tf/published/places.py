"""Where the commands read and write, checked before TensorFlow and torch start; run folders are written atomically."""

import contextlib
import importlib.util
import pathlib
import tempfile
from collections.abc import Iterator

from nvae_tf.config import check
from nvae_tf.errors import first_line
from nvae_tf.files import atomic_folder


def check_torch() -> None:
    """Raises ValueError where torch is not installed."""
    message = 'published .pt files need PyTorch: pip install "nvae_tf[torch]", or `make torch`'
    check(importlib.util.find_spec("torch") is not None, message)


def check_file(path: pathlib.Path) -> None:
    """Raises FileNotFoundError unless there is a file at `path`."""
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"{path}: {what}; give the path of a published checkpoint (.pt)")


def check_import_places(checkpoint: pathlib.Path, output: pathlib.Path, report: pathlib.Path | None) -> None:
    """Raises FileNotFoundError where there is no such checkpoint, ValueError where the other two can't be made."""
    check_file(checkpoint)
    check_output_is_free(output)
    if report is not None:
        check_new_file("--report", report)
        file, folder = report.resolve(), output.resolve()
        is_apart = folder not in (file, *file.parents) and file not in folder.parents
        check(is_apart, f"--report={report}: in the way of --output={output}, which is made as a whole; name another")


def check_new_file(flag: str, path: pathlib.Path) -> None:
    """Raises ValueError if a new file can't be written at `path`, or if something exists there."""
    check(not path.exists(), f"{flag}={path}: is there already; give another name")
    parent = path.absolute().parent
    check(parent.is_dir(), f"{flag}={path}: there is no folder {parent}; make it, or give another name")
    _check_writable(flag, path, parent)


def check_output_is_free(output: pathlib.Path) -> None:
    """Raises ValueError unless a run folder can be created at `output`, which may be missing or empty."""
    place = output.resolve()
    if place.exists():
        check(place.is_dir(), f"--output={output}: a file; name a new or an empty folder")
        entry_name = min((entry.name for entry in place.iterdir()), default=None)
        check(entry_name is None, f"--output={output}: not empty, it holds {entry_name}; name a new or an empty folder")
        # An empty folder is replaced by the whole one.
        kinds = {"a mount point": place.is_mount(), "the folder that the command runs in": place == pathlib.Path.cwd()}
        for kind, is_it in kinds.items():
            check(not is_it, f"--output={output}: {kind}, which can't be replaced; name a new folder, {output / 'run'}")
    parent = next(folder for folder in place.parents if folder.exists())
    check(parent.is_dir(), f"--output={output}: can't be made, {parent} is a file; name another folder")
    _check_writable("--output", output, parent)


def _check_writable(flag: str, path: pathlib.Path, folder: pathlib.Path) -> None:
    """Tries it: permissions say nothing of read-only disks, the system's folders, or names that are too long."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.partial-", dir=folder):
            pass
    except OSError as error:
        reason = f"{folder} can't be written to ({error.strerror})"
        raise ValueError(f"{flag}={path}: can't be made, {reason}; give another name") from error


@contextlib.contextmanager
def new_run_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a hidden folder, `.NAME.partial-*`, that becomes `output` if the block ends well; else nothing is left."""
    check_output_is_free(output)  # Here too, for its own errors are clear.
    place = output.resolve()
    try:
        with atomic_folder(place, lambda: check_output_is_free(output)) as written:
            written.mkdir()
            yield written
    except OSError as error:
        reason = error.strerror or first_line(error).rpartition(f"/{place.name}/")[2]
        failed = f"--output={output}: could not be written, and nothing of it is left ({reason})"
        raise OSError(f"{failed}. Make room on its disk, or name a folder on another one") from error
