"""Saving and loading: the project's own run folders, and the published files."""

from nvae_tf.checkpoints.loading import TrainedRun, load, load_run
from nvae_tf.checkpoints.published_settings import (
    model_config_from_published,
    objective_config_from_published,
)
from nvae_tf.checkpoints.published_weights import load_published_weights
from nvae_tf.checkpoints.run_folder import RunFolder, open_for_training
from nvae_tf.checkpoints.torch_files import from_torch_checkpoint, read_torch_checkpoint

__all__ = [
    "RunFolder",
    "TrainedRun",
    "from_torch_checkpoint",
    "load",
    "load_published_weights",
    "load_run",
    "model_config_from_published",
    "objective_config_from_published",
    "open_for_training",
    "read_torch_checkpoint",
]
