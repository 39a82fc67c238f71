"""The files of a checkpoint, written so that a reader sees the old ones or the whole new ones, never a part."""

import hashlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable


def write_checkpoint(folder: pathlib.Path, step: int, write: Callable[[str], object]) -> None:
    """Writes the files of a step's checkpoint beside their place and moves them there when they are on the disk.

    The index comes last, and without it there is no checkpoint. If anything fails, nothing of the step stays behind.

    Args:
      folder: where the checkpoints lie; made if it is missing.
      step: the step; files of it that are there already are replaced.
      write: writes the checkpoint at the prefix that it is given.
    """
    partial = folder / f".step-{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(str(partial / f"step-{step}"))
        files = sorted(partial.iterdir(), key=lambda file: file.suffix == ".index")
        for file in files:
            # Some file systems tell only now that the disk is full.
            _flush(file)
        remove_checkpoint(folder, step)
        try:
            for file in files:
                file.replace(folder / file.name)
            _flush(folder)
        except BaseException:
            remove_checkpoint(folder, step)
            raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def checkpoint_sha256(prefix: str) -> str:
    """The SHA-256 of a checkpoint's files, in the order of their names: what was evaluated, beyond doubt.

    Raises:
      FileNotFoundError: they are gone.
    """
    digest = hashlib.sha256()
    place = pathlib.Path(prefix)
    files = sorted(place.parent.glob(f"{place.name}.*"))
    if not files:
        raise FileNotFoundError(f"{prefix}: the checkpoint is gone; a training that runs beside this has deleted it")
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def remove_checkpoint(folder: pathlib.Path, step: int) -> None:
    """Deletes the files of a step's checkpoint, the index first: the rest is no checkpoint without it."""
    (folder / f"step-{step}.index").unlink(missing_ok=True)
    for file in folder.glob(f"step-{step}.data-*"):
        file.unlink(missing_ok=True)


def remove_partial(folder: pathlib.Path) -> set[int]:
    """Deletes what processes that ended in the middle of writing have left, and returns the steps of checkpoints
    among it.
    """
    steps = set()
    for entry in folder.glob(".*.partial"):
        if match := re.fullmatch(r"\.step-(\d+)\.partial", entry.name):
            steps.add(int(match[1]))
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
    return steps


def _flush(path: pathlib.Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
