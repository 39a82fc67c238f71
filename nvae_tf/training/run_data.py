"""The data of a run when it is over: they may lie somewhere else now."""

import dataclasses
import pathlib

from nvae_tf.config import DataSpec, ExperimentConfig


def spec_to_read(config: ExperimentConfig, data_path: str | None) -> DataSpec:
    """The run's data spec, with another path if one is given, and without a cache that is not there."""
    cache = config.data.cache if config.data.cache and pathlib.Path(config.data.cache).expanduser().is_dir() else None
    return dataclasses.replace(config.data, path=data_path or config.data.path, cache=cache)
