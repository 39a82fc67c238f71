"""The files of checkpoints: how they are named, written and removed, and which of a folder can be used.

A checkpoint is TensorFlow's files `step-N.index` and `step-N.data-*`. The index is moved into place last: without it
there is no checkpoint, so a killed process leaves none that is half-written.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.errors import first_line
from nvae_tf.files import file_sha256

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
BEST = "best"  # the folder of the best checkpoint, in that of all checkpoints
# The end of messages about missing checkpoints.
BEST_INSTEAD = '. --checkpoint=best, or checkpoint="best" in Python, takes the one with the best test score, if any'
_STEP, _SCORE = f"step{VALUE}", f"best_score{VALUE}"
# A checkpoint with NaN or infinity in one of these can't be continued.
_FINITE = ("model/", "averages/", "optimizer/")
_NONE = float("inf"), 0, None  # the score, step and prefix where there is no checkpoint


def steps_of_files(folder: pathlib.Path, kind: str = "index") -> list[int]:
    """The steps for which a folder has an `index` or a `data` file, in order."""
    matches = (re.fullmatch(rf"step-(\d+)\.({kind})(-.*)?", entry.name) for entry in folder.glob("step-*"))
    return sorted({int(match[1]) for match in matches if match})


def steps_of_any_files(folder: pathlib.Path) -> set[int]:
    """The steps for which a folder has an `index` file, a `data` file, or both."""
    return set(steps_of_files(folder, "index|data"))


def step_of(prefix: str) -> int:
    """The step in the prefix of a checkpoint's files."""
    return int(prefix.rpartition("-")[2])


def write_checkpoint(folder: pathlib.Path, step: int, write: Callable[[str], object]) -> None:
    """Writes a step's checkpoint, by `write` at a prefix, beside its place and moves it there when it is on disk."""
    partial = folder / f".step-{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(f"{partial}/step-{step}")
        files = sorted(partial.iterdir(), key=lambda file: file.suffix == ".index")
        for file in files:
            # Some file systems report a full disk only when a file is flushed.
            with file.open("rb") as written:
                os.fsync(written.fileno())
        remove_checkpoint(folder, step)
        for file in files:
            file.replace(folder / file.name)
        # The names too are on disk before older checkpoints are removed.
        descriptor = os.open(folder, os.O_RDONLY)
        with contextlib.suppress(OSError):  # not all file systems can
            os.fsync(descriptor)
        os.close(descriptor)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_checkpoint(folder: pathlib.Path, step: int) -> None:
    """Removes the files of a step, the index first: without it there is no checkpoint."""
    for file in (folder / f"step-{step}.index", *folder.glob(f"step-{step}.data-*")):
        file.unlink(missing_ok=True)


def remove_partial(folder: pathlib.Path) -> set[int]:
    """Removes what killed processes have left half-written, and returns the steps of checkpoints among it."""
    steps = set()
    for entry in folder.glob(".*.partial"):
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
            steps |= {int(step) for step in re.findall(r"^\.step-(\d+)\.", entry.name)}
        else:
            entry.unlink(missing_ok=True)
    return steps


def read_list(folder: pathlib.Path) -> list[int]:
    """The steps in TensorFlow's list of a folder's checkpoints; empty where the list is missing or unreadable."""
    file = folder / "checkpoint"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    return [int(step) for step in re.findall(r'^all_model_checkpoint_paths: ".*step-(\d+)"$', text, re.MULTILINE)]


def checkpoint_sha256(prefix: str) -> str:
    """The SHA-256 of a checkpoint's files; FileNotFoundError where they are gone."""
    place = pathlib.Path(prefix)
    digests = [bytes.fromhex(file_sha256(file)) for file in sorted(place.parent.glob(f"{place.name}.*"))]
    if not digests:
        raise FileNotFoundError(f"{prefix}: the checkpoint is gone; a training that runs now has deleted it")
    return hashlib.sha256(b"".join(digests)).hexdigest()


