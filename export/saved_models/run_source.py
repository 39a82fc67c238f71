"""Which run an export comes from, and what is known of how good it is."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from nvae_tf.checkpoints import RunFolder, TrainedRun
from nvae_tf.checkpoints.checkpoint_files import checkpoint_sha256


def source_of(run: TrainedRun) -> dict[str, Any]:
    """The checkpoint: its step, its kind and the SHA-256 of its files."""
    return {
        "checkpoint": "best" if pathlib.Path(run.checkpoint).parent.name == "best" else "latest",
        "step": run.step,
        "checkpoint_sha256": checkpoint_sha256(run.checkpoint),
        "running_means_of_weights": run.has_running_means,
        "data": run.config.data.name,
    }


def scores_of(workdir: pathlib.Path, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `train.evaluate` has measured of this very checkpoint, or None."""
    try:
        scores = json.loads(RunFolder(workdir).evaluation_file("test").read_text())
        return scores if scores["checkpoint_sha256"] == source["checkpoint_sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        # Not measured, or by hand.
        return None
