"""Equal steps, each with its layers of some stacks: one after another in the graph, or as one loop of it.

The loop (`ForwardPass.scanned`) keeps the program that XLA compiles as small for fifty groups as for two. Its body is
the same step with a slice of the stacked weights. The gradient is a second loop: what the forward loop keeps for it are
the results of convolutions and products; all else in a step takes little time and is computed again.
"""

import contextlib
import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from nvae_tf.layers.cpu_kernels import concatenated
from nvae_tf.layers.stacked import ForwardPass, StackedLayer, layers_of, unstacked

# Operations whose results are kept for the backward pass.
_KEPT = ("Conv2D", "DepthwiseConv2dNative", "MatMul", "PartitionedCall", "StatefulPartitionedCall")

# Tensors of so many numbers are joined with others.
_SMALL = 2**12


class Part(NamedTuple):
    """A stack, None where there is none, of which every step has so many layers; the last steps where it has fewer."""

    stack: StackedLayer | None
    layers_a_step: int = 1

    def recorders(self) -> list[StackedLayer]:
        """See `StackedLayer.recorders`."""
        return [] if self.stack is None else self.stack.recorders()

    def layers_of_step(self, layers: Sequence[Any], index: int) -> Sequence[Any]:
        """Those of a step; steps count from the end, -1 is the last. None where they are too few for it."""
        first = len(layers) + index * self.layers_a_step
        return layers[first : first + self.layers_a_step] if first >= 0 else []


# `(layers, state, input) -> (state, output)`; `layers` are functions of a tensor, a list of them for each part.
Step = Callable[[list[list[Callable]], tf.Tensor, Any], tuple[tf.Tensor, Any]]


