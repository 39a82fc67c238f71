"""Layers held as one stack: `count` identical layers whose weights share variables with a leading axis.

A hierarchical VAE has hundreds of small identical layers. With one variable each, weight normalization, spectral norms,
gradients, weight decay and the optimizer act on thousands of tensors, and building the graph takes minutes. Here they
act on about a hundred, and one layer of the stack is a pure function of its input and its slice of the weights.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from nvae_tf.replicas import replica_count


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


@dataclasses.dataclass
class ForwardPass:
    """What one pass through the network gathers besides its output."""

    training: bool = False  # with batch statistics, which are recorded, instead of the running ones
    initializing: bool = False  # data-dependent layers set their scales from this batch
    # The class of every image, int32 `[batch]`, -1 for none; None where no image has one.
    labels: tf.Tensor | None = None
    traced_inline: bool = False  # a graph has every layer of a stack on its own instead of one function for all
    scanned: bool = False  # a graph has the equal steps of `run_steps` as one loop
    # Non-trainable variables and their new values, not yet assigned.
    updates: list[tuple[Any, tf.Tensor]] = dataclasses.field(default_factory=list)
    # The effective kernels of all convolutions: network and spectral regularizer need not both compute them.
    kernels: dict["StackedLayer", tf.Tensor] = dataclasses.field(default_factory=dict)
    weights: dict[keras.layers.Layer, Any] = dataclasses.field(default_factory=dict)
    _constants: dict[Any, tf.Tensor] = dataclasses.field(default_factory=dict)

    def constant(self, value: float) -> tf.Tensor:
        """As `tf.constant`, but one node for all uses in a graph."""
        key = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph(), value
        if key not in self._constants:
            self._constants[key] = tf.constant(value)
        return self._constants[key]

    def commit(self) -> None:
        """Assigns the gathered updates."""
        for variable, value in self.updates:
            variable.assign(value)

    def weights_of(self, layer: keras.layers.Layer) -> Any:
        """The weights of a stack in this pass, see `StackedLayer.weights_of`; read from the variables once."""
        if layer not in self.weights:
            self.weights[layer] = layer.weights_of(self)
        return self.weights[layer]


class Folding(NamedTuple):
    """A convolution, and the batch norm on its outputs, or on its inputs, with nothing between the two."""

    convolution: "StackedLayer"
    norm: "StackedLayer"
    on_outputs: bool = True


class StackedLayer(keras.layers.Layer):
    """Base of all stacks: `count` identical layers, one variable a weight with a leading axis of `count`.

    A subclass either owns variables (and overrides `weights_of` and `apply_slice`) or is made of `parts`, stacks of the
    same count, which act one after another unless it says otherwise. All weights are made at construction. With
    `recomputed` the backward pass computes each layer again, and the forward pass keeps only the layer's input.
    """

    def __init__(self, count: int, parts: Sequence["StackedLayer"] = (), **kwargs):
        super().__init__(**kwargs)
        self.count = count
        self.parts = list(parts)
        self.recomputed = False
        # Not inlined, one layer is made ready to run and not each of its uses: the first step comes sooner.
        attributes = {"_noinline": True}
        traced = tf.function(self._apply_and_pack, autograph=False, experimental_attributes=attributes)
        # Behind a partial, so that exports do not take it for a function to be exported.
        self._traced = functools.partial(traced)
        self.built = True

    def add_weight(self, **keywords) -> keras.Variable:
        """As `keras.layers.Layer.add_weight`; a layer casts what it computes in half precision by itself."""
        # Keras casts the variables of an outermost layer even if that says `autocast=False`.
        return super().add_weight(**{"autocast": False} | keywords)

    def weights_of(self, forward: ForwardPass) -> Any:
        """The ready-to-use weights of the whole stack: what `apply_slice` takes, with a leading axis of `count`."""
        return tuple(forward.weights_of(part) for part in self.parts)

    def apply_slice(self, weights: Any, inputs: tf.Tensor, records: list | None) -> tf.Tensor:
        """One layer of the stack, a pure function of `[batch, height, width, channels]` and its weights (`layers_of`).

        Recording layers append their statistics to `records` in order; None in inference.
        """
        for part, slice_ in zip(self.parts, weights, strict=True):
            inputs = part.apply_slice(slice_, inputs, records)
        return inputs

    def recorders(self) -> list["StackedLayer"]:
        """The parts that append to `records`, in the order in which they do."""
        return [recorder for part in self.parts for recorder in part.recorders()]

    def foldings(self) -> list[Folding]:
        """Where, between parts of this stack, batch norm can be folded into a convolution; in the order of doing it."""
        return []

    @property
    def statistics(self) -> tuple[keras.Variable, ...]:
        """The variables `[count, ...]` whose new values the records have, in their order (recorders only)."""
        return ()

    def record(self, forward: ForwardPass, records: Sequence[tf.Tensor]) -> None:
        """Adds to `forward.updates` what follows from the records of all layers, stacked (recorders only)."""

    @contextlib.contextmanager
    def unstacked(self, forward: ForwardPass) -> Iterator[list[Callable[[tf.Tensor], tf.Tensor]]]:
        """Gives the stack's layers as functions of their input; leaving the block records the whole stack at once."""
        recording = forward.training or forward.initializing
        records: list[list[Any]] = [[] for _ in range(self.count)]
        weights = layers_of(forward.weights_of(self), self.count)
        # In a graph a composite layer is traced once for the whole stack. Not on several replicas: what they must agree
        # on can't be requested from within a function.
        inline = forward.traced_inline or tf.executing_eagerly() or not self.parts or replica_count() > 1
        inline |= forward.scanned  # few are left then, and the shapes are constants for XLA
        apply = self.application(forward, inline)

        def layer(index: int, inputs: tf.Tensor) -> tf.Tensor:
            outputs, records[index] = apply(weights[index], inputs, recording)
            return outputs

        yield [functools.partial(layer, index) for index in range(self.count)]
        if recording:
            stacked = _records_of_inline if inline else functools.partial(_records_of_traced, self.recorders())
            for recorder, layer_statistics in zip(self.recorders(), stacked(records), strict=True):
                if layer_statistics is not None:
                    recorder.record(forward, layer_statistics)

    def application(self, forward: ForwardPass, inline: bool = True) -> Callable:
        """`(weights, inputs, recording) -> (outputs, records)` of one layer, as a pass computes it.

        Unless `inline` the records are what `_apply_and_pack` makes of them.
        """
        apply = self._apply_and_record if inline else self._traced
        return _recomputed(apply) if self.recomputed and forward.training else apply

    def _apply_and_record(self, weights: Any, inputs: tf.Tensor, recording: bool) -> tuple[tf.Tensor, list[Any]]:
        records: list[Any] = []
        outputs = self.apply_slice(weights, inputs, records if recording else None)
        return outputs, records

    def _apply_and_pack(self, weights: Any, inputs: tf.Tensor, recording: bool) -> tuple[tf.Tensor, Any]:
        """As `_apply_and_record`; the records as one vector, and for each recorder whether it has any: `()` or None.

        The vector is of integers, because TensorFlow makes a gradient of zeros for each float that a call returns;
        unsigned ones, because int32 is kept on the host.
        """
        outputs, records = self._apply_and_record(weights, inputs, recording)
        tensors = [tensor for record in records if record is not None for tensor in record]
        packed = tf.bitcast(tf.concat(tensors, 0), tf.uint32) if tensors else None
        return outputs, (packed, [None if record is None else () for record in records])

    def single(self, inputs: tf.Tensor, forward: ForwardPass) -> tf.Tensor:
        """The only layer of a stack of one."""
        with self.unstacked(forward) as (layer,):
            return layer(inputs)


