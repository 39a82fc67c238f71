"""Training steps, as `benchmarks.train_step` takes them."""

import pathlib

# Imported here so that the time of imports is told apart from that of the first step.
import benchmarks.workloads.untrained  # noqa: F401
import nvae_tf.optimization  # noqa: F401
from benchmarks.train_step_worker import TrainStep


class Training:
    """A step on a batch of random images."""

    recompute = "none"

    def __init__(self, preset: str, batch_size: int, folder: pathlib.Path):
        self._step = TrainStep(preset, batch_size, self.recompute)

    def run(self) -> None:
        """Takes one step."""
        self._step.run()


class RecomputedTraining(Training):
    """The same with as little memory as recomputation needs."""

    recompute = "all"
