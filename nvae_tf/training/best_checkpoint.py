"""The checkpoint with the best score of a run, in a folder of its own beside the others."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from nvae_tf.training.checkpoint_files import remove_checkpoint, remove_partial, write_checkpoint
from nvae_tf.training.kept_checkpoints import step_of, steps_of_files
from nvae_tf.training.newest_checkpoint import fault_of

_FOLDER = "best"
_SCORE = "best_score/.ATTRIBUTES/VARIABLE_VALUE"


class FoundBest(NamedTuple):
    """What lies in the folder of the best checkpoint.

    Attributes:
      path: the prefix of its files; None where none can be used.
      score: the score that it was kept for; infinity where there is none.
      unusable: why others can't be used, by step.
    """

    path: str | None
    score: float
    unusable: dict[int, str]

    def unusable_words(self) -> str:
        """Which checkpoints can't be used, and why."""
        return "; ".join(f"step-{step} ({reason})" for step, reason in self.unusable.items())


class BestCheckpoint:
    """Keeps the checkpoint of the step with the lowest score, and no other.

    The score lies in the checkpoint itself, so what the folder holds decides, whatever the process before it did.

    Args:
      checkpoints: the folder of all checkpoints.
      parts: what a checkpoint holds, by name, see `tf.train.Checkpoint`.
    """

    def __init__(self, checkpoints: pathlib.Path, parts: Mapping[str, Any]):
        self.folder = folder_of_best(checkpoints)
        # Not in single precision: a score must be equal to itself when it is read from the file.
        self._score = tf.Variable(float("inf"), dtype=tf.float64, trainable=False, name="best_score")
        self._checkpoint = tf.train.Checkpoint(**parts, best_score=self._score)
        self._lowest: float | None = None

    def take_over(self) -> str | None:
        """Clears what a killed process has left, and looks at what there is.

        Returns:
          A line about checkpoints that can't be used, if none can: then the next score is the best.
        """
        remove_partial(self.folder)
        found = find_best(self.folder)
        self._lowest = found.score
        if found.path is not None:
            self._remove_all_but(step_of(found.path), found.unusable)
        elif found.unusable:
            return (
                f"{self.folder}: {found.unusable_words()} can't be used; the next step that is evaluated counts as best"
            )
        return None

    def is_beaten_by(self, score: float) -> bool:
        """Whether a score is below that of the checkpoint; NaN never is."""
        if self._lowest is None:
            self.take_over()
        return score < self._lowest

    def write(self, step: int, score: float) -> None:
        """Writes the checkpoint of a step and deletes the one before, when the new one is whole.

        Raises:
          OSError, tf.errors.OpError: it could not be written; then the one before is still there.
        """
        self._score.assign(score)
        write_checkpoint(self.folder, step, self._checkpoint.write)
        self._lowest = score
        self._remove_all_but(step)

    def _remove_all_but(self, step: int, others: Mapping[int, str] | None = None) -> None:
        for other in _steps_of(self.folder):
            if other != step and other not in (others or {}):
                remove_checkpoint(self.folder, other)


def folder_of_best(checkpoints: pathlib.Path) -> pathlib.Path:
    """Where the best checkpoint lies, for the folder of all checkpoints."""
    return checkpoints / _FOLDER


def find_best(folder: pathlib.Path) -> FoundBest:
    """Finds the whole checkpoint with the lowest score in a folder of the best.

    There are two where a process was killed before it deleted the one before. One without a score, which somebody has
    put there, counts as the worst.
    """
    faults = {step: fault_of(folder, step) for step in _steps_of(folder)}
    scores = {}
    for step in [step for step, fault in faults.items() if fault is None]:
        try:
            scores[step] = _score_of(folder, step)
        except (TypeError, ValueError):
            faults[step] = "its score is not a number"
    unusable = {step: fault for step, fault in faults.items() if fault is not None}
    if not scores:
        return FoundBest(None, float("inf"), unusable)
    best = min(scores, key=scores.get)
    return FoundBest(str(folder / f"step-{best}"), scores[best], unusable)


def _steps_of(folder: pathlib.Path) -> list[int]:
    return sorted({*steps_of_files(folder, "index"), *steps_of_files(folder, "data")})


def _score_of(folder: pathlib.Path, step: int) -> float:
    reader = tf.train.load_checkpoint(str(folder / f"step-{step}"))
    return float(reader.get_tensor(_SCORE)) if reader.has_tensor(_SCORE) else float("inf")
