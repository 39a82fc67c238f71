"""From a run folder to a file of the published form."""

import argparse
import pathlib
import shutil
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from nvae_tf.config import check, config_to_json
from nvae_tf.errors import first_line
from nvae_tf.files import atomic_file
from nvae_tf.optimization import average_of_weights
from nvae_tf.progress import byte_bar
from nvae_tf.published import optimizer as optimizers
from nvae_tf.published.names import COUNTER, published_tensors
from nvae_tf.published.places import check_torch
from nvae_tf.published.settings import cell_tables, published_settings
from nvae_tf.published.torch_file import OWN_KEY
from nvae_tf.published.weights import as_tensor, published_values
from nvae_tf.reports.run_facts import origin_of_run
from nvae_tf.training.checkpoints import VALUE, check_architecture, step_of, wrap_checkpoint_errors
from nvae_tf.training.loading import find_run
from nvae_tf.training.run import ModelForTraining, model_for_training
from nvae_tf.training.run_folder import RunFolder, read_image_counts


class Exported(NamedTuple):
    """What was written."""

    step: int
    data_set: str  # the published name of one with images of the same kind
    leaves_means: bool  # the run keeps moving averages of its weights, and the file's `state_dict` has the weights


def export_file(
    workdir: pathlib.Path,
    output: pathlib.Path,
    *,
    checkpoint: str = "latest",
    with_optimizer: bool = True,
    running_means: bool = False,
) -> Exported:
    """Writes a run's checkpoint, "latest" or "best", as a file of the published form, atomically.

    `with_optimizer` includes all that training continues with. `running_means` writes the moving averages of the
    weights in place of the weights, and then without the optimizer's state, which is that of the weights.

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
    images, origin = read_image_counts(folder.images_file), origin_of_run(folder, config.train.initialise_from)
    with tf.Graph().as_default():  # names and shapes, but no numbers
        made = model_for_training(config, steps_per_epoch=1, total_steps=config.objective.total_steps)
        made.model.optimizer.build(made.model.trainable_variables)
    check_architecture(made.model, prefix)
    learning_rate = config.optimizer.learning_rate if with_optimizer and not running_means else None
    state_dict, optimizer, own_state = _read_checkpoint(made, prefix, learning_rate, running_means)
    # Of all epochs together, where the length of one is not known: it may be no whole number of steps.
    epoch = step * config.train.epochs // config.objective.total_steps
    if images is not None and images.a_step is not None:
        epoch = step // max(images.train // images.a_step, 1)
    own = {"config": config_to_json(config), "images": images and images.text(), "origin": origin and origin.text()}
    content = {
        "epoch": epoch,
        "state_dict": state_dict,
        "optimizer": optimizer,
        "global_step": step,
        "args": argparse.Namespace(**args),
        "arch_instance": cell_tables(config.model.cell_set),
        "scheduler": {},
        "grad_scalar": {},
        OWN_KEY: own | {"state": own_state},
    }
    _write(content, output)
    return Exported(step, args["dataset"], bool(config.optimizer.ema_momentum) and not running_means)


def _read_checkpoint(
    made: ModelForTraining, prefix: str, learning_rate: float | None, running_means: bool
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """`state_dict`, `optimizer`, if there is a learning rate for it, and this project's own state, as torch tensors."""
    import torch

    model, place = made.model, pathlib.Path(prefix)
    with wrap_checkpoint_errors(prefix):
        reader = tf.train.load_checkpoint(prefix)
        shapes = reader.get_variable_to_shape_map()
        size = sum(file.stat().st_size for file in place.parent.glob(f"{place.name}.*"))
    keys: dict[int, str] = {}
    for name, variable in optimizers.checkpoint_names(made):
        # With other settings the optimizer's variables, which are numbered, are others.
        if shapes.get(name + VALUE) == list(variable.shape):
            keys.setdefault(id(variable), name + VALUE)
    tensors, averages = list(published_tensors(model)), average_of_weights(model) if running_means else {}
    # The weights themselves are there, see `check_architecture`.
    instead = "leave --running_means out" if running_means else "give --without_optimizer"
    with byte_bar(size, "read") as bar:

        def read(variable: Any) -> np.ndarray:
            key, lacks = keys.get(id(variable)), f"{prefix}: lacks {variable.name}"
            check(key is not None, f"{lacks}, so it was not written by nvae-train with these settings; {instead}")
            with wrap_checkpoint_errors(prefix):
                value = reader.get_tensor(key)
            bar.update(value.nbytes)
            return value

        optimizer = {} if learning_rate is None else optimizers.published_optimizer(model, learning_rate, read)
        weights = published_values(tensors, lambda variable: read(averages.get(id(variable), variable)))
        own_state = {
            name: as_tensor(read(variable))
            for name, variable in optimizers.own_variables(made).items()
            if id(variable) in keys
            and not (learning_rate is None and optimizers.is_of_training(name))
            and not (running_means and name.startswith("averages/"))
        }
    state_dict = {}
    for tensor, weight in zip(tensors, weights, strict=True):
        state_dict[tensor.names[0]] = weight
        if tensor.companion:
            is_counter = tensor.companion.endswith(COUNTER)
            state_dict[tensor.companion] = torch.tensor(step_of(prefix)) if is_counter else weight
    return state_dict, optimizer, own_state


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
