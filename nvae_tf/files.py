"""Files that a reader sees complete: the old one or the new one, never a part."""

import contextlib
import hashlib
import os
import pathlib
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator

from nvae_tf.errors import first_line


@contextlib.contextmanager
def atomic_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a file beside `path` to write; it is renamed to `path` when the block ends without an error.

    A missing folder is made. Where the file can't be written, the OSError names `path`, and its `strerror` the reason.
    """
    # Processes of several machines may have the same number.
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        # Pillow says neither which file nor why.
        places = None, str(partial), str(path.parent)
        if error.filename not in places or (error.errno is None and type(error) is not OSError):
            raise
        reason = error.strerror or first_line(error)
        named = type(error)(f"{path}: can't be written ({reason})")
        named.strerror = reason
        raise named from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def atomic_folder(place: pathlib.Path, check_is_free: Callable[[], None]) -> Iterator[pathlib.Path]:
    """Gives a path, not made yet, to write a folder to; after a block without error it is renamed to `place`.

    After an error nothing is left, nor are new parents. `check_is_free` raises an error where `place` can't be made.
    """
    check_is_free()
    missing = [folder for folder in place.parents if not folder.exists()]
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        # The folder inside the temporary one has the usual permissions, for programs that run as another user.
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.partial-", dir=place.parent) as hidden:
            written = pathlib.Path(hidden) / place.name
            yield written
            check_is_free()  # somebody else may have been quicker
            written.rename(place)
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: somebody else uses it by now
            for folder in missing:
                folder.rmdir()
        raise


def atomic_write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file; a text as UTF-8."""
    with atomic_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def file_sha256(path: pathlib.Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def beside_package(name: str) -> pathlib.Path:
    """The folder of scripts or presets called `name`: inside an installed package, beside it in a checkout."""
    package = pathlib.Path(__file__).resolve().parent
    return next(place for place in (package / name, package.parent / name) if place.is_dir())


def git_revision(checkout: pathlib.Path) -> str | None:
    """The commit of a checkout, with "-dirty" where files differ from it; None where it is no checkout."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    if (checkout / ".git").exists():
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    return None


def check_is_no_pattern(path: pathlib.Path) -> None:
    """ValueError for a path that TensorFlow takes for a pattern: it finds nothing there, and deletes others' files."""
    if special := sorted(({*"*?[\\"} - {os.sep}) & {*str(path)}):
        raise ValueError(f"{path}: TensorFlow takes {' '.join(special)} for a pattern; give another name, or rename it")


def check_has_config(folder: pathlib.Path, given: str, fix: str = "give a run folder of nvae-train") -> None:
    """FileNotFoundError, which begins with what was `given`, where a place is no run folder."""
    if not (folder / "config.json").is_file():
        file = "a file, not a run folder (nvae_tf.load reads .keras files)" if folder.is_file() else "no such folder"
        fault = "not a run folder, it has no config.json" if folder.is_dir() else file
        raise FileNotFoundError(f"{given}: {fault}; {fix}")


def check_new_file(path: pathlib.Path, flag: str) -> None:
    """Raises ValueError where something is at `path` already, or a file can't be made there; `flag` named it."""
    if path.exists():
        raise ValueError(f"{flag}: {path} exists already and is not overwritten; remove it or give another name")
    check_writable(path.parent, flag)


def check_new_folder(path: pathlib.Path, flag: str) -> None:
    """Raises ValueError unless a folder can be made at `path`, where an empty one may be; `flag` named it."""
    place = path.resolve()
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise ValueError(f"{flag}: not an empty folder; name a new or empty one")
    if place == pathlib.Path.cwd() or place.is_mount():
        raise ValueError(f"{flag}: a folder that can't be replaced; name another one")
    check_writable(place.parent, flag)


def check_writable(folder: pathlib.Path, flag: str) -> None:
    """Checks that files can be written in a folder, or that it can be made; `flag`, `--workdir=runs/x`, named it."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.exists(place))
    if not existing.is_dir():
        raise ValueError(f"{flag}: {existing} is a file, not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{flag}: nothing can be written in {existing}; make that folder writable, or give another")


def cache_folder() -> pathlib.Path:
    """The folder where this package keeps downloads and statistics for a user."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nvae_tf"
