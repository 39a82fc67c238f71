"""Layers held as one stack: `count` identical layers whose weights share variables with a leading axis.

A hierarchical VAE has hundreds of small identical layers. With one variable each, weight normalization, spectral norms
and the optimizer act on thousands of tensors, and building the graph takes minutes. Here they act on about a hundred,
and one layer of the stack is a pure function of its input and its slice of the weights.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from nvae_tf.replicas import replica_count

# Tensors in any structure of `tf.nest`; what a layer lacks is an empty tuple there, not None.
Weights = Any
Updates = list[tuple[keras.Variable, tf.Tensor]]  # variables and their new values
# All that one layer records in a pass: one vector `[width]` in a list, or `[]`. Not None, because it passes through
# `tf.function` and `tf.recompute_grad`.
RecordVector = list[tf.Tensor]


@dataclasses.dataclass
class ForwardPass:
    """What one pass through the network is given besides tensors, and what it gathers for later."""

    training: bool = False  # with batch statistics, which are recorded, instead of the running ones
    initializing: bool = False  # a training pass: data-dependent layers set their scales from this batch
    labels: tf.Tensor | None = None  # the class of every image, int32 `[batch]`, -1 for none
    traced_inline: bool = False  # a graph has every layer of a stack on its own instead of one function for all
    scanned: bool = False  # a graph has the equal steps of `run_steps` as one loop

    # Gathered: weights as layers use them, and the effective kernels in float32, which the spectral regularizer shares.
    weights: dict[keras.layers.Layer, Weights] = dataclasses.field(default_factory=dict)
    kernels: dict["StackedLayer", tf.Tensor] = dataclasses.field(default_factory=dict)
    # Gathered: all that the layers of each stack have recorded, and the updates of loops and of power iterations.
    recorded: list[tuple["StackedLayer", list[RecordVector]]] = dataclasses.field(default_factory=list)
    known_updates: Updates = dataclasses.field(default_factory=list)

    @property
    def calls_layers(self) -> bool:
        """Whether the composite layers of a stack are calls of one function in the graph, instead of one copy each.

        Not so on several replicas, which can't communicate from within a function, and in a scanned pass, which has few
        layers outside of its loops.
        """
        return not (self.traced_inline or self.scanned or tf.executing_eagerly() or replica_count() > 1)

    def updates(self) -> Updates:
        """All variables that the pass changes, and their new values, made at the first call."""
        for stack, vectors in self.recorded:
            if vectors[0]:
                self.known_updates += stack.updates_from(tf.stack([vector for (vector,) in vectors]), self.initializing)
        self.recorded.clear()
        return self.known_updates

    def commit(self) -> None:
        """Assigns the updates."""
        for variable, value in self.updates():
            variable.assign(value)

    def weights_of(self, layer: keras.layers.Layer) -> Weights:
        """The weights of a layer that has `make_weights`, made once in this pass."""
        if layer not in self.weights:
            self.weights[layer] = layer.make_weights(self)
        return self.weights[layer]


class Folding(NamedTuple):
    """What a `FoldedPass` folds: a batch norm into the convolution right before it, or right after it."""

    convolution: "StackedLayer"
    norm: "StackedLayer"
    on_outputs: bool = True


class StackedLayer(keras.layers.Layer):
    """Base of all stacks: `count` identical layers, one variable a weight with a leading axis of `count`.

    A subclass either owns variables (and overrides `make_weights` and `apply_slice`) or is made of `parts`, stacks of
    the same count, which act one after another unless it says otherwise. All weights are made at construction. With
    `recomputed` the backward pass computes each layer again, and the forward pass keeps only the layer's input.

        layers(forward)              functions of the input, one for each layer
          _apply(weights, inputs)    -> the outputs, and all that the layer records as one vector
            apply_slice(...)         what a subclass computes; in training it appends to `records`
        updates_from(vectors)        after the pass: the variables and their new values
    """

    # The variables `[count, width]` whose next values follow from what the layer records in a training pass.
    statistics: tuple[keras.Variable, ...] = ()

    def __init__(self, count: int, parts: Sequence["StackedLayer"] = (), **kwargs):
        super().__init__(**kwargs)
        self.count = count
        self.parts = list(parts)
        self.recomputed = False
        # Not inlined: TensorFlow prepares the function once, not once for each layer: an earlier first step.
        attributes = {"_noinline": True}
        traced = tf.function(self._apply_in_a_call, autograph=False, experimental_attributes=attributes)
        # Behind a partial, so that exports do not take it for a function to be exported.
        self._call = functools.partial(traced)
        self.built = True

    def add_weight(self, **keywords) -> keras.Variable:
        """As `keras.layers.Layer.add_weight`; a layer casts what it computes in half precision by itself."""
        # Keras casts the variables of an outermost layer even if that says `autocast=False`.
        return super().add_weight(**{"autocast": False} | keywords)

    def make_weights(self, forward: ForwardPass) -> Weights:
        """The ready-to-use weights of the whole stack: what `apply_slice` takes, with a leading axis of `count`."""
        return tuple(forward.weights_of(part) for part in self.parts)

    def apply_slice(self, weights: Weights, inputs: tf.Tensor, records: list) -> tf.Tensor:
        """One layer of the stack, a pure function of `[batch, height, width, channels]` and its weights (`layers_of`).

        In training each of the `recorders` in turn appends to `records` a tuple of vectors `[width]`: batch norm, for
        example, its (mean, variance).
        """
        for part, part_weights in zip(self.parts, weights, strict=True):
            inputs = part.apply_slice(part_weights, inputs, records)
        return inputs

    def recorders(self, initializing: bool = False) -> list["StackedLayer"]:
        """The layers, this one or parts of it, that append to `records` in a training pass, in order."""
        return [recorder for part in self.parts for recorder in part.recorders(initializing)]

    def next_statistic(self, current: keras.Variable, recorded: tf.Tensor) -> tf.Tensor:
        """The value of one of the `statistics` after a pass in which the layers have recorded `[count, width]`."""
        return recorded

    def foldings(self) -> list[Folding]:
        """Where, between parts of this stack, batch norm can be folded into a convolution; in the order of doing it."""
        return []

    def layers(self, forward: ForwardPass) -> list[Callable[[tf.Tensor], tf.Tensor]]:
        """The stack's layers as functions of their input; in training each must be called once."""
        vectors: list[RecordVector] = [[] for _ in range(self.count)]
        if forward.training:
            forward.recorded.append((self, vectors))
        weights = layers_of(forward.weights_of(self), self.count)
        return self.layer_functions(weights, forward, vectors, bool(self.parts) and forward.calls_layers)

    def layer_functions(
        self, weights: Sequence[Weights], forward: ForwardPass, vectors: list[RecordVector], as_calls: bool = False
    ) -> list[Callable[[tf.Tensor], tf.Tensor]]:
        """Layers with these weights as functions of their input; with `as_calls` the graph has calls of one function.

        Layer i puts all that it records into `vectors[i]` when it is called.
        """
        apply = self._call if as_calls else self._apply
        apply = tf.recompute_grad(apply) if self.recomputed and forward.training else apply

        def layer(index: int, inputs: tf.Tensor) -> tf.Tensor:
            outputs, vectors[index] = apply(weights[index], inputs)
            return outputs

        return [functools.partial(layer, index) for index in range(len(weights))]

    def _apply(self, weights: Weights, inputs: tf.Tensor) -> tuple[tf.Tensor, RecordVector]:
        records: list[tuple[tf.Tensor, ...]] = []
        outputs = self.apply_slice(weights, inputs, records)
        return outputs, [tf.concat([tensor for record in records for tensor in record], 0)] if records else []

    def _apply_in_a_call(self, weights: Weights, inputs: tf.Tensor) -> tuple[tf.Tensor, RecordVector]:
        # As integers, because TensorFlow makes a gradient of zeros for each float that a call returns; as unsigned
        # ones, because int32 is kept on the host.
        outputs, vector = self._apply(weights, inputs)
        return outputs, [tf.bitcast(each, tf.uint32) for each in vector]

    def updates_from(self, vectors: tf.Tensor, initializing: bool) -> Updates:
        """Variables and their new values, from the vectors `[count, width]` that the layers have recorded."""
        if vectors.dtype == tf.uint32:  # made by `_apply_in_a_call`
            vectors = tf.bitcast(vectors, tf.float32)
        pairs = [(layer, variable) for layer in self.recorders(initializing) for variable in layer.statistics]
        pieces = tf.split(vectors, [variable.shape[1] for _, variable in pairs], axis=1)
        return [
            (variable, layer.next_statistic(variable, piece))
            for (layer, variable), piece in zip(pairs, pieces, strict=True)
        ]

    def single_layer(self, forward: ForwardPass) -> Callable[[tf.Tensor], tf.Tensor]:
        """The only layer of a stack of one, as a function of its input."""
        (layer,) = self.layers(forward)
        return layer


def layers_of(weights: Weights, count: int) -> list[Weights]:
    """The weights of each layer, from those that `StackedLayer.make_weights` returns."""
    columns = [tf.unstack(each, count) for each in tf.nest.flatten(weights)]
    return [tf.nest.pack_sequence_as(weights, row) for row in zip(*columns, strict=True)]


def stack_of(kind: type[StackedLayer], count: int, *arguments, **keywords) -> StackedLayer | None:
    """A stack of `count` layers, or None where the plan has none of them."""
    return kind(count, *arguments, **keywords) if count else None


@contextlib.contextmanager
def variables_named_alike() -> Iterator[None]:
    """Variables that are made in this block have one name for TensorFlow; Keras' names and paths stay.

    TensorFlow makes the operation of a variable ready to run anew for each name, which takes about a millisecond.
    """

    def make(next_creator: Callable, **settings: Any) -> tf.Variable:
        with tf.name_scope(""):
            return next_creator(**settings | {"name": "weight"})

    with tf.variable_creator_scope(make):
        yield
