"""The numbers of a run's checkpoint, for a model that has none."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.models.nvae import ModelForTraining
from nvae_tf.published.own_state import checkpoint_names
from nvae_tf.training.checkpoints import VALUE, wrap_read_errors


class CheckpointReader:
    """Reads a checkpoint variable by variable.

    Args:
      prefix: of the checkpoint's files.
      made: the model; its optimizer is built.
      report: is given the bytes that are read so far.

    Raises:
      ValueError: the checkpoint is damaged or gone.
    """

    def __init__(self, prefix: str, made: ModelForTraining, report: Callable[[int], None]):
        with wrap_read_errors(prefix):
            self._reader = tf.train.load_checkpoint(prefix)
            stored = self._reader.get_variable_to_shape_map()
        self._prefix, self._report, self._done = prefix, report, 0
        self._keys: dict[int, str] = {}
        for name, variable in checkpoint_names(made):
            # With other settings the optimizer's variables, which are numbered, are others.
            if stored.get(name + VALUE) == list(variable.shape):
                self._keys.setdefault(id(variable), name + VALUE)

    def has(self, variable: Any) -> bool:
        """Whether the checkpoint has a variable."""
        return id(variable) in self._keys

    def check_has(self, variables: Iterable[Any], instead: str) -> None:
        """Raises ValueError where the checkpoint lacks one of the variables; the message says what to do instead."""
        for variable in variables:
            if not self.has(variable):
                raise ValueError(
                    f"{self._prefix}: lacks {variable.name}, so it was not written by train.main with these settings; "
                    + instead
                )

    def read(self, variable: Any) -> np.ndarray:
        """The value of a variable that the checkpoint has.

        Raises:
          ValueError: the checkpoint is damaged or gone.
        """
        key = self._keys[id(variable)]
        with wrap_read_errors(self._prefix):
            value = self._reader.get_tensor(key)
        self._done += value.nbytes
        self._report(self._done)
        return value