def in_turn(
    parts: Sequence[Part],
    step: Step,
    state: tf.Tensor,
    inputs: Sequence[Any],
    forward: ForwardPass,
    tensors_of: Callable[[Any], list[tf.Tensor]] = lambda _: [],
) -> tuple[tf.Tensor, list[Any], list[tf.Tensor]]:
    """The state after a step for each of the `inputs`, and what the steps have put out; records batch statistics.

    Where `forward.scanned` the last steps, those that have layers of every part, are a loop if they are two or more.
    Of these steps the third result has the `tensors_of` an output, with an axis for the steps in front; the second has
    the outputs of all other steps. Steps that lack layers of a part have none that record.
    """
    alone = max(len(inputs) - part.stack.count // part.layers_a_step for part in parts if part.stack is not None)
    if not forward.scanned or tf.executing_eagerly() or len(inputs) - alone < 2:
        return (*_unrolled(parts, step, state, inputs, forward), [])
    weights = [None if part.stack is None else part.stack.weights_of(forward) for part in parts]
    outputs = []
    for index, of_step in enumerate(inputs[:alone], -len(inputs)):
        layers = [_layers_alone(*pair, index, forward) for pair in zip(parts, weights, strict=True)]
        state, output = step(layers, state, of_step)
        outputs.append(output)
    state, kept, records = _loop(parts, weights, step, state, inputs[alone:], forward, tensors_of)
    for recorder, of_recorder in zip((each for part in parts for each in part.recorders()), records, strict=True):
        if of_recorder:
            pairs = zip(of_recorder, recorder.statistics, strict=True)
            recorder.record(forward, [tf.reshape(tensor, variable.shape) for tensor, variable in pairs])
    return state, outputs, kept


def run_cells(cells: StackedLayer | None, state: tf.Tensor, forward: ForwardPass) -> tf.Tensor:
    """All layers of a stack, or none, one after the other."""

    def step(layers: list[list[Callable]], state: tf.Tensor, _: tuple) -> tuple[tf.Tensor, None]:
        ((cell,),) = layers
        return cell(state), None

    return state if cells is None else in_turn([Part(cells)], step, state, [()] * cells.count, forward)[0]


def _unrolled(parts, step, state, inputs, forward) -> tuple[tf.Tensor, list[Any]]:
    outputs = []
    with contextlib.ExitStack() as stack:
        functions = [stack.enter_context(unstacked(part.stack, forward)) for part in parts]
        for index, of_step in enumerate(inputs, -len(inputs)):
            layers = [part.layers_of_step(of_part, index) for part, of_part in zip(parts, functions, strict=True)]
            state, output = step(layers, state, of_step)
            outputs.append(output)
    return state, outputs


def _layers_alone(part: Part, weights: Any, index: int, forward: ForwardPass) -> list[Callable]:
    numbers = [] if part.stack is None else part.layers_of_step(range(part.stack.count), index)
    return [_layer(part, _map(operator.itemgetter(number), weights), forward) for number in numbers]


def _layer(part: Part, weights: Any, forward: ForwardPass, records: list | None = None, place: int = 0) -> Callable:
    """A layer with these weights as a function of a tensor, which leaves at a place of `records` what it records."""
    apply = part.stack.application(forward)

    def layer(inputs: tf.Tensor) -> tf.Tensor:
        recording = records is not None and (forward.training or forward.initializing)
        outputs, found = apply(weights, inputs, recording)
        if recording:
            records[place] = found
        return outputs

    return layer


def _loop(parts, weights, step, state, inputs, forward, tensors_of) -> tuple[tf.Tensor, list, list[list]]:
    pairs = zip(parts, weights, strict=True)
    of_steps = [_map(functools.partial(_of_steps, part, len(inputs)), of_part) for part, of_part in pairs]
    # Both as they are in a step, but with an axis for the steps in front.
    given = of_steps, tf.nest.map_structure(lambda *each: tf.stack(each), *inputs)
    leaves = [leaf for leaf in tf.nest.flatten(given) if leaf is not None]
    packing = _Packing([tf.TensorSpec(leaf.shape[1:], leaf.dtype) for leaf in leaves])
    of_records: list = []

    def flat_step(state: tf.Tensor, slices: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        following = iter(packing.unpacked(slices))
        of_step, input_of_step = _map(lambda _: next(following), given)
        layers, records = [], []
        for part, of_part in zip(parts, of_step, strict=True):
            of_layers = [] if part.stack is None else _unpacked(part, of_part)
            found = [None] * len(of_layers)
            layers.append([_layer(part, each, forward, found, place) for place, each in enumerate(of_layers)])
            records.append(found)
        state, output = step(layers, state, input_of_step)
        found = [each for pair in zip(parts, records, strict=True) for each in _of_recorders(*pair)]
        flat = [tensor for each in found for tensor in each]
        of_records[:] = [_Packing(flat), [len(each) for each in found]]
        return state, tensors_of(output), of_records[0].packed(flat)

    state, outputs, records = _scan(flat_step, state, packing.packed(leaves))
    packing_of_records, lengths = of_records
    following = iter(packing_of_records.unpacked(records))
    return state, outputs, [[next(following) for _ in range(length)] for length in lengths]


class _Packing:
    """Joins small tensors of one type, so that a loop has a few of them in place of a hundred."""

    def __init__(self, tensors: Sequence[tf.Tensor | tf.TensorSpec]):
        """For tensors like these, which may have axes in front."""
        self._shapes = [tensor.shape for tensor in tensors]
        self._groups: list[list[int]] = []
        of_type: dict[tf.DType, list[int]] = {}
        for index, tensor in enumerate(tensors):
            size = tensor.shape.num_elements()
            is_small = size is not None and size <= _SMALL
            group = of_type.setdefault(tensor.dtype, []) if is_small else []
            if not group:
                self._groups.append(group)
            group.append(index)

    def packed(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The large ones, and one tensor for all small ones of a type."""
        return [self._joined([tensors[index] for index in group], group) for group in self._groups]

    def _joined(self, tensors: list[tf.Tensor], group: list[int]) -> tf.Tensor:
        if len(group) == 1:
            return tensors[0]
        pieces = []
        for tensor, index in zip(tensors, group, strict=True):
            in_front = tensor.shape[: tensor.shape.rank - self._shapes[index].rank]
            pieces.append(tf.reshape(tensor, [*in_front, self._shapes[index].num_elements()]))
        return concatenated(pieces)

    def unpacked(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """What `packed` has joined."""
        found: dict[int, tf.Tensor] = {}
        for tensor, group in zip(tensors, self._groups, strict=True):
            if len(group) == 1:
                found[group[0]] = tensor
                continue
            pieces = tf.split(tensor, [self._shapes[index].num_elements() for index in group], -1)
            for piece, index in zip(pieces, group, strict=True):
                found[index] = tf.reshape(piece, [*tensor.shape[:-1], *self._shapes[index]])
        return [found[index] for index in range(len(self._shapes))]


def _of_steps(part: Part, count: int, weight: tf.Tensor) -> tf.Tensor:
    """The weights of the last `count` steps, of one layer each or with a second axis for their layers."""
    last = weight if part.stack.count == count * part.layers_a_step else weight[-count * part.layers_a_step :]
    return last if part.layers_a_step == 1 else tf.reshape(last, [count, part.layers_a_step, *weight.shape[1:]])


def _unpacked(part: Part, weights: Any) -> list[Any]:
    return [weights] if part.layers_a_step == 1 else layers_of(weights, part.layers_a_step)


def _of_recorders(part: Part, records: list) -> list[list[tf.Tensor]]:
    """What a step's layers have recorded, of each recorder a tensor for each of its statistics, or none."""
    if not records or records[0] is None:
        return [[] for _ in part.recorders()]
    pairs = [[] if of_layers[0] is None else zip(*of_layers, strict=True) for of_layers in zip(*records, strict=True)]
    return [[column[0] if len(column) == 1 else tf.stack(column) for column in columns] for columns in pairs]


def _map(function: Callable, structure: Any) -> Any:
    return tf.nest.map_structure(lambda leaf: None if leaf is None else function(leaf), structure)


# The loop itself.


def _scan(step: Callable, state: tf.Tensor, leaves: Sequence[tf.Tensor]) -> tuple[tf.Tensor, list, list]:
    """`state, outputs, records = step(state, slices)` for each slice of the leaves, see `_TracedStep`.

    Returns the last state, and all outputs and records with an axis for the steps in front. Outputs have a gradient.
    """
    traced, count = _TracedStep(step, state, leaves), leaves[0].shape[0]

    @tf.custom_gradient
    def operation(state: tf.Tensor, *leaves: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        def ahead(number: tf.Tensor, state: tf.Tensor, tables: list) -> tuple:
            state, *found = traced.forward(state, [tf.gather(leaf, number) for leaf in leaves])
            return number + 1, state, _written(tables, number, found)

        _, last, tables = _while(
            lambda number, *_: number < count, ahead, (0, state, _tables(traced.made, count)), count
        )
        results = [last, *(table.stack() for table in tables[: traced.num_results])]

        def gradient(upstream: tf.Tensor, *of_results: tf.Tensor) -> list[tf.Tensor | None]:
            def back(number: tf.Tensor, upstream: tf.Tensor, sums: list) -> tuple:
                kept = [table.read(number) for table in tables[traced.num_results :]]
                slices = [tf.gather(leaf, number) for leaf in leaves]
                of_outputs = [tf.gather(each, number) for each in of_results[: traced.num_outputs]]
                upstream, *found = traced.backward(kept, slices, [upstream, *of_outputs])
                return number - 1, upstream, _written(sums, number, found)

            begun = count - 1, upstream, _tables(traced.slice_gradients, count)
            _, upstream, sums = _while(lambda number, *_: number >= 0, back, begun, count)
            stacked = iter([table.stack() for table in sums])
            return [upstream, *(next(stacked) if is_there else None for is_there in traced.has_gradient)]

        return results, gradient

    last, *results = operation(state, *leaves)
    return last, results[: traced.num_outputs], results[traced.num_outputs :]


def _while(condition: Callable, body: Callable, variables: tuple, count: int) -> tuple:
    first, *others = variables
    return tf.while_loop(
        condition, body, (tf.constant(first), *others), maximum_iterations=count, parallel_iterations=1
    )


def _tables(like: Sequence[tf.Tensor], count: int) -> list[tf.TensorArray]:
    return [tf.TensorArray(tensor.dtype, count, element_shape=tensor.shape, clear_after_read=False) for tensor in like]


def _written(tables: Sequence[tf.TensorArray], number: tf.Tensor, tensors: Sequence[tf.Tensor]) -> list[tf.TensorArray]:
    return [table.write(number, tensor) for table, tensor in zip(tables, tensors, strict=True)]


class _TracedStep:
    """A step and its gradient as two pieces of one graph, cut at what the first keeps for the second."""

    def __init__(self, step: Callable, state: tf.Tensor, leaves: Sequence[tf.Tensor]):
        placeholder = tf.compat.v1.placeholder
        with tf.Graph().as_default() as graph:
            self._state = placeholder(state.dtype, state.shape)
            self._slices = [placeholder(leaf.dtype, leaf.shape[1:]) for leaf in leaves]
            following, outputs, records = step(self._state, self._slices)
            following.set_shape(state.shape)
            differentiated = [following, *outputs]
            self._upstream = [placeholder(tensor.dtype, tensor.shape) for tensor in differentiated]
            inputs = [self._state, *self._slices]
            gradients = tf.gradients(differentiated, inputs, self._upstream)
        self._definition = graph.as_graph_def()
        self.num_outputs, self.num_results = len(outputs), len(outputs) + len(records)
        self.has_gradient = [gradient is not None for gradient in gradients[1:]]
        self.slice_gradients = [gradient for gradient in gradients[1:] if gradient is not None]
        self._gradients = [gradients[0], *self.slice_gradients]
        self._kept = _kept_tensors(graph, self._gradients, self._slices, self._upstream)
        # The tensors of a step that have a table: results first, then what is kept.
        self.made = [*outputs, *records, *self._kept]
        self._following = following
        self._forward = self._piece([following, *self.made], inputs)
        self._backward = self._piece(self._gradients, [*self._kept, *self._slices, *self._upstream])

    def forward(self, state: tf.Tensor, slices: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The next state, outputs, records, and what is kept."""
        given = zip([self._state, *self._slices], [state, *slices], strict=True)
        return _imported(self._forward, given, [self._following, *self.made])

    def backward(self, kept, slices, upstream) -> list[tf.Tensor]:
        """The gradients of the state and of the slices that have one."""
        given = zip([*self._kept, *self._slices, *self._upstream], [*kept, *slices, *upstream], strict=True)
        return _imported(self._backward, given, self._gradients)

    def _piece(self, results: Sequence[tf.Tensor], given: Sequence[tf.Tensor]) -> tf.compat.v1.GraphDef:
        """What the graph computes between these tensors."""
        needed, ends = set(), {tensor.name for tensor in given}
        pending = [tensor for tensor in results if tensor.name not in ends]
        while pending:
            operation = pending.pop().op
            if operation.name not in needed:
                needed.add(operation.name)
                pending += [tensor for tensor in operation.inputs if tensor.name not in ends]
        piece = tf.compat.v1.GraphDef(library=self._definition.library, versions=self._definition.versions)
        for node in self._definition.node:
            if node.name in needed:
                copy = piece.node.add()
                copy.CopyFrom(node)
                copy.attr.pop("_class", None)
                wanted = [name for name in node.input if not name.startswith("^") or name[1:] in needed]
                copy.ClearField("input")
                copy.input.extend(wanted)
        return piece


def _kept_tensors(graph, gradients, slices, upstream) -> list[tf.Tensor]:
    """What the gradients need of the forward pass besides the slices, see `_KEPT`."""
    late = {tensor.op.name for tensor in upstream}
    for operation in graph.get_operations():
        before = [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
        if any(each.name in late for each in before):
            late.add(operation.name)
    ends, seen, kept = {tensor.name for tensor in slices}, set(), []
    pending = list(gradients)
    while pending:
        tensor = pending.pop()
        if tensor.name in ends or tensor.name in seen:
            continue
        seen.add(tensor.name)
        operation = tensor.op
        if operation.name not in late and operation.type in (*_KEPT, "Placeholder"):
            kept.append(tensor)
        else:
            pending += operation.inputs
    return kept


def _imported(
    piece: tf.compat.v1.GraphDef, given: Iterable[tuple[tf.Tensor, tf.Tensor]], results: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    given = {inner.name: outer for inner, outer in given}
    in_piece = {node.name for node in piece.node}
    used = {name if ":" in name else f"{name}:0" for node in piece.node for name in node.input}
    mapped = {name: tensor for name, tensor in given.items() if name in used}
    inner = [tensor for tensor in results if tensor.op.name in in_piece and tensor.name not in given]
    names = list(dict.fromkeys(tensor.name for tensor in inner))
    found = tf.graph_util.import_graph_def(piece, input_map=mapped, return_elements=names, name="step")
    made = dict(zip(names, found, strict=True)) | given
    outer = [made[tensor.name] for tensor in results]
    for tensor, copy in zip(results, outer, strict=True):
        copy.set_shape(tensor.shape)
    return outer
