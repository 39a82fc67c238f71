"""Joins many small tensors into few, for programs whose compilation takes a time for each tensor.

A model has hundreds of small weights, and a step of it tens of small results. XLA compiles a kernel for each tensor
that it cuts, copies or updates; joined, they are a few.
"""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

# The number of values up to which a tensor is small, unless the user of this module says otherwise.
_SMALL = 2**12


class Packing:
    """Joins the small tensors of each type into one: first those that differ in their first axis alone, then the rest.

    Joining along the first axis takes no reshaping; what is then still small is flattened and joined.

    Args:
      specs: tensors, variables or specs with the shapes and types of the tensors to join. The tensors themselves may
        have more axes in front, such as one for the steps of a loop.
      small: the number of values up to which a tensor is joined with others.
    """

    def __init__(self, specs: Sequence[Any], small: float = _SMALL):
        self._first = FirstAxisPacking(specs, small)
        flat = [
            tf.TensorSpec([spec.shape.num_elements()] if _is_small(spec, small) else spec.shape, spec.dtype)
            for spec in self._first.specs
        ]
        self._second = FirstAxisPacking(flat, small)
        self.specs = self._second.specs  # of the tensors that `pack` returns
        self.is_joined = [  # whether a tensor that `pack` returns is several in one
            len(group) > 1 or len(self._first.groups[group[0]]) > 1 for group in self._second.groups
        ]

    def pack(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The large tensors, and few tensors with the values of all small ones."""
        return self._second.pack(_reshape(self._first.pack(tensors), self._first.specs, self._second.given))

    def unpack(self, packed: Sequence[tf.Tensor | None]) -> list[tf.Tensor | None]:
        """The tensors that `pack` was given; None for each tensor that is in a packed one that is None."""
        return self._first.unpack(_reshape(self._second.unpack(packed), self._second.given, self._first.specs))


class FirstAxisPacking:
    """Joins small tensors of one type whose shapes differ in their first axis alone, along that axis; see `Packing`."""

    def __init__(self, specs: Sequence[Any], small: float):
        self.given, groups = specs, {}
        for index, spec in enumerate(specs):
            can_be_joined = _is_small(spec, small) and spec.shape.rank
            key = (tf.as_dtype(spec.dtype), *spec.shape[1:]) if can_be_joined else index
            groups.setdefault(key, []).append(index)
        self.groups = list(groups.values())  # indices of the tensors that become one
        self.specs = [self._joined_spec(group) for group in self.groups]

    def _joined_spec(self, group: list[int]) -> tf.TensorSpec:
        shape, dtype = self.given[group[0]].shape, self.given[group[0]].dtype
        return tf.TensorSpec([sum(self._lengths(group)), *shape[1:]] if group[1:] else shape, dtype)

    def _lengths(self, group: list[int]) -> list[int]:
        return [self.given[index].shape[0] for index in group]

    def pack(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """One tensor for each of the `groups`."""
        packed = []
        for group, spec in zip(self.groups, self.specs, strict=True):
            members = [tensors[index] for index in group]
            packed.append(tf.concat(members, _axes_in_front(members[0], spec)) if members[1:] else members[0])
        return packed

    def unpack(self, packed: Sequence[tf.Tensor | None]) -> list[tf.Tensor | None]:
        """The tensors that `pack` was given; None for the members of a group that is None."""
        tensors: dict[int, tf.Tensor | None] = {}
        for tensor, group, spec in zip(packed, self.groups, self.specs, strict=True):
            members = [tensor] * len(group)
            if group[1:] and tensor is not None:
                members = tf.split(tensor, self._lengths(group), _axes_in_front(tensor, spec))
            tensors |= zip(group, members, strict=True)
        return [tensors[index] for index in range(len(self.given))]


def _is_small(spec: Any, small: float) -> bool:
    return spec.shape.is_fully_defined() and spec.shape.num_elements() <= small


def _axes_in_front(tensor: tf.Tensor, spec: Any) -> int:
    return tensor.shape.rank - spec.shape.rank


def _reshape(tensors: Sequence[tf.Tensor | None], old: Sequence[Any], new: Sequence[Any]) -> list[tf.Tensor | None]:
    """The tensors with the shapes of the `new` specs in place of the `old` ones, behind the axes in front."""
    reshaped = []
    for tensor, before, after in zip(tensors, old, new, strict=True):
        is_same = tensor is None or before.shape == after.shape
        front = [] if is_same else tensor.shape[: _axes_in_front(tensor, before)]
        reshaped.append(tensor if is_same else tf.reshape(tensor, [*front, *after.shape]))
    return reshaped
