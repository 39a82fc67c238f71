"""The model of a run folder, from the checkpoint that is asked for, and the data that it was trained on."""

import dataclasses
import os
import pathlib
import warnings
from typing import NamedTuple

from nvae_tf.config import CHECKPOINTS, DataSpec, ExperimentConfig, check_choice
from nvae_tf.models import NVAE
from nvae_tf.training.checkpoints import best_instead, find_best, folder_of_best, newest_whole, restore_weights, step_of
from nvae_tf.training.run_folder import RunFolder, read_run_config

_LATEST_INSTEAD = 'take the latest: checkpoint="latest", or the flag --checkpoint=latest'


class FoundRun(NamedTuple):
    """The settings of a run, and the prefix of one of its checkpoints, which is whole."""

    config: ExperimentConfig
    checkpoint: str


class TrainedRun(NamedTuple):
    """A run's settings, the prefix of one of its checkpoints, the model with its weights, and whether these are
    exponential moving averages (EMA), which they are where the run keeps them.
    """

    config: ExperimentConfig
    checkpoint: str
    model: NVAE
    has_running_means: bool

    @property
    def step(self) -> int:
        """The checkpoint's step."""
        return step_of(self.checkpoint)


def load(path: str | os.PathLike, checkpoint: str = "latest") -> NVAE:
    """The model of a run folder, with the weights of one of its checkpoints, or with the exponential moving averages
    of the weights where the run keeps them (`optimizer.ema_momentum`).

    Where the latest is damaged the newest whole one is taken, and a warning names its step.

    Example:
      >>> model = nvae_tf.load("runs/digits")
      >>> images = model.generate(64, temperature=0.7, seed=1)

    Args:
      path: the `--workdir` of train.main.
      checkpoint: "latest", or "best" for the one with the best test score (`train.keep_best`).

    Raises:
      FileNotFoundError: there is no such run folder, or it has no such checkpoint yet.
      ValueError: `config.json` is damaged or asks for an impossible model; or all checkpoints, or the best, are
        damaged; or the checkpoint is of another architecture, then the first differences are named.
    """
    return load_run(path, checkpoint).model


def load_run(path: str | os.PathLike, checkpoint: str = "latest") -> TrainedRun:
    """The model as `load` gives it, with its settings and its step; raises what `load` raises."""
    config, prefix = find_run(path, checkpoint)
    model = NVAE(config.model, config.objective, seed=config.train.seed)
    return TrainedRun(config, prefix, model, restore_weights(model, prefix))


def find_run(path: str | os.PathLike, checkpoint: str = "latest") -> FoundRun:
    """What `load_run` would load; raises what `load` raises."""
    check_choice("checkpoint", checkpoint, CHECKPOINTS)
    folder = RunFolder(path)
    config = read_run_config(folder)
    return FoundRun(config, _best(folder) if checkpoint == "best" else _newest(folder))


def spec_to_read(config: ExperimentConfig, data_path: str | None) -> DataSpec:
    """The data spec of a finished run, whose images may lie at another path now, and whose cache may be gone."""
    cache = config.data.cache if config.data.cache and pathlib.Path(config.data.cache).expanduser().is_dir() else None
    return dataclasses.replace(config.data, path=data_path or config.data.path, cache=cache)


def _newest(folder: RunFolder) -> str:
    found = newest_whole(folder.checkpoints)
    if found.path is None:
        raise FileNotFoundError(
            f"{folder.path}: no checkpoint in {folder.checkpoints}; train.main writes one every "
            "train.checkpoint_every_steps steps, at its end, and when it is interrupted"
            + best_instead(folder.checkpoints)
        )
    if found.unusable:
        _warn(f"{folder.checkpoints}: {found.passed_over_line()}")
    if found.step == 0 and not folder.origin_file.is_file():
        _warn(f"{folder.checkpoints}: step-0 is used, the weights before the first training step, as the only one")
    return found.path


def _best(folder: RunFolder) -> str:
    place = folder_of_best(folder.checkpoints)
    found = find_best(place)
    if found.path is not None:
        return found.path
    if found.unusable:
        raise ValueError(
            f"{place}: the best checkpoint is damaged: {found.unusable_words()}. Restore its files from a copy, or "
            f"{_LATEST_INSTEAD}"
        )
    raise FileNotFoundError(
        f"{folder.path}: no best checkpoint in {place}; with train.keep_best train.main writes it when the test images "
        f"have been scored, every train.evaluate_every_steps steps. Train on, or {_LATEST_INSTEAD}"
    )


def _warn(text: str) -> None:
    # Without a line of source text: one line on a terminal.
    warnings.warn_explicit(text, UserWarning, filename="nvae_tf", lineno=0)
