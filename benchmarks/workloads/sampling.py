"""Samples drawn by the model in Python, as `train.generate` draws them."""

import pathlib

from benchmarks.workloads.untrained import untrained_model
from nvae_tf.generation.sampling import ImageGenerator


class Sampling:
    """A batch of images from the prior."""

    def __init__(self, preset: str, batch_size: int, folder: pathlib.Path):
        # The generator does not keep it alive.
        self._model = untrained_model(preset)
        self._generator = ImageGenerator(self._model)
        self._batch_size = batch_size
        self.run()

    def run(self) -> None:
        """Draws the batch."""
        self._generator.generate(self._batch_size)
