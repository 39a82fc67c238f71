"""What a training checkpoint holds and the published form has no place for: it travels under a key of its own.

The vectors of power iterations, u - epsilon of the optimizer (which `exp_inf` can't give back to the last bit), running
means of weights and figures, and what watches over the loss: with them training goes on as if it had not stopped.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from nvae_tf.models.nvae import ModelForTraining
from nvae_tf.optimization import inner_optimizer
from nvae_tf.published.names import published_tensors
from nvae_tf.training.checkpoints import loss_scale, names_of_variables, training_parts

_OF_TRAINING = ("optimizer/", "metrics/", "others/", "loss_scale/")


def checkpoint_names(made: ModelForTraining) -> Iterator[tuple[str, Any]]:
    """Every variable of a training checkpoint with its name there, or with each of several; the optimizer is built."""
    optimizer = made.model.optimizer
    parts = training_parts(made.model, optimizer, made.variables)
    yield from names_of_variables(parts | {"loss_scale": loss_scale(optimizer)})


def own_variables(made: ModelForTraining, with_training: bool = True) -> dict[str, Any]:
    """The variables that travel, each by one name.

    Args:
      made: the model; its optimizer is built.
      with_training: whether also those that say how training goes on.
    """
    inner = inner_optimizer(made.model.optimizer)
    elsewhere = {id(tensor.variable) for tensor in published_tensors(made.model)}
    elsewhere |= {id(inner.slots_of(variable).momentum) for variable in made.model.trainable_variables}
    elsewhere.add(id(inner.iterations))
    found = {}
    for name, variable in checkpoint_names(made):
        if id(variable) not in elsewhere and (with_training or not is_of_training(name)):
            found[name] = variable
            elsewhere.add(id(variable))
    return found


def is_of_training(name: str) -> bool:
    """Whether a variable of this name in checkpoints says how training goes on, and not what the model is."""
    return name.startswith(_OF_TRAINING)


def check_own_state(state: Mapping[str, np.ndarray], variables: Mapping[str, Any]) -> None:
    """Compares what a file has with the variables that it is for.

    Raises:
      ValueError: it has others, or in other shapes or types; the message names the first.
    """
    for name, value in state.items():
        needed, found = list(variables[name].shape) if name in variables else "no such variable", list(value.shape)
        if found == needed:
            needed, found = tf.as_dtype(variables[name].dtype).name, value.dtype.name
        if found != needed:
            raise ValueError(
                f"'nvae_tf' has {name}: {found} in the file, {needed} in this run's model; the file is damaged, or of "
                "another version of this project"
            )
