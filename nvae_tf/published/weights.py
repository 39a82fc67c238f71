"""The weights of a published checkpoint, into a model and out of it, one variable after the other."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from nvae_tf.config import ModelConfig, check
from nvae_tf.latent_plan import fewest_weights
from nvae_tf.models import NVAE
from nvae_tf.progress import byte_bar
from nvae_tf.published.names import COPY, COUNTER, PublishedTensor, published_tensors

_IGNORED_ENDINGS = (f".{COPY}", f".{COUNTER}")  # of entries that carry no information
_NAMED = 5
_ONE_FILE = "Settings and weights must be those of one file, and that file whole"


class Match(NamedTuple):
    """Which tensors of a file fit an architecture, by their names in the file."""

    fitting: dict[str, PublishedTensor]  # in the order of published files
    ignored: list[str]  # carry no information
    missing: list[str]
    misshapen: dict[str, tuple[int, ...]]  # the shape that the architecture needs
    unknown: list[str]

    def check(self, state: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError unless the state has all tensors, in the right shapes, and no other ones."""
        shapes = [
            f"{name} has shape {np.shape(state[name])}, this architecture needs {needed}"
            for name, needed in self.misshapen.items()
        ]
        faults = {"missing": self.missing, "of another shape": shapes, "unknown": self.unknown}
        problems = "; ".join(
            f"{len(names)} {what}: {', '.join(names[:_NAMED])}{' ...' if len(names) > _NAMED else ''}"
            for what, names in faults.items()
            if names
        )
        check(not problems, f"the published weights do not fit this architecture; tensors: {problems}. {_ONE_FILE}")


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
    """Fills the model from a published `state_dict`, arrays in the published layout, each variable once and whole.

    ValueError, before anything is assigned, with tensors that are missing, left over or of another shape; and with one
    that holds NaN or infinity, after which the model is of no use.
    """
    matched = match(model, state)
    matched.check(state)
    groups = _by_variable((tensor, name) for name, tensor in matched.fitting.items())
    with byte_bar(sum(4 * math.prod(variable.shape) for variable, _ in groups), "weights") as bar:
        for variable, group in groups:
            value = np.empty(variable.shape, np.float32)
            for tensor, name in group:
                place = ... if tensor.index is None else tensor.index
                # A number that is too large for float32 becomes infinity, and is then refused.
                with np.errstate(over="ignore"):
                    value[place] = tensor.from_published(state[name])
                if not np.isfinite(value[place]).all():
                    fix = "take a file from before its training diverged"
                    raise ValueError(f"{name} holds NaN or infinity, so the model is of no use; {fix}")
            variable.assign(value)
            bar.update(value.nbytes)
    model.data_initialised.assign(1.0)


def published_values(tensors: Iterable[PublishedTensor]) -> list[Any]:
    """The weights of published tensors in the published layout, as torch tensors; each variable is read once."""
    import torch

    weights: dict[int, Any] = {}
    for variable, group in _by_variable((tensor, number) for number, tensor in enumerate(tensors)):
        value = variable.numpy()
        # A copy: a view would bring the whole stack into a file.
        copies = {number: np.array(published_array(tensor, value), order="C") for tensor, number in group}
        weights |= {number: torch.from_numpy(copy) for number, copy in copies.items()}
    return [weights[number] for number in range(len(weights))]


def _by_variable(items: Iterable[tuple]) -> list[tuple[Any, list[tuple]]]:
    """Groups items, each of which begins with a PublishedTensor, by its variable."""
    groups: dict[int, list[tuple]] = {}
    for item in items:
        groups.setdefault(id(item[0].variable), []).append(item)
    return [(group[0][0].variable, group) for group in groups.values()]


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
