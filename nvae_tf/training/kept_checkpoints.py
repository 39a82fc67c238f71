"""Which checkpoints of a folder are kept: the last ones, and now and then one for good."""

import dataclasses
import pathlib
import re
import time
from collections.abc import Collection

import tensorflow as tf

from nvae_tf.files import atomic_write
from nvae_tf.training.checkpoint_files import remove_checkpoint

# TensorFlow's name, for `tf.train.latest_checkpoint`.
_LIST = "checkpoint"
_SECONDS = 3600.0


@dataclasses.dataclass
class CheckpointList:
    """What the list file says.

    Attributes:
      written: when the checkpoint of each step was written, in seconds since 1970, oldest first, 0 where that is not
        known; those that are kept for good are not among them.
      kept_at: when the last of those that are kept for good was written; before there is one, when the run began.
    """

    written: dict[int, float]
    kept_at: float


class KeptCheckpoints:
    """The list of a folder's checkpoints, and the deletion of old ones.

    That of step 0, where a run goes back to if it diverges early, is deleted when there is a later one.

    Args:
      folder: where the checkpoints lie.
      keep: how many to keep, the last ones.
      keep_every_hours: of the others one is kept for good when this time has passed since the one before; 0: none.
    """

    def __init__(self, folder: pathlib.Path, keep: int, keep_every_hours: float):
        self._folder, self._keep, self._keep_every_hours = folder, keep, keep_every_hours
        self._list = read_list(folder) or CheckpointList({}, time.time())

    def take_over(self, newest: int, passed_over: Collection[int]) -> None:
        """Brings the list up to date with the folder, where a process was killed, or files were deleted or damaged.

        Args:
          newest: the step that the run goes on from.
          passed_over: steps whose checkpoints can't be used; they do not count as kept, and their files stay.
        """
        listed = read_list(self._folder)
        whole = [step for step in steps_of_files(self._folder, "index") if step not in passed_over]
        if listed is None:
            # Those that are kept for good are older than the last ones.
            kept, before = whole[-self._keep :], self._list
        else:
            last = max(listed.written, default=-1)
            kept, before = [step for step in whole if step in listed.written or step > last], listed
        self._list = CheckpointList(
            {step: before.written.get(step) or self._age(step) for step in kept}, before.kept_at
        )
        if self._list != listed:
            self._write()
        for step in steps_of_files(self._folder, "data"):
            if step < newest and not (self._folder / f"step-{step}.index").exists():
                # The deletion was cut short.
                remove_checkpoint(self._folder, step)

    def add(self, step: int) -> None:
        """Puts a checkpoint that was written on the list, and deletes the oldest where there are too many."""
        written = self._list.written
        written.pop(step, None)
        written[step] = time.time()
        # Before and after: a process that is killed in between leaves a list that names deleted ones, and not ones that
        # nobody deletes.
        self._write()
        while len(written) > self._keep or (len(written) > 1 and 0 in written):
            oldest = 0 if 0 in written else next(iter(written))
            time_of_oldest = written.pop(oldest)
            # A clock that was ahead and is right again: the hours count from here on.
            self._list.kept_at = min(self._list.kept_at, time_of_oldest)
            if oldest > 0 and 0.0 < self._keep_every_hours * _SECONDS <= time_of_oldest - self._list.kept_at:
                self._list.kept_at = time_of_oldest
            else:
                remove_checkpoint(self._folder, oldest)
        self._write()

    def _age(self, step: int) -> float:
        return (self._folder / f"step-{step}.index").stat().st_mtime

    def _write(self) -> None:
        names = [f"step-{step}" for step in self._list.written]
        if not names:
            # TensorFlow takes an empty list for a damaged one.
            (self._folder / _LIST).unlink(missing_ok=True)
            return
        state = tf.compat.v1.train.generate_checkpoint_state_proto(
            str(self._folder.absolute()), names[-1], names, list(self._list.written.values()), self._list.kept_at
        )
        atomic_write(self._folder / _LIST, str(state))


def read_list(folder: pathlib.Path) -> CheckpointList | None:
    """The list of a folder's checkpoints; None where it is missing or unreadable."""
    try:
        state = tf.train.get_checkpoint_state(str(folder))
        if state is None:
            return None
        steps = [step_of(prefix) for prefix in state.all_model_checkpoint_paths]
    except ValueError:
        return None
    times = list(state.all_model_checkpoint_timestamps)
    if len(times) != len(steps):
        # Which is missing nobody knows; the files have times too.
        times = [0.0] * len(steps)
    return CheckpointList(dict(zip(steps, times, strict=True)), state.last_preserved_timestamp)


def steps_of_files(folder: pathlib.Path, kind: str) -> list[int]:
    """The steps of which a folder has an `index` or a `data` file, in order."""
    found = (re.fullmatch(rf"step-(\d+)\.{kind}(-.*)?", entry.name) for entry in folder.glob("step-*"))
    return sorted({int(match[1]) for match in found if match})


def latest_checkpoint(folder: pathlib.Path) -> str | None:
    """The prefix of the latest checkpoint of a folder, damaged or not, or None."""
    steps = steps_of_files(folder, "index")
    return str(folder / f"step-{steps[-1]}") if steps else None


def step_of(checkpoint: str) -> int:
    """The step in the prefix of a checkpoint's files."""
    return int(checkpoint.rpartition("-")[2])
