"""Pictures of a run on its way: what the model generates, and what it keeps of test images."""

import contextlib
import functools
import pathlib

import numpy as np
import tensorflow as tf

from nvae_tf.data.pipeline import evaluation_batches, iterate
from nvae_tf.generation.image_grid import image_grid, write_png
from nvae_tf.generation.sampling import ImageGenerator
from nvae_tf.training.records import TensorBoardWriter
from nvae_tf.training.run import Run
from nvae_tf.training.stopping import StopRequest

# The same latents, images and binarization every time: so that only the model differs.
FIXED_SEED = 0
# The temperature of the picture in `samples/`, and how many samples that has.
_MAIN_TEMPERATURE, _MAIN_COUNT = 0.7, 64
# The paper shows samples from 1.0, of small gray images, down to 0.6 and less, of large photographs.
_OTHER_TEMPERATURES, _OTHER_COUNT = (1.0, 0.9, 0.8, 0.6), 16
_RECONSTRUCTION_COUNT = 8


class Pictures:
    """Draws and writes the pictures of a step."""

    def __init__(self, run: Run, tensorboard: TensorBoardWriter, stop: StopRequest):
        self._run, self._tensorboard, self._stop = run, tensorboard, stop
        self._generator = ImageGenerator(run.model)

    def write(self, step: int, file: pathlib.Path) -> None:
        """Writes samples of the main temperature to a PNG file, and these, other temperatures and reconstructions
        to TensorBoard. The file comes last: where it is, all of the step are.

        Raises:
          StopRequested: the process was told to stop.
          ValueError: the model has diverged.
        """
        for temperature in _OTHER_TEMPERATURES:
            self._tensorboard.picture(step, _sample_tag(temperature), self._samples(_OTHER_COUNT, temperature))
        self._tensorboard.picture(step, "reconstructions", self._reconstructions())
        pixels = self._samples(_MAIN_COUNT, _MAIN_TEMPERATURE)
        self._tensorboard.picture(step, _sample_tag(_MAIN_TEMPERATURE), pixels)
        write_png(file, pixels)

    def _samples(self, count: int, temperature: float) -> np.ndarray:
        images = self._generator.generate(count, temperature, FIXED_SEED, lambda done: self._stop.check())
        return image_grid(images, enlarge=None)

    def _reconstructions(self) -> np.ndarray:
        """A row of originals above a row of what the model makes of them."""
        originals = self._originals
        # Eagerly: for a handful of images a graph takes longer to build than it saves.
        reconstructions = self._run.model(originals, seed=FIXED_SEED)
        self._stop.check()
        return image_grid(tf.concat([originals, reconstructions], axis=0), columns=len(originals), enlarge=None)

    @functools.cached_property
    def _originals(self) -> tf.Tensor:
        """The first test images as the model sees them."""
        spec, test = self._run.images.spec, self._run.images.test
        count = min(_RECONSTRUCTION_COUNT, test.count)
        with contextlib.closing(iterate(evaluation_batches(test, spec, count, FIXED_SEED), test)) as batches:
            return next(batches)


def _sample_tag(temperature: float) -> str:
    return f"samples/temperature_{temperature}"
