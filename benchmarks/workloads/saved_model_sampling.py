"""Samples drawn by an exported SavedModel in a process that has nothing of the model but that."""

import contextlib
import pathlib
import time

import tensorflow as tf  # noqa: F401  (so that its import is no part of the time to the first samples)

from benchmarks.exported_sampling import sampling_session
from benchmarks.workloads.commands import run_python
from benchmarks.workloads.untrained import suit_process


class SavedModelSampling:
    """A batch by TensorFlow's session loader; batch norm and weight norm are folded, as exports have them."""

    def __init__(self, preset: str, batch_size: int, folder: pathlib.Path):
        run_python("benchmarks.workloads.preparation", "saved_model", preset, str(folder))
        start = time.perf_counter()
        suit_process()
        # Open as long as this process lives.
        self._draw = sampling_session(contextlib.ExitStack(), folder / "saved_model", batch_size)
        self.run()
        self.first_seconds = time.perf_counter() - start

    def run(self) -> None:
        """Draws the batch."""
        self._draw()
