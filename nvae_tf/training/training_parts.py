"""What a training checkpoint holds, by name."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from nvae_tf.models import NVAE
from nvae_tf.optimization import average_of_weights, inner_optimizer
from nvae_tf.published.names import named_weights, nested

VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


def training_parts(
    model: NVAE, optimizer: keras.optimizers.Optimizer, others: Sequence[tf.Variable] = ()
) -> dict[str, Any]:
    """Weights, running means, the optimizer's variables, running metrics, and what else decides how a run goes on.

    Args:
      model: the model.
      optimizer: the model's optimizer, built.
      others: what else decides it.
    """
    weights, averages = named_weights(model), average_of_weights(model)
    return dict(
        model=nested(weights),
        averages=nested({name: averages[id(weight)] for name, weight in weights.items() if id(weight) in averages}),
        optimizer=list(inner_optimizer(optimizer).variables),
        metrics={metric.name: list(metric.variables) for metric in model.metrics},
        others=list(others),
    )


def loss_scale(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The variables of an optimizer's loss scaling; none where it does not scale."""
    of_inner = {id(variable) for variable in inner_optimizer(optimizer).variables}
    return [variable for variable in optimizer.variables if id(variable) not in of_inner]


def names_of_variables(parts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every variable with its name in a checkpoint, `model/top_down/start`; one that has several names is there with
    each of them.
    """
    for name, value in parts.items():
        inside = dict(enumerate(value)) if isinstance(value, list) else value if isinstance(value, Mapping) else None
        if inside is None:
            yield name, value
        else:
            yield from ((f"{name}/{rest}", variable) for rest, variable in names_of_variables(_texts(inside)))


def _texts(values: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in values.items()}
