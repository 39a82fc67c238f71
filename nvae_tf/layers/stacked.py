"""Stacks: `count` layers of one kind, whose weights share variables with a leading axis, `[count, ...]`.

A hierarchical VAE has hundreds of small layers of one kind. With a variable for each weight of each layer, weight
normalization, spectral norms and the optimizer would act on thousands of tensors, and building the graph would take
minutes. Here they act on some hundreds. One layer is a pure function of its input and its slice of the weights.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from nvae_tf.layers.cpu_kernels import has_cpu_forms
from nvae_tf.replicas import replica_count

# Tensors in any structure of `tf.nest`; what a layer lacks is an empty tuple there, not None.
Weights = Any
Updates = list[tuple[keras.Variable, tf.Tensor]]  # variables and their new values


@dataclasses.dataclass
class ForwardPass:
    """How one pass through the network is computed, and what it gathers for later: layers change no variable."""

    training: bool = False  # batch norm uses the statistics of the batch, and records them
    # A training pass in which data-dependent layers set their scales from the batch.
    initializing: bool = False
    labels: tf.Tensor | None = None  # the class of every image, int32 `[batch]`, -1 for none
    # No shared functions (see `calls_shared_functions`): the operations of each layer stand in the graph themselves.
    inlined: bool = False
    scanned: bool = False  # equal steps are one loop of the graph, see `run_steps`
    # Forms of operations that are faster on CPUs, and slower on GPUs.
    cpu_forms: bool = dataclasses.field(default_factory=has_cpu_forms)

    # Made once in a pass: the weights of each layer as it uses them, and the effective kernels in float32, which the
    # spectral regularizer uses too.
    weights: dict[keras.layers.Layer, Weights] = dataclasses.field(default_factory=dict)
    kernels: dict["StackedLayer", tf.Tensor] = dataclasses.field(default_factory=dict)
    # Gathered in the pass: (stack, recorded), where recorded is `[[v0], [v1], [v2]]`, a vector of each of three layers
    # once they have been called, or `[[], [], []]` if they record nothing.
    recorded: list[tuple["StackedLayer", list[list[tf.Tensor]]]] = dataclasses.field(default_factory=list)
    known_updates: Updates = dataclasses.field(default_factory=list)  # of the spectral regularizer's variables

    @property
    def calls_shared_functions(self) -> bool:
        """Whether layers with parts are calls of one function that their stack shares: the graph stays small."""
        # Not on several replicas, which can't communicate from within a function, and not in a scanned pass, which has
        # few layers outside of its loops.
        return not (self.inlined or self.scanned or tf.executing_eagerly() or replica_count() > 1)

    def weights_of(self, layer: keras.layers.Layer) -> Weights:
        """What `layer.make_weights` returns; made once in this pass."""
        if layer not in self.weights:
            self.weights[layer] = layer.make_weights(self)
        return self.weights[layer]

    def updates(self) -> Updates:
        """All variables that the pass changes, and their new values."""
        updates = list(self.known_updates)
        for stack, recorded in self.recorded:
            if recorded[0]:  # all layers of a stack record something, or none does
                # Vectors are `[width]`, or `[steps, width]` from a loop; together they become `[count, width]`.
                vectors = tf.stack([vector for (vector,) in recorded], axis=-2)
                if vectors.shape.rank > 2:
                    vectors = tf.reshape(vectors, (stack.count, -1))
                updates += stack.updates_from(vectors, self.initializing)
        return updates

    def commit(self) -> Updates:
        """Assigns the updates, and returns them."""
        updates = self.updates()
        for variable, value in updates:
            variable.assign(value)
        return updates


class StackedLayer(keras.layers.Layer):
    """The base of all stacks: `count` layers of one kind. All variables are made at construction.

    A subclass overrides `make_weights` and `apply_layer`, and the rest if it records statistics, or is made of `parts`:
    stacks of the same count, whose layers act one after another unless it overrides `apply_layer`. Batch norm for
    example (normalization.py):

        make_weights(forward)                  in training gamma and beta of all layers, each `[count, channels]`
        apply_layer(weights, inputs, records)  normalizes one layer's inputs, with gamma and beta of `[channels]`; in
                                               training it appends the batch's (mean, variance) to `records`
        statistics                             the moving means and variances of all layers, `[count, channels]`
        next_statistic(current, recorded)      what one of them becomes: 0.95 current + 0.05 recorded

    A pass calls `layers(forward)[i](inputs)`, which puts what `apply_layer` has appended into `forward.recorded`, one
    vector for each layer. After the pass `forward.updates()` makes new statistics of these vectors (`updates_from`).
    With `recomputed` the backward pass computes each layer again, and only the layer's input is kept until then.
    """

    # Variables `[count, width]` whose next values follow from what the layers record in a training pass.
    statistics: tuple[keras.Variable, ...] = ()

    def __init__(self, count: int, parts: Sequence["StackedLayer"] = (), **kwargs):
        super().__init__(**kwargs)
        self.count = count
        self.parts = list(parts)
        self.recomputed = False
        # One function of the graph for all layers: TensorFlow prepares it once, so that the first step starts sooner.
        # Behind a partial: `tf.saved_model.save` exports each `tf.function` that is an attribute.
        traced = tf.function(self._apply_shared, autograph=False, experimental_attributes={"_noinline": True})
        self._shared_function = functools.partial(traced)
        self.built = True

    def add_weight(self, **keywords) -> keras.Variable:
        """As `keras.layers.Layer.add_weight`; a layer casts what it computes in half precision by itself."""
        # Keras casts the variables of an outermost layer even if that says `autocast=False`.
        return super().add_weight(**{"autocast": False} | keywords)

    def make_weights(self, forward: ForwardPass) -> Weights:
        """What `apply_layer` takes, with a leading axis of `count`."""
        return tuple(forward.weights_of(part) for part in self.parts)

    def apply_layer(self, weights: Weights, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        """One layer, a pure function of `[batch, height, width, channels]` and its weights, without the leading axis.

        In training each of the `recorders` in turn appends to `records` a tuple of vectors `[width]`: batch norm, for
        example, its (mean, variance). In inference `records` is None.
        """
        for part, part_weights in zip(self.parts, weights, strict=True):
            inputs = part.apply_layer(part_weights, inputs, records)
        return inputs

    def layers(self, forward: ForwardPass) -> list[Callable[[tf.Tensor], tf.Tensor]]:
        """The stack's layers as functions of their input; in training each must be called once."""
        weights = unstacked(forward.weights_of(self), self.count)
        functions, recorded = self.layers_with(weights, forward)
        if forward.training:
            forward.recorded.append((self, recorded))
        return functions

    def single_layer(self, forward: ForwardPass) -> Callable[[tf.Tensor], tf.Tensor]:
        """The only layer of a stack of one, as a function of its input."""
        (layer,) = self.layers(forward)
        return layer

    def layers_with(
        self, weights: Sequence[Weights], forward: ForwardPass
    ) -> tuple[list[Callable[[tf.Tensor], tf.Tensor]], list[list[tf.Tensor]]]:
        """Layers with these weights, as functions of their input, and what each records in a training pass.

        The second list is filled when the layers are called: for each layer one vector `[width]` in a list, or `[]`.
        """
        recorded: list[list[tf.Tensor]] = [[] for _ in weights]
        # A stack without parts, such as one of convolutions, always stands in the graph itself.
        plain = self._shared_function if self.parts and forward.calls_shared_functions else self._apply
        apply = functools.partial(plain, training=forward.training)
        if self.recomputed and forward.training:
            apply = tf.recompute_grad(apply)

        def layer(index: int, inputs: tf.Tensor) -> tf.Tensor:
            outputs, recorded[index] = apply(weights[index], inputs)
            return outputs

        return [functools.partial(layer, index) for index in range(len(weights))], recorded

    def _apply(self, weights: Weights, inputs: tf.Tensor, training: bool) -> tuple[tf.Tensor, list[tf.Tensor]]:
        """The output of a layer, and one vector of all that it records; no vector where it records nothing."""
        records: list[tuple[tf.Tensor, ...]] | None = [] if training else None
        outputs = self.apply_layer(weights, inputs, records)
        # For nothing an empty list and not None, which `tf.recompute_grad` does not let through.
        return outputs, [tf.concat([tensor for record in records for tensor in record], 0)] if records else []

    def _apply_shared(self, weights, inputs, training: bool) -> tuple[tf.Tensor, list[tf.Tensor]]:
        # The statistics leave the function as the bits of uint32: as floats they would get gradients, all zeros, and as
        # int32 TensorFlow would keep them in the host's memory. `updates_from` makes them floats again.
        outputs, recorded = self._apply(weights, inputs, training)
        return outputs, [tf.bitcast(vector, tf.uint32) for vector in recorded]

    def recorders(self, initializing: bool = False) -> list["StackedLayer"]:
        """The stacks, this one or parts of it, that record statistics in training, or when `initializing`, in order."""
        own = [self] if self.statistics else []
        return own + [recorder for part in self.parts for recorder in part.recorders(initializing)]

    def updates_from(self, vectors: tf.Tensor, initializing: bool) -> Updates:
        """The variables of all `recorders`, and their new values by what the layers have recorded, `[count, width]`."""
        if vectors.dtype == tf.uint32:  # made by `_apply_shared`
            vectors = tf.bitcast(vectors, tf.float32)
        pairs = [(stack, variable) for stack in self.recorders(initializing) for variable in stack.statistics]
        pieces = tf.split(vectors, [variable.shape[1] for _, variable in pairs], axis=1)
        return [
            (variable, stack.next_statistic(variable, piece))
            for (stack, variable), piece in zip(pairs, pieces, strict=True)
        ]

    def next_statistic(self, current: keras.Variable, recorded: tf.Tensor) -> tf.Tensor:
        """The next value of one of the `statistics`, from what a pass has recorded of it, `[count, width]`."""
        return recorded

    def foldings(self) -> list:
        """The `Folding`s between parts of this stack (normalization.py), in the order of doing them."""
        return []


