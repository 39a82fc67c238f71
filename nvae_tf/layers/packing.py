"""Joins many small tensors into few: XLA compiles a kernel for each tensor that a program cuts, copies or updates."""

import collections
from collections.abc import Sequence
from typing import Any

import tensorflow as tf


class Packing:
    """Joins the small tensors of each type into one: first those that differ in their first axis alone, then the rest.

    Joining along the first axis takes no reshaping; what is then still small is flattened and joined.

    Args:
      specs: tensors, variables or specs with the shapes and types of the tensors to join. The tensors themselves may
        have more axes in front, such as one for the steps of a loop.
      small: the number of values up to which a tensor is joined with others.
    """

    def __init__(self, specs: Sequence[Any], small: float = 2**12):
        self._first = FirstAxisPacking(specs, small)
        self._flat = [
            tf.TensorSpec([spec.shape.num_elements()] if _is_small(spec, small) else spec.shape, spec.dtype)
            for spec in self._first.specs
        ]
        self._second = FirstAxisPacking(self._flat, small)
        self.specs = self._second.specs  # of the tensors that `pack` returns

    def pack(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The large tensors, and few tensors with the values of all small ones."""
        return self._second.pack(_reshape(self._first.pack(tensors), self._first.specs, self._flat))

    def unpack(self, packed: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The tensors that `pack` was given."""
        return self._first.unpack(_reshape(self._second.unpack(packed), self._flat, self._first.specs))


class FirstAxisPacking:
    """Joins small tensors of one type whose shapes differ in their first axis alone, along that axis; see `Packing`."""

    def __init__(self, specs: Sequence[Any], small: float):
        groups = collections.defaultdict(list)
        for index, spec in enumerate(specs):
            can_be_joined = _is_small(spec, small) and spec.shape.rank
            groups[(tf.as_dtype(spec.dtype), *spec.shape[1:]) if can_be_joined else index].append(index)
        self._groups = list(groups.values())  # indices of the tensors that become one
        self._lengths = [[specs[index].shape[0] for index in group] if group[1:] else [] for group in self._groups]
        self.specs = []  # of the tensors that `pack` returns
        for (first, *_), lengths in zip(self._groups, self._lengths, strict=True):
            shape = specs[first].shape
            self.specs.append(tf.TensorSpec([sum(lengths), *shape[1:]] if lengths else shape, specs[first].dtype))

    def pack(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Fewer tensors, with the same values."""
        packed = []
        for group, spec in zip(self._groups, self.specs, strict=True):
            members = [tensors[index] for index in group]
            packed.append(tf.concat(members, _axes_in_front(members[0], spec)) if members[1:] else members[0])
        return packed

    def unpack(self, packed: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The tensors that `pack` was given."""
        tensors = {}
        for tensor, group, lengths, spec in zip(packed, self._groups, self._lengths, self.specs, strict=True):
            members = tf.split(tensor, lengths, _axes_in_front(tensor, spec)) if lengths else [tensor]
            tensors |= zip(group, members, strict=True)
        return [tensors[index] for index in sorted(tensors)]


def _is_small(spec: Any, small: float) -> bool:
    return spec.shape.is_fully_defined() and spec.shape.num_elements() <= small


def _axes_in_front(tensor: tf.Tensor, spec: Any) -> int:
    return tensor.shape.rank - spec.shape.rank


def _reshape(tensors: Sequence[tf.Tensor], old: Sequence[Any], new: Sequence[Any]) -> list[tf.Tensor]:
    """The tensors with the shapes of the `new` specs in place of the `old` ones, behind the axes in front."""
    reshaped = []
    for tensor, before, after in zip(tensors, old, new, strict=True):
        if before.shape != after.shape:
            tensor = tf.reshape(tensor, [*tensor.shape[: _axes_in_front(tensor, before)], *after.shape])
        reshaped.append(tensor)
    return reshaped
