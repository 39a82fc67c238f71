"""From a run folder to a file of the published form."""

import argparse
import contextlib
import functools
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
import tqdm

from nvae_tf.config import config_to_json
from nvae_tf.errors import first_line
from nvae_tf.files import atomic_file
from nvae_tf.models.nvae import model_for_training
from nvae_tf.optimization import average_of_weights
from nvae_tf.published.names import COUNTER, published_tensors
from nvae_tf.published.optimizer import checkpoint_names, own_variables, published_optimizer
from nvae_tf.published.places import check_torch
from nvae_tf.published.settings import cell_tables, published_settings
from nvae_tf.published.torch_file import OWN_KEY
from nvae_tf.published.weights import as_tensor, published_values
from nvae_tf.reports.run_facts import origin_of_run
from nvae_tf.training.checkpoints import VALUE, check_architecture, step_of, wrap_read_errors
from nvae_tf.training.loading import find_run
from nvae_tf.training.run_folder import RunFolder, read_image_counts


class Exported(NamedTuple):
    """The step of the checkpoint that was written, the published name of the data set, and whether the run keeps moving
    averages of its weights and the file's `state_dict` has the weights themselves.
    """

    step: int
    data_set: str
    leaves_means: bool


def export_file(
    workdir: pathlib.Path,
    output: pathlib.Path,
    *,
    checkpoint: str = "latest",
    with_optimizer: bool = True,
    running_means: bool = False,
) -> Exported:
    """Writes a run's checkpoint as a file of the published form, which appears when it is whole.

    `checkpoint` is "latest" or "best". `with_optimizer` includes the optimizer's state, and all else that training
    continues with. `running_means` writes the moving averages of the weights in place of the weights, and then without
    the optimizer's state, which is that of the weights.

    Raises:
      FileNotFoundError: there is no such run, or it has no checkpoint.
      OSError: the file can't be written.
      ValueError: the published form can't express the run's settings, one of its files is damaged, or torch is missing.
    """
    check_torch()
    import torch

    config, prefix = find_run(workdir, checkpoint)
    if running_means and not config.optimizer.ema_momentum:
        raise ValueError(f"{workdir}: keeps no moving averages (optimizer.ema_momentum = 0); leave --running_means out")
    try:
        args = published_settings(config)
    except ValueError as error:
        raise ValueError(f"{workdir}: {error}") from error
    folder, step = RunFolder(workdir), step_of(prefix)
    images, origin = read_image_counts(folder.images_file), origin_of_run(folder, config.train.initialise_from)
    # A model in a graph: names and shapes, but no numbers.
    with tf.Graph().as_default():
        made = model_for_training(config, steps_per_epoch=1, total_steps=config.objective.total_steps)
        made.model.optimizer.build(made.model.trainable_variables)
    model = made.model
    check_architecture(model, prefix)
    averages = average_of_weights(model) if running_means else {}
    with_training = with_optimizer and not running_means
    own = own_variables(made, with_training)
    tensors, optimizer = list(published_tensors(model)), {}
    with contextlib.closing(_CheckpointReader(prefix, checkpoint_names(made))) as reader:
        if with_training:
            read = functools.partial(reader.read, instead="give --without_optimizer")
            optimizer = published_optimizer(model, config.optimizer.learning_rate, read)
        read = functools.partial(reader.read, instead="leave --running_means out")
        weights = published_values(tensors, lambda variable: read(averages.get(id(variable), variable)))
        own_state = {
            name: as_tensor(reader.read(variable))
            for name, variable in own.items()
            if reader.has(variable) and not (running_means and name.startswith("averages/"))
        }
    state_dict = {}
    for tensor, weight in zip(tensors, weights, strict=True):
        state_dict[tensor.names[0]] = weight
        if tensor.companion:
            # A copy is the same storage: in the file once.
            state_dict[tensor.companion] = torch.tensor(step) if tensor.companion.endswith(COUNTER) else weight
    # Of all epochs together, where the length of one is not known: it may be no whole number of steps.
    epoch = step * config.train.epochs // config.objective.total_steps
    if images is not None and images.a_step is not None:
        epoch = step // max(images.train // images.a_step, 1)
    content = {
        "epoch": epoch,
        "state_dict": state_dict,
        "optimizer": optimizer,
        "global_step": step,
        "args": argparse.Namespace(**args),
        "arch_instance": cell_tables(config.model.cell_set),
        "scheduler": {},
        "grad_scalar": {},
        OWN_KEY: {
            "config": config_to_json(config),
            "images": images and images.text(),
            "origin": origin and origin.text(),
            "state": own_state,
        },
    }
    try:
        with atomic_file(output) as partial, partial.open("wb") as file:
            torch.save(content, file)
    # Torch reports a full disk by a RuntimeError, with a place in its own source.
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        free = shutil.disk_usage(output.absolute().parent).free >> 20
        raise OSError(
            f"{output}: could not be written, {free:,} MB were left on its disk ({reason}). Make room there, "
            "or give a name on another disk"
        ) from error
    return Exported(step, args["dataset"], bool(config.optimizer.ema_momentum) and not running_means)


class _CheckpointReader:
    """Reads a training checkpoint variable by variable, for a model that has no numbers; until closed it shows a bar.

    `names` are the model's variables with their names in checkpoints. ValueError: the checkpoint is damaged or gone.
    """

    def __init__(self, prefix: str, names: Iterable[tuple[str, Any]]):
        self._prefix = prefix
        with wrap_read_errors(prefix):
            self._reader = tf.train.load_checkpoint(prefix)
            stored = self._reader.get_variable_to_shape_map()
            place = pathlib.Path(prefix)
            total = sum(file.stat().st_size for file in place.parent.glob(f"{place.name}.*"))
        self._keys: dict[int, str] = {}
        for name, variable in names:
            # With other settings the optimizer's variables, which are numbered, are others.
            if stored.get(name + VALUE) == list(variable.shape):
                self._keys.setdefault(id(variable), name + VALUE)
        self._bar = tqdm.tqdm(desc="read", total=total, unit="B", unit_scale=True, leave=False, disable=None)
        self.close = self._bar.close

    def has(self, variable: Any) -> bool:
        """Whether the checkpoint has a variable."""
        return id(variable) in self._keys

    def read(self, variable: Any, instead: str = "") -> np.ndarray:
        """The value of a variable; where the checkpoint lacks it, the ValueError says what to do instead."""
        if not self.has(variable):
            raise ValueError(
                f"{self._prefix}: lacks {variable.name}, so it was not written by train.main with these settings; "
                + instead
            )
        with wrap_read_errors(self._prefix):
            value = self._reader.get_tensor(self._keys[id(variable)])
        self._bar.update(value.nbytes)
        return value