def unstacked(weights: Weights, count: int) -> list[Weights]:
    """The weights of each layer, from those that `StackedLayer.make_weights` returns."""
    columns = [tf.unstack(each, count) for each in tf.nest.flatten(weights)]
    return [tf.nest.pack_sequence_as(weights, row) for row in zip(*columns, strict=True)]


def layers_of_kind(outer: keras.layers.Layer, kind: type | tuple[type, ...]) -> list[keras.layers.Layer]:
    """All layers inside `outer`, however deep, that are of a class, or of one of several."""
    return [layer for layer in outer._flatten_layers(include_self=False) if isinstance(layer, kind)]


def stack_of(kind: type[StackedLayer], count: int, *arguments, **keywords) -> StackedLayer | None:
    """A stack of `count` layers, or None where the plan has none of them."""
    return kind(count, *arguments, **keywords) if count else None


@contextlib.contextmanager
def variables_named_alike() -> Iterator[None]:
    """Variables that are made in this block have one name for TensorFlow; Keras' names and paths stay.

    TensorFlow prepares the operation that makes a variable once for each distinct name, about a millisecond each.
    """

    def make(next_creator: Callable, **settings: Any) -> tf.Variable:
        with tf.name_scope(""):
            return next_creator(**settings | {"name": "weight"})

    with tf.variable_creator_scope(make):
        yield
