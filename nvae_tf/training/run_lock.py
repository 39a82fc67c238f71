"""One training at a time in a run folder: a lock that the operating system releases when its holder ends or dies."""

import contextlib
import datetime
import os
import pathlib
import socket
from collections.abc import Callable, Iterator

from nvae_tf.training.run_folder import RunFolder, check_place

try:
    import fcntl
except ImportError:
    # Windows. Others can't read a byte that is locked there, so it lies far behind the holder's name.
    import msvcrt

    fcntl = None
    _LOCKED_BYTE = 2**20

_LONGEST_NAME = 300


@contextlib.contextmanager
def lock_for_training(folder: RunFolder, warn: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock of a run folder, which is made if it is missing; if it is still empty at the end, it is removed.

    Args:
      folder: the run's.
      warn: takes a line for people where the file system has no locks; the block runs without one then.

    Raises:
      ValueError: another process holds the lock, or the folder holds something else than a run.
      OSError: the folder can't be made or written to.
    """
    check_place(folder)
    made = [place for place in (folder.path, *folder.path.parents) if not place.exists()]
    try:
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            descriptor = _open_locked(folder, warn)
        except OSError as error:
            raise OSError(
                f"{folder.path}: nothing can be written there ({error.strerror}); give another --workdir"
            ) from error
        try:
            yield
        finally:
            # While it is locked: who opens it before finds a file without a name, see `_open_locked`.
            with contextlib.suppress(OSError):
                folder.lock_file.unlink()
            os.close(descriptor)
    finally:
        for place in made:
            with contextlib.suppress(OSError):
                place.rmdir()


def _open_locked(folder: RunFolder, warn: Callable[[str], None]) -> int:
    """The descriptor of the lock file, locked, with this process's name in it."""
    while True:
        descriptor = os.open(folder.lock_file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, folder, warn)
            if _is_at(folder.lock_file, descriptor):
                now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}, since {now}".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, folder: RunFolder, warn: Callable[[str], None]) -> None:
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        holder = os.read(descriptor, _LONGEST_NAME).decode(errors="replace").strip() or "a process that has just begun"
        raise ValueError(
            f"{folder.path}: another training writes into this folder: {holder}. Wait until it has ended, or give "
            f"another --workdir; if its machine is gone, delete {folder.lock_file}"
        ) from None
    except OSError as error:
        warn(
            f"{folder.path}: this file system has no locks ({error.strerror}); make sure that no other training writes "
            "into this folder."
        )


def _is_at(file: pathlib.Path, descriptor: int) -> bool:
    """Whether an open file is the one that has this name now."""
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False
