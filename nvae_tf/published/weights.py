"""The weights of a published checkpoint, into a model and out of it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from nvae_tf.config import ModelConfig
from nvae_tf.latent_plan import fewest_weights
from nvae_tf.models import NVAE
from nvae_tf.published.names import COPY, COUNTER, PublishedTensor, published_tensors

_IGNORED_ENDINGS = (f".{COPY}", f".{COUNTER}")  # of entries that carry no information
_ONE_FILE = "Settings and weights must be those of one file, and that file whole"


class Match(NamedTuple):
    """Which tensors of a file fit an architecture, by their names in the file."""

    fitting: dict[str, PublishedTensor]
    ignored: list[str]  # carry no information
    missing: list[str]
    misshapen: dict[str, tuple[int, ...]]  # the shape that the architecture needs
    unknown: list[str]


def match(model: NVAE, state: Mapping[str, np.ndarray]) -> Match:
    """Compares names and shapes of a state with what the model needs; reads no number."""
    fitting, missing, misshapen = {}, [], {}
    for tensor in published_tensors(model):
        name = next((name for name in tensor.names if name in state), None)
        if name is None:
            missing.append(tensor.names[-1])
        elif np.shape(state[name]) != published_shape(tensor):
            misshapen[name] = published_shape(tensor)
        else:
            fitting[name] = tensor
    layers = {name.rpartition(".")[0] for name in (*fitting, *misshapen)}
    ignored = [name for name in state if name.endswith(_IGNORED_ENDINGS) and name.rpartition(".")[0] in layers]
    unknown = sorted(state.keys() - fitting.keys() - misshapen.keys() - set(ignored))
    return Match(fitting, ignored, missing, misshapen, unknown)


def load_published_weights(model: NVAE, state: Mapping[str, np.ndarray]) -> None:
    """Fills the model from a `state_dict` of arrays; ValueError, before anything is assigned, where they do not fit."""
    fitting, _, missing, misshapen, unknown = match(model, state)
    shapes = [f"{name} has shape {np.shape(state[name])}, not {needed}" for name, needed in misshapen.items()]
    faults = {"missing": missing, "of another shape": shapes, "unknown": unknown}
    if problems := [f"{len(names)} {what}: {', '.join(names[:5])}" for what, names in faults.items() if names]:
        fault = f"the published weights do not fit this architecture; tensors: {'; '.join(problems)}"
        raise ValueError(f"{fault}. {_ONE_FILE}")
    values: dict[int, tuple[Any, np.ndarray]] = {}
    for name, tensor in fitting.items():
        variable, place = tensor.variable, ... if tensor.index is None else tensor.index
        _, value = values.setdefault(id(variable), (variable, np.empty(variable.shape, np.float32)))
        with np.errstate(over="ignore"):  # a number that is too large for float32 becomes infinity
            value[place] = tensor.from_published(state[name])
        if not np.isfinite(value[place]).all():
            raise ValueError(f"{name} holds NaN or infinity; take a file from before its training diverged")
    while values:  # each is freed once it is assigned
        _, (variable, value) = values.popitem()
        variable.assign(value)
    model.data_initialised.assign(1.0)


def published_state(model: NVAE, step: int) -> dict[str, Any]:
    """The `state_dict` of a published file, torch tensors, in its order and with the entries without information."""
    import torch

    state = {}
    for tensor in published_tensors(model):
        value = tensor.variable if tensor.index is None else tensor.variable[tensor.index]
        # A copy: a view would bring the memory of its base into the file.
        weight = torch.from_numpy(np.array(tensor.to_published(np.asarray(value)), order="C"))
        state[tensor.names[0]] = weight
        if tensor.companion:
            state[tensor.companion] = torch.tensor(step) if tensor.companion.endswith(COUNTER) else weight
    return state


def published_array(tensor: PublishedTensor, value: np.ndarray) -> np.ndarray:
    """The part of a variable-shaped `value` (weights or gradients) that is this tensor, in the published layout."""
    return tensor.to_published(value if tensor.index is None else value[tensor.index])


def published_shape(tensor: PublishedTensor) -> tuple[int, ...]:
    """The shape of a tensor in published files; takes no memory for its numbers."""
    return published_array(tensor, np.broadcast_to(np.float32(0.0), tuple(tensor.variable.shape))).shape


def check_implied_size(config: ModelConfig, state: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where an architecture has more numbers than a file, so that it is never built."""
    needed, numbers = fewest_weights(config), sum(value.size for value in state.values())
    if needed > numbers:
        fits = "the published weights do not fit this architecture"
        raise ValueError(f"{fits}: it has at least {needed:,} numbers, and the file {numbers:,}. {_ONE_FILE}")
