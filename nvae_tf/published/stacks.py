"""Filling variables from arrays one after the other, so that no second copy of a model is ever in memory."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np


class Piece(NamedTuple):
    """An array for a place in a variable.

    Attributes:
      variable: the variable, of float32.
      index: the place on its leading axis; None for all of it.
      source: the array as it is stored.
      convert: turns it into this model's layout.
    """

    variable: Any
    index: int | None
    source: np.ndarray
    convert: Callable[[np.ndarray], np.ndarray]


def pass_over(_: Any) -> None:
    """Takes what is reported, and does nothing."""


def assign_pieces(
    pieces: Iterable[Piece],
    report: Callable[[int], None] = pass_over,
    forget: Callable[[np.ndarray], None] = pass_over,
) -> None:
    """Assigns every variable once, whole; the pieces of one must fill it.

    Args:
      pieces: in any order.
      report: is given the bytes that are assigned so far.
      forget: is given every source once it has been used.
    """
    of_variable: dict[int, list[Piece]] = {}
    for piece in pieces:
        of_variable.setdefault(id(piece.variable), []).append(piece)
    done = 0
    for group in of_variable.values():
        value = np.empty(group[0].variable.shape, np.float32)
        for piece in group:
            (value if piece.index is None else value[piece.index])[...] = piece.convert(piece.source)
            forget(piece.source)
        group[0].variable.assign(value)
        done += value.nbytes
        report(done)


def size_of(pieces: Iterable[Piece]) -> int:
    """The bytes of all variables that the pieces fill."""
    variables = {id(piece.variable): piece.variable for piece in pieces}
    return sum(4 * int(np.prod(variable.shape, dtype=np.int64)) for variable in variables.values())
