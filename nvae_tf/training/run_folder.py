"""The folder of a training run: what lies where, and who may write into it."""

import dataclasses
import os
import pathlib
from typing import Any

from nvae_tf.config import ExperimentConfig, config_to_dict, config_to_json, read_config
from nvae_tf.files import atomic_write
from nvae_tf.training.kept_checkpoints import latest_checkpoint, step_of

# What may differ when a run goes on: how long it runs, what is written how often, and where the images lie now,
# decoded or not, and what happens to those that can't be read. Nothing else, because the second half of a run must
# belong to the first. `objective.total_steps` follows from the length.
CHANGEABLE_SETTINGS = (
    "objective.total_steps",
    "data.path",
    "data.cache",
    "data.on_bad_file",
    "data.max_pixels",
    "train.steps",
    "train.epochs",
    "train.batch_size",
    "train.strategy",
    "train.replicas",
    "train.precision",
    "train.xla",
    "train.recompute",
    "train.accumulate_steps",
    "train.deterministic",
    "train.profile_steps",
    "train.keep_best",
    "train.checkpoint_every_steps",
    "train.checkpoint_every_minutes",
    "train.keep_checkpoints",
    "train.keep_checkpoint_every_hours",
    "train.evaluate_every_steps",
    "train.sample_every_steps",
    "train.log_every_steps",
)


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The places in a run folder; making this object touches no file.

    Attributes:
      path: the folder, `--workdir` of the commands.
    """

    path: pathlib.Path

    @property
    def config_file(self) -> pathlib.Path:
        """All settings of the run, as JSON; what makes a folder a run folder."""
        return self.path / "config.json"

    @property
    def lock_file(self) -> pathlib.Path:
        """Which process trains here, see `nvae_tf.training.run_lock`."""
        return self.path / ".lock"

    @property
    def checkpoints(self) -> pathlib.Path:
        """The folder of checkpoints, `step-N.index` and `step-N.data-*`; in `best` in it, that with the best score."""
        return self.path / "checkpoints"

    @property
    def metrics_file(self) -> pathlib.Path:
        """One line an evaluation interval, as CSV."""
        return self.path / "metrics.csv"

    @property
    def images_file(self) -> pathlib.Path:
        """The numbers of images that the run was begun with, as JSON."""
        return self.path / "images.json"

    @property
    def tensorboard(self) -> pathlib.Path:
        """The folder of TensorBoard's event files."""
        return self.path / "tensorboard"

    @property
    def samples(self) -> pathlib.Path:
        """The folder of sample grids, `step-N.png` with N in eight digits."""
        return self.path / "samples"

    @property
    def evaluation(self) -> pathlib.Path:
        """The folder of what `train.evaluate` draws, and of what it has not finished."""
        return self.path / "evaluation"

    @property
    def card_file(self) -> pathlib.Path:
        """The model card, see `nvae_tf.reports.model_card`."""
        return self.path / "README.md"

    @property
    def origin_file(self) -> pathlib.Path:
        """Where imported weights came from and under which license, as JSON; most runs have none."""
        return self.path / "origin.json"

    def evaluation_file(self, split: str = "test") -> pathlib.Path:
        """What `train.evaluate` measured on a part of the data, as JSON."""
        return self.path / ("evaluation.json" if split == "test" else f"evaluation-{split}.json")


def read_run_config(folder: RunFolder) -> ExperimentConfig:
    """The settings of a run.

    Raises:
      FileNotFoundError: there is no such folder, or it has no `config.json`.
      ValueError: `config.json` is not JSON, or a setting in it is unknown or impossible.
    """
    if not folder.path.is_dir():
        raise FileNotFoundError(f"{folder.path}: no such folder; give the --workdir of a run of train.main")
    if not folder.config_file.is_file():
        raise FileNotFoundError(
            f"{folder.path}: not a run folder, it has no config.json; give the --workdir of a run of train.main"
        )
    try:
        return read_config(folder.config_file)
    except ValueError as error:
        place = "" if str(folder.config_file) in str(error) else f"{folder.config_file}: "
        raise ValueError(f"{place}{error}") from error


def open_for_training(path: str | os.PathLike, config: ExperimentConfig) -> RunFolder:
    """Makes a run folder, or opens one to continue its run, which needs the same settings.

    Settings of `CHANGEABLE_SETTINGS` may differ; `config.json` then tells the new ones.

    Raises:
      ValueError: the folder holds something else, or a run with other settings; nothing is written then.
    """
    folder = RunFolder(pathlib.Path(path))
    check_place(folder)
    if folder.config_file.exists():
        before = read_run_config(folder)
        _check_same_run(folder, before, config)
        if before == config:
            return folder
    folder.path.mkdir(parents=True, exist_ok=True)
    atomic_write(folder.config_file, config_to_json(config))
    return folder


def check_place(folder: RunFolder) -> None:
    """Refuses a place where something else lies than a run, before anything is written.

    Raises:
      ValueError: it is a file, or a folder that is not empty and holds no run.
    """
    if folder.path.exists() and not folder.path.is_dir():
        raise ValueError(f"{folder.path}: a file; give a new or empty folder, or one of the same run")
    if folder.config_file.exists():
        return
    # Hidden files are what a file manager or an interrupted first write leaves behind.
    found = sorted(entry.name for entry in folder.path.glob("*") if not entry.name.startswith("."))
    if found:
        raise ValueError(
            f"{folder.path}: not empty and not a run folder, it holds {', '.join(found[:5])}"
            f"{' ...' if len(found) > 5 else ''} but no config.json; give a new or empty folder, or one of the same run"
        )


def _check_same_run(folder: RunFolder, before: ExperimentConfig, now: ExperimentConfig) -> None:
    old, new = _flat(config_to_dict(before)), _flat(config_to_dict(now))
    differences = [
        f"{name} was {old[name]!r} and is now {new[name]!r}"
        for name in new
        if old[name] != new[name] and name not in CHANGEABLE_SETTINGS
    ]
    if differences:
        raise ValueError(
            f"{folder.path}: holds a run with other settings: {'; '.join(differences)}. "
            "Give the same settings to continue it, or another --workdir"
        )
    checkpoint = latest_checkpoint(folder.checkpoints)
    if checkpoint is not None and step_of(checkpoint) > now.objective.total_steps:
        raise ValueError(
            f"{folder.path}: this run has {step_of(checkpoint):,} steps already, more than the "
            f"{now.objective.total_steps:,} asked for. Give more train.steps (or train.epochs), or another --workdir"
        )


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
