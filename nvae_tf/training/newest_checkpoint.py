"""The newest checkpoint of a folder that can be used, and why newer ones can't."""

import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.errors import first_line
from nvae_tf.training.kept_checkpoints import latest_checkpoint, read_list, step_of, steps_of_files
from nvae_tf.training.training_parts import VALUE

_STEP = f"step{VALUE}"
# Parts of a checkpoint that can't be gone on with if they hold NaN or infinity.
_FINITE = ("model/", "averages/", "optimizer/")


class FoundCheckpoint(NamedTuple):
    """What a search has found.

    Attributes:
      path: the prefix of the checkpoint's files; None where there is none.
      passed_over: why newer ones can't be used, by step.
    """

    path: str | None
    passed_over: dict[int, str]

    @property
    def step(self) -> int:
        """The checkpoint's step; 0 where there is none."""
        return 0 if self.path is None else step_of(self.path)

    def passed_over_line(self) -> str:
        """Which checkpoints were passed over, why, and what is used instead."""
        passed = "; ".join(f"step-{step} ({reason})" for step, reason in self.passed_over.items())
        used = "there is none before" if self.path is None else f"step-{self.step} is used"
        return f"passed over {passed}; {used}"


def newest_whole(folder: pathlib.Path) -> FoundCheckpoint:
    """Finds the newest checkpoint all numbers of which can be read and have the sums that were written with them.

    What the folder has counts, whether it is on TensorFlow's list or not; the list tells what was deleted.

    Raises:
      ValueError: there are checkpoints, and all are damaged.
    """
    listed = read_list(folder) if folder.is_dir() else None
    steps = {*steps_of_files(folder, "index"), *steps_of_files(folder, "data"), *(listed.written if listed else ())}
    passed_over = {}
    for step in sorted(steps, reverse=True):
        fault = fault_of(folder, step)
        if fault is None:
            return FoundCheckpoint(str(folder / f"step-{step}"), passed_over)
        passed_over[step] = fault
    newest = latest_checkpoint(folder)
    if newest is not None:
        raise ValueError(
            f"{newest}: the checkpoint is damaged ({passed_over[step_of(newest)]}), and there is no other that is "
            f"whole. Restore its files from a copy, or delete {folder} to start the run anew"
        )
    return FoundCheckpoint(None, passed_over)


def fault_of(folder: pathlib.Path, step: int) -> str | None:
    """Why the checkpoint of a step can't be used; None if it can."""
    missing = [kind for kind in ("index", "data") if step not in steps_of_files(folder, kind)]
    if missing:
        return "its files are gone" if len(missing) == 2 else f"its {missing[0]} file is missing"
    try:
        reader = tf.train.load_checkpoint(str(folder / f"step-{step}"))
        if reader.has_tensor(_STEP) and (stored := int(reader.get_tensor(_STEP))) != step:
            return f"its files hold the checkpoint of step {stored}"
        for name in reader.get_variable_to_shape_map():
            value = reader.get_tensor(name)
            if name.startswith(_FINITE) and value.dtype.kind == "f" and not np.isfinite(value).all():
                return f"{name.partition('/.ATTRIBUTES')[0]} is not finite"
    except (MemoryError, tf.errors.ResourceExhaustedError):
        raise
    except Exception as error:
        # TensorFlow tells damage by exceptions of many kinds, IndexError among them.
        return first_line(error)
    return None
