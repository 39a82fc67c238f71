"""Names of a model's weights for checkpoints: the path of attributes that leads to each.

`top_down/scales/0/priors/kernel` tells a reader of a message where to look, where Keras' own names (numbered
in the order of construction, once per process) and those of an object graph
(`optimizer/_trainable_variables/7`) do not.
"""

from collections.abc import Iterator
from typing import Any

import keras


def named_weights(layer: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Every weight of a layer or model once, by the attributes that lead to it.

    Raises:
      RuntimeError: a weight lies where no public attribute leads, so it would be left out of checkpoints.
    """
    names: dict[int, str] = {}
    weights: dict[str, keras.Variable] = {}
    for name, variable in _walk(layer, ()):
        if id(variable) not in names:
            names[id(variable)] = name
            weights[name] = variable
    hidden = [variable.path for variable in layer.weights if id(variable) not in names]
    if hidden:
        raise RuntimeError(f"no public attribute leads to the weights {', '.join(hidden)}")
    return weights


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """The values as a tree of dictionaries, cut at the slashes of their names."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *folders, last = name.split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[last] = value
    return tree


def _walk(holder: Any, path: tuple[str, ...]) -> Iterator[tuple[str, keras.Variable]]:
    if isinstance(holder, keras.Variable):
        yield "/".join(path), holder
    elif isinstance(holder, keras.metrics.Metric | keras.optimizers.Optimizer):
        return  # a model's companions, not its weights
    elif isinstance(holder, keras.layers.Layer):
        for name, value in vars(holder).items():
            if not name.startswith("_"):
                yield from _walk(value, (*path, name))
    elif isinstance(holder, list | tuple):
        for index, value in enumerate(holder):
            yield from _walk(value, (*path, str(index)))
