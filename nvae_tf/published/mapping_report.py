"""Where every tensor of a file has gone, as a table."""

import csv
import io
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from nvae_tf.files import atomic_write
from nvae_tf.models import NVAE
from nvae_tf.published.optimizer import MOMENTUM, NORM, SavedOptimizer
from nvae_tf.published.weight_names import named_weights
from nvae_tf.published.weights import Match

# The optimizer's slots, by the names of what fills them.
_SLOTS = {MOMENTUM: "momentum", NORM: "norm"}


class Row(NamedTuple):
    """A tensor of the file and the place that it fills.

    Attributes:
      source: its name in the file; `optimizer.N.exp_avg` for the moments of parameter N, `nvae_tf.NAME` for what this
        project has added to a file.
      shape: its shape there.
      dtype: its type there.
      target: the variable, by the attributes of the model that lead to it.
      index: the place on the variable's leading axis; empty where the variable is no stack.
      target_shape: the variable's shape.
      note: why it was not taken, or what is wrong with it; empty where it was taken.
    """

    source: str
    shape: str = ""
    dtype: str = ""
    target: str = ""
    index: int | str = ""
    target_shape: str = ""
    note: str = ""


def rows_of_weights(model: NVAE, matched: Match, state: Mapping[str, np.ndarray]) -> Iterator[Row]:
    """A row for each tensor of the `state_dict`, and for each that it lacks."""
    names = {id(weight): name for name, weight in named_weights(model).items()}
    for name, value in state.items():
        row = _source(name, value)
        if name in matched.found:
            row = _with_target(row, names, matched.found[name].variable, matched.found[name].index)
        elif name in matched.misshapen:
            row = row._replace(note=f"of another shape: this architecture needs {_text(matched.misshapen[name])}")
        else:
            row = row._replace(note="ignored: carries nothing" if name in matched.ignored else "unknown")
        yield row
    yield from (Row(name, note="missing") for name in matched.missing)


def rows_without_model(state: Mapping[str, np.ndarray], note: str) -> list[Row]:
    """A row for each tensor of the `state_dict`, where no model is made.

    Args:
      state: the tensors.
      note: why.
    """
    return [_source(name, value)._replace(note=note) for name, value in state.items()]


def rows_of_moments(model: NVAE, saved: SavedOptimizer, has_own_norms: bool) -> Iterator[Row]:
    """A row for each of the optimizer's tensors that are taken over.

    Args:
      model: the model.
      saved: what the file has of the optimizer.
      has_own_norms: whether this project has added the norms to the file, in its own form.
    """
    names = {id(weight): name for name, weight in named_weights(model).items()}
    for number, _, tensor, arrays in saved.moments:
        for name in arrays:
            row = _source(f"optimizer.{number}.{name}", arrays[name])
            if name == NORM and has_own_norms:
                yield row._replace(note="ignored: nvae_tf.optimizer has it to the last bit")
                continue
            row = _with_target(row, names, tensor.variable, tensor.index)
            yield row._replace(target=f"{_SLOTS[name]} of {row.target}")


def rows_of_moments_left_out(content: Mapping[str, Any], note: str) -> Iterator[Row]:
    """A row for each of the optimizer's tensors, where none is taken over.

    Args:
      content: what the file has under `optimizer`.
      note: why.
    """
    state = content.get("state")
    for number, arrays in state.items() if isinstance(state, Mapping) else ():
        for name, value in arrays.items() if isinstance(arrays, Mapping) else ():
            if isinstance(value, np.ndarray) and name in _SLOTS:
                yield _source(f"optimizer.{number}.{name}", value)._replace(note=note)


def rows_of_own_state(values: Mapping[str, np.ndarray], taken: Collection[str]) -> Iterator[Row]:
    """A row for each tensor that this project has added, by its name in checkpoints."""
    for name, value in values.items():
        row = _source(f"nvae_tf.{name}", value)
        if name in taken:
            yield row._replace(target=name, target_shape=row.shape)
        else:
            yield row._replace(note="ignored: of the optimizer's state")


def write_report(path: pathlib.Path, rows: list[Row]) -> None:
    """Writes the rows as CSV, with a heading."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    atomic_write(path, text.getvalue())


def _source(name: str, value: np.ndarray) -> Row:
    return Row(name, _text(value.shape), str(value.dtype))


def _with_target(row: Row, names: Mapping[int, str], variable: Any, index: int | None) -> Row:
    place = "" if index is None else index
    return row._replace(target=names[id(variable)], index=place, target_shape=_text(tuple(variable.shape)))


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