def _recomputed(apply: Callable) -> Callable:
    """`apply(weights, inputs, recording)`, keeping nothing but its arguments for the backward pass."""

    def again(weights: Any, inputs: tf.Tensor, recording: bool) -> tuple[tf.Tensor, list[Any]]:
        # `tf.recompute_grad` takes and returns flat tensors, without None.
        structure: list[Any] = []

        def flat(inputs: tf.Tensor, *tensors: tf.Tensor) -> list[tf.Tensor]:
            given = iter(tensors)
            packed = tf.nest.map_structure(lambda weight: None if weight is None else next(given), weights)
            results = apply(packed, inputs, recording)
            structure[:] = [results]
            return [result for result in tf.nest.flatten(results) if result is not None]

        tensors = [weight for weight in tf.nest.flatten(weights) if weight is not None]
        results = iter(tf.recompute_grad(flat)(inputs, *tensors))
        return tf.nest.map_structure(lambda result: None if result is None else next(results), structure[0])

    return again


def _records_of_inline(records: Sequence[list]) -> list[list[tf.Tensor] | None]:
    """Groups the recorded statistics of all layers by recorder, `[count, ...]`."""
    columns = zip(*records, strict=True)
    return [None if column[0] is None else list(map(tf.stack, zip(*column, strict=True))) for column in columns]


def _records_of_traced(recorders: Sequence[StackedLayer], records: Sequence[tuple]) -> list[list[tf.Tensor] | None]:
    """As `_records_of_inline`, from what `_apply_and_pack` makes of the records."""
    packed, (kinds, *_) = zip(*records, strict=True)
    recorded = [None if kind is None else recorder.statistics for recorder, kind in zip(recorders, kinds, strict=True)]
    widths = [variable.shape[1] for variables in recorded if variables for variable in variables]
    pieces = iter(tf.split(tf.bitcast(tf.stack(packed), tf.float32), widths, axis=1) if widths else [])
    return [None if variables is None else [next(pieces) for _ in variables] for variables in recorded]


def layers_of(weights: Any, count: int) -> list[Any]:
    """The weights of each layer, from those of `StackedLayer.weights_of`."""
    columns = [[None] * count if each is None else tf.unstack(each) for each in tf.nest.flatten(weights)]
    return [tf.nest.pack_sequence_as(weights, row) for row in zip(*columns, strict=True)]


def stack_of(kind: type[StackedLayer], count: int, *arguments, **keywords) -> StackedLayer | None:
    """A stack of `count` layers, or None where the plan has none of them."""
    return kind(count, *arguments, **keywords) if count else None


def unstacked(
    stack: StackedLayer | None, forward: ForwardPass
) -> contextlib.AbstractContextManager[list[Callable[[tf.Tensor], tf.Tensor]]]:
    """See `StackedLayer.unstacked`; an empty list where there is no stack."""
    return contextlib.nullcontext([]) if stack is None else stack.unstacked(forward)