def stored_shapes(prefix: str) -> dict[str, list[int]]:
    """The shapes of a checkpoint's tensors by their names; ValueError where it is damaged or gone."""
    with wrap_checkpoint_errors(prefix):
        return tf.train.load_checkpoint(prefix).get_variable_to_shape_map()


@contextlib.contextmanager
def wrap_checkpoint_errors(prefix: str) -> Iterator[None]:
    """Raises a ValueError for the many kinds of errors that TensorFlow raises where a checkpoint is damaged or gone."""
    try:
        yield
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:
        fault = f"the checkpoint is damaged ({first_line(error)}). Restore its files from a copy, or delete them"
        if not pathlib.Path(f"{prefix}.index").exists():
            fault = "the checkpoint is gone; a training that runs now has replaced it by a later one. Try again"
        raise ValueError(f"{prefix}: {fault}") from error


class ChosenCheckpoint(NamedTuple):
    """The checkpoint of a folder to use, if there is one, and why others can't be used."""

    prefix: str | None  # the beginning of its files' names
    step: int  # 0 where there is none
    unusable: dict[int, str]  # step -> reason
    score: float  # the score of a best checkpoint

    def passed_over_line(self) -> str:
        """Which checkpoints can't be used, why, and which is used instead."""
        unusable = "; ".join(f"step-{step} ({reason})" for step, reason in self.unusable.items())
        return f"passed over {unusable}; {f'step-{self.step} is used' if self.prefix else 'there is none before'}"


def newest_whole(folder: pathlib.Path) -> ChosenCheckpoint:
    """The newest checkpoint whose numbers can all be read; ValueError where all are damaged."""
    unusable: dict[int, str] = {}
    score, step, prefix = next(_usable(folder, unusable), _NONE)
    # What TensorFlow's list names and nobody has, of a folder that was copied in part.
    gone = {*read_list(folder)} - steps_of_any_files(folder)
    unusable |= {later: "its files are gone" for later in gone if prefix is None or later > step}
    if prefix is None and (steps := steps_of_files(folder)):
        latest = steps[-1]
        raise ValueError(
            f"{folder}/step-{latest}: the checkpoint is damaged ({unusable[latest]}), and there is no other that is "
            f"whole. Restore its files from a copy, or delete {folder} to start the run anew{BEST_INSTEAD}"
        )
    return ChosenCheckpoint(prefix, step, unusable, score)


def find_best(folder: pathlib.Path) -> ChosenCheckpoint:
    """The whole checkpoint with the lowest score in a folder of the best; one without a score is the worst."""
    # A killed process may have left the one before.
    unusable: dict[int, str] = {}
    score, step, prefix = min(_usable(folder, unusable), default=_NONE)
    return ChosenCheckpoint(prefix, step, unusable, score)


def _usable(folder: pathlib.Path, unusable: dict[int, str]) -> Iterator[tuple[float, int, str]]:
    """Yields score (infinity without one), step and prefix of whole checkpoints, the newest first.

    Why others can't be used is put into `unusable`.
    """
    for step in sorted(steps_of_any_files(folder), reverse=True):
        prefix = f"{folder}/step-{step}"
        try:
            reader = tf.train.load_checkpoint(prefix)
            if reader.has_tensor(_STEP) and (stored := int(reader.get_tensor(_STEP))) != step:
                raise ValueError(f"its files hold the checkpoint of step {stored}")
            for name in reader.get_variable_to_shape_map():
                value = reader.get_tensor(name)
                if name.startswith(_FINITE) and value.dtype.kind == "f" and not np.isfinite(value).all():
                    raise ValueError(f"{name.partition('/.ATTRIBUTES')[0]} is not finite")
            yield float(reader.get_tensor(_SCORE)) if reader.has_tensor(_SCORE) else float("inf"), step, prefix
        except (MemoryError, tf.errors.ResourceExhaustedError):
            raise
        except Exception as error:
            unusable[step] = first_line(error)
