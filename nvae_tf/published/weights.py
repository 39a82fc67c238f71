"""Weights of a published checkpoint into a model."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from nvae_tf.models import NVAE
from nvae_tf.published.names import COPY, COUNTER, PublishedTensor, published_tensors
from nvae_tf.published.stacks import Piece, assign_pieces, pass_over
from nvae_tf.training.finite_numbers import only_finite

# Copies of other tensors of the same layer, and counters, which carry nothing.
_IGNORED_ENDINGS = (f".{COPY}", f".{COUNTER}")
_NAMED = 5
BROKEN_WEIGHTS = "nothing can go on from it. Take a file from before its training diverged"


class Match(NamedTuple):
    """Which tensors of a file go where, by their names in the file.

    Attributes:
      found: those that fit, in the order of published files.
      ignored: those that carry nothing.
      missing: the names of those that the file lacks.
      misshapen: those of another shape, and the shape that the architecture needs.
      unknown: those that the architecture has no place for.
    """

    found: dict[str, PublishedTensor]
    ignored: list[str]
    missing: list[str]
    misshapen: dict[str, tuple[int, ...]]
    unknown: list[str]

    def pieces(self, state: Mapping[str, np.ndarray]) -> list[Piece]:
        """The arrays of a state and the places that they fill; one that is not finite ends it by ValueError."""
        return [
            Piece(
                tensor.variable,
                tensor.index,
                np.asarray(state[name]),
                only_finite(tensor.from_published, name, BROKEN_WEIGHTS),
            )
            for name, tensor in self.found.items()
        ]

    def check(self, state: Mapping[str, np.ndarray]) -> None:
        """Raises ValueError unless the state has all tensors, in the right shapes, and no other ones."""
        shapes = [
            f"{name} has shape {np.shape(state[name])}, this architecture needs {needed}"
            for name, needed in self.misshapen.items()
        ]
        faults = (("missing", self.missing), ("of another shape", shapes), ("unknown", self.unknown))
        problems = [f"{len(names)} {what}: {_some(names)}" for what, names in faults if names]
        if problems:
            raise ValueError(
                "the published weights do not fit this architecture; tensors: "
                + "; ".join(problems)
                + ". Settings and weights must be those of one file, and that file whole"
            )


def match(model: NVAE, state: Mapping[str, np.ndarray]) -> Match:
    """Compares names and shapes of a state with what the model needs; no number is looked at."""
    found, missing, misshapen = {}, [], {}
    for tensor in published_tensors(model):
        name = next((name for name in tensor.names if name in state), None)
        if name is None:
            missing.append(tensor.names[-1])
        elif np.shape(state[name]) != published_shape(tensor):
            misshapen[name] = published_shape(tensor)
        else:
            found[name] = tensor
    layers = {_layer(name) for name in (*found, *misshapen)}
    ignored = [name for name in state if name.endswith(_IGNORED_ENDINGS) and _layer(name) in layers]
    unknown = sorted(state.keys() - found.keys() - misshapen.keys() - set(ignored))
    return Match(found, ignored, missing, misshapen, unknown)


def load_published_weights(
    model: NVAE, state: Mapping[str, np.ndarray], report: Callable[[int], None] = pass_over
) -> None:
    """Fills the model from a published `state_dict` of arrays in the published layout, one variable after the other.

    Nothing is assigned unless every tensor fits; where one then turns out to hold NaN, the model is of no use.

    Args:
      model: the model.
      state: arrays by name; they may lie in a file that is mapped into memory.
      report: is given the bytes that are assigned so far.

    Raises:
      ValueError: tensors are missing, left over, of another shape or not finite; the message names them.
    """
    matched = match(model, state)
    matched.check(state)
    assign_pieces(matched.pieces(state), report)
    model.data_initialised.assign(1.0)


def published_array(tensor: PublishedTensor, value: np.ndarray) -> np.ndarray:
    """The part of a variable-shaped `value` (weights or gradients) that is this tensor, in the published layout."""
    return tensor.to_published(value if tensor.index is None else value[tensor.index])


def published_shape(tensor: PublishedTensor) -> tuple[int, ...]:
    """The shape of a tensor in published files."""
    # Without memory for its numbers.
    return published_array(tensor, np.broadcast_to(np.float32(0.0), tuple(tensor.variable.shape))).shape


def _layer(name: str) -> str:
    return name.rpartition(".")[0]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")
