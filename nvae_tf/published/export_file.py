"""Writes the weights of a run folder as a file of the published form."""

import argparse
import pathlib
import shutil
from typing import Any, NamedTuple

from nvae_tf.config import config_to_json
from nvae_tf.errors import first_line
from nvae_tf.files import atomic_file
from nvae_tf.models import NVAE
from nvae_tf.published.names import COUNTER, published_tensors
from nvae_tf.published.places import check_torch
from nvae_tf.published.settings import cell_tables, published_settings
from nvae_tf.published.torch_file import OWN_KEY
from nvae_tf.published.weights import published_values
from nvae_tf.runs.checkpoint_files import step_of
from nvae_tf.runs.checkpoints import restore_weights
from nvae_tf.runs.loading import find_run
from nvae_tf.runs.origin import origin_of_run
from nvae_tf.runs.run_folder import RunFolder, read_image_counts


class Exported(NamedTuple):
    """What was written."""

    step: int
    data_set: str  # the published name of one with images of the same kind
    leaves_means: bool  # the run keeps moving averages of its weights, and the file's `state_dict` has the weights


def export_file(
    workdir: pathlib.Path, output: pathlib.Path, *, checkpoint: str = "latest", running_means: bool = False
) -> Exported:
    """Writes the weights of a run's checkpoint, "latest" or "best", as a file of the published form, atomically.

    `running_means` writes the moving averages of the weights in place of the weights.

    FileNotFoundError: there is no such run, or it has no checkpoint. OSError: the file can't be written. ValueError:
    the published form can't express the run's settings, one of its files is damaged, or torch is missing.
    """
    check_torch()
    config, prefix = find_run(workdir, checkpoint)
    if running_means and not config.optimizer.ema_momentum:
        raise ValueError(f"{workdir}: keeps no moving averages (optimizer.ema_momentum = 0); leave --running_means out")
    try:
        args = published_settings(config)
    except ValueError as error:
        raise ValueError(f"{workdir}: {error}") from error
    folder, step = RunFolder(workdir), step_of(prefix)
    images, origin = read_image_counts(folder.images_file), origin_of_run(folder, config.train.initialize_from)
    model = NVAE(config.model, config.objective)
    if running_means != restore_weights(model, prefix, averages=running_means):
        raise ValueError(f"{prefix}: has no moving averages of the weights; leave --running_means out")
    # An epoch may be no whole number of steps: where its length is not known, all epochs together have the run's.
    epoch = step * config.train.epochs // config.objective.total_steps
    if images is not None and images.a_step is not None:
        epoch = step // max(images.train // images.a_step, 1)
    content = {
        "epoch": epoch,
        "state_dict": _state_dict(model, step),
        "optimizer": {},
        "global_step": step,
        "args": argparse.Namespace(**args),
        "arch_instance": cell_tables(config.model.cell_set),
        "scheduler": {},
        "grad_scalar": {},
        OWN_KEY: {
            "config": config_to_json(config),
            "images": images and images.text(),
            "origin": origin and origin.text(),
        },
    }
    _write(content, output)
    return Exported(step, args["dataset"], bool(config.optimizer.ema_momentum) and not running_means)


def _state_dict(model: NVAE, step: int) -> dict[str, Any]:
    """The tensors of a published file by name, in its order, with the entries that carry no information."""
    import torch

    tensors, state_dict = list(published_tensors(model)), {}
    for tensor, weight in zip(tensors, published_values(tensors), strict=True):
        state_dict[tensor.names[0]] = weight
        if tensor.companion:
            state_dict[tensor.companion] = torch.tensor(step) if tensor.companion.endswith(COUNTER) else weight
    return state_dict


def _write(content: dict[str, Any], output: pathlib.Path) -> None:
    import torch

    try:
        with atomic_file(output) as partial, partial.open("wb") as file:
            torch.save(content, file)
    # Torch reports a full disk by a RuntimeError, with a place in its own source.
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        free = shutil.disk_usage(output.absolute().parent).free >> 20
        fix = "Make room there, or give a name on another disk"
        raise OSError(f"{output}: could not be written, {free:,} MB were left on its disk ({reason}). {fix}") from error
