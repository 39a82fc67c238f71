"""Where the commands read and write, checked before TensorFlow and torch start."""

import contextlib
import importlib.util
import pathlib
from collections.abc import Iterator

from nvae_tf.errors import first_line
from nvae_tf.files import atomic_folder, check_writable


def check_torch() -> None:
    """Raises ValueError where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        raise ValueError('published .pt files need PyTorch: pip install "nvae_tf[torch]", or `make torch`')


def check_file(path: pathlib.Path) -> None:
    """Raises FileNotFoundError unless there is a file at `path`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give the path of a published checkpoint (.pt)")


def check_import_places(checkpoint: pathlib.Path, output: pathlib.Path, report: pathlib.Path | None) -> None:
    """Raises FileNotFoundError where there is no such checkpoint, ValueError where the other two can't be made."""
    check_file(checkpoint)
    check_output_is_free(output)
    if report is not None:
        check_new_file("--report", report)
        file, folder = report.resolve(), output.resolve()
        if file.is_relative_to(folder) or folder.is_relative_to(file):
            raise ValueError(f"--report={report}: in the way of --output={output}; name another file")


def check_new_file(flag: str, path: pathlib.Path) -> None:
    """Raises ValueError if a new file can't be written at `path`, or if something exists there."""
    if path.exists():
        raise ValueError(f"{flag}={path}: is there already; give another name")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{flag}={path}: there is no folder {path.absolute().parent}; make it, or give another name")
    check_writable(path.parent, f"{flag}={path}")


def check_output_is_free(output: pathlib.Path) -> None:
    """Raises ValueError unless a run folder can be created at `output`, which may be missing or an empty folder."""
    place = output.resolve()
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise ValueError(f"--output={output}: not an empty folder; name a new or empty one")
    if place == pathlib.Path.cwd() or place.is_mount():
        raise ValueError(f"--output={output}: a folder that can't be replaced; name another one")
    check_writable(place.parent, f"--output={output}")


@contextlib.contextmanager
def new_run_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a hidden folder, `.NAME.partial-*`, that becomes `output` if the block ends well; else nothing is left."""
    place = output.resolve()
    try:
        with atomic_folder(place, lambda: check_output_is_free(output)) as written:
            written.mkdir()
            yield written
    except OSError as error:
        reason = error.strerror or first_line(error).rpartition(f"/{place.name}/")[2]
        raise OSError(f"--output={output}: could not be written ({reason}). Make room, or name another disk") from error
