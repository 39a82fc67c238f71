"""Which run an export comes from, with which settings, and what is known of how good it is."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from nvae_tf.config import ExperimentConfig, config_to_dict
from nvae_tf.training.checkpoints import checkpoint_sha256
from nvae_tf.training.loading import TrainedRun
from nvae_tf.training.run_folder import RunFolder

# Settings that name a place on this machine.
_PLACES = (("data", "path"), ("data", "cache"), ("train", "initialise_from"))


class Origin(NamedTuple):
    """Where a model's weights come from, as it travels with an export.

    Attributes:
      source: the checkpoint.
      scores: what has been measured of it, if anything.
      settings: the run's, but for those that name a place; without them an export has the model's alone.
    """

    source: Mapping[str, Any] = {}
    scores: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] | None = None


def origin_of(run: TrainedRun, workdir: pathlib.Path) -> Origin:
    """That of a run's model."""
    source = source_of(run)
    return Origin(source, scores_of(workdir, source), settings_of(run.config))


def source_of(run: TrainedRun) -> dict[str, Any]:
    """The checkpoint: its step, its kind and the SHA-256 of its files."""
    return {
        "checkpoint": "best" if pathlib.Path(run.checkpoint).parent.name == "best" else "latest",
        "step": run.step,
        "checkpoint_sha256": checkpoint_sha256(run.checkpoint),
        "running_means_of_weights": run.has_running_means,
    }


def scores_of(workdir: pathlib.Path, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `train.evaluate` has measured of this very checkpoint, or None."""
    try:
        scores = json.loads(RunFolder(workdir).evaluation_file("test").read_text())
        if scores["checkpoint_sha256"] != source["checkpoint_sha256"]:
            return None
        # Where the data lay is a folder of this machine.
        return {name: value for name, value in scores.items() if name != "data"}
    except (AttributeError, OSError, ValueError, KeyError, TypeError):
        # Not measured, or by hand.
        return None


def settings_of(config: ExperimentConfig) -> dict[str, Any]:
    """A run's settings, but for those that name a place on this machine."""
    settings = config_to_dict(config)
    for group, name in _PLACES:
        settings[group][name] = None
    return settings
