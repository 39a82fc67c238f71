"""Pictures of the data that a run was trained on."""

import dataclasses
import pathlib
from collections.abc import Callable

import numpy as np

from nvae_tf.config import ExperimentConfig
from nvae_tf.data.pipeline import evaluation_batches, iterate
from nvae_tf.data.sources import load_split

# From a part of the data, "train" or "test", and a number to so many images at most `[count, H, W, C]`.
Pictures = Callable[[str, int], np.ndarray]


def run_pictures(config: ExperimentConfig, data_path: str | None = None) -> Pictures:
    """Gives a function that reads pictures of the run's data, spread evenly over a part of them.

    Args:
      config: of the run.
      data_path: where the data lie now, if they have moved.
    """
    cache = config.data.cache if config.data.cache and pathlib.Path(config.data.cache).expanduser().is_dir() else None
    spec = dataclasses.replace(config.data, path=data_path or config.data.path, cache=cache)

    def pictures(split: str, count: int) -> np.ndarray:
        source = load_split(spec, split)
        numbers = np.unique(np.linspace(0, source.count - 1, min(count, source.count)).astype(np.int64))
        batches = evaluation_batches(source, spec, 1, seed=0, numbers=numbers)
        return np.concatenate([image.numpy() for image in iterate(batches, source)])

    return pictures
