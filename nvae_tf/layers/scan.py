"""Equal steps, each with its layers of some stacks: one after another in the graph, or as one loop of it.

This is `jax.lax.scan` for stacked layers. A step takes a state and gives the next state and an output; step i has the
i-th layers of every stack and the i-th input. Unrolled, a graph has every step. As a loop (`ForwardPass.scanned`) it
has one, which takes slices of the stacked weights: the program that XLA compiles, and the graph that is exported, stay
as small for fifty groups as for two.

In training the loop has a gradient of its own, a second loop that goes backward. TensorFlow's gradient of a loop would
keep every tensor that the backward pass reads, slices of the weights among them. This one keeps the results of
convolutions and matrix products, and computes again the rest of a step, which takes little time: see `_TracedStep`, and
docs/architecture.md for a picture.
"""

import contextlib
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from nvae_tf.layers.packing import Packing
from nvae_tf.layers.stacked import ForwardPass, StackedLayer, layers_of, unstacked

# Operations whose results the forward loop keeps for the backward loop.
_KEPT = ("Conv2D", "DepthwiseConv2dNative", "MatMul", "PartitionedCall", "StatefulPartitionedCall")
# A loop of fewer steps would take more of a program than the steps themselves.
_FEWEST_STEPS = 3


class Part(NamedTuple):
    """The layers of a stack that each step uses; the first steps use none where the stack has too few layers for all.

    With `stack` None no step uses any.
    """

    stack: StackedLayer | None
    layers_per_step: int = 1

    def recorders(self) -> list[StackedLayer]:
        """The layers that record batch statistics, see `StackedLayer.recorders`."""
        return [] if self.stack is None else self.stack.recorders()

    def layers_of_step(self, layers: Sequence[Any], index: int) -> Sequence[Any]:
        """The layers of one step; steps count from the end, -1 is the last. Empty where there are too few for it."""
        first = len(layers) + index * self.layers_per_step
        return layers[first : first + self.layers_per_step] if first >= 0 else []


# `(layers, state, input) -> (state, output)`; `layers` are functions of a tensor, a list of them for each part.
Step = Callable[[list[list[Callable]], tf.Tensor, Any], tuple[tf.Tensor, Any]]


def run_steps(
    parts: Sequence[Part],
    step: Step,
    state: tf.Tensor,
    inputs: Sequence[Any],
    forward: ForwardPass,
    output_tensors: Callable[[Any], list[tf.Tensor]] = lambda _: [],
) -> tuple[tf.Tensor, list[Any], list[tf.Tensor]]:
    """Runs a step for each of the `inputs`, and records batch statistics in `forward`.

    Where `forward.scanned`, the last steps become a loop if they are three or more: those that have layers of every
    part, and inputs of tensors alone. Steps before them that lack layers of a part have no layers that record.

    Returns:
      The last state; the outputs of the steps outside of the loop; and, of the loop's steps, the `output_tensors` of an
      output, each with an axis for the steps in front (empty without a loop).
    """
    num_before_loop = max(
        [len(inputs) - part.stack.count // part.layers_per_step for part in parts if part.stack is not None]
        + [number for number, value in enumerate(inputs, 1) if not _can_be_stacked(value)]
    )
    num_before_loop = max(num_before_loop, 0)
    if not forward.scanned or tf.executing_eagerly() or len(inputs) - num_before_loop < _FEWEST_STEPS:
        return (*_unrolled(parts, step, state, inputs, forward), [])
    weights = [None if part.stack is None else forward.weights_of(part.stack) for part in parts]
    outputs = []
    for index, step_input in enumerate(inputs[:num_before_loop], -len(inputs)):
        layers = [_layers_outside_loop(*pair, index, forward) for pair in zip(parts, weights, strict=True)]
        state, output = step(layers, state, step_input)
        outputs.append(output)
    state, stacked_outputs, statistics = _loop(
        parts, weights, step, state, inputs[num_before_loop:], forward, output_tensors
    )
    recorders = [recorder for part in parts for recorder in part.recorders()]
    for recorder, tensors in zip(recorders, statistics, strict=True):
        if tensors:
            pairs = zip(tensors, recorder.statistics, strict=True)
            recorder.record(forward, [tf.reshape(tensor, variable.shape) for tensor, variable in pairs])
    return state, outputs, stacked_outputs


def run_cells(cells: StackedLayer | None, state: tf.Tensor, forward: ForwardPass) -> tf.Tensor:
    """The state after all layers of a stack, one after the other; the state itself where there is no stack."""

    def step(layers: list[list[Callable]], state: tf.Tensor, _: tuple) -> tuple[tf.Tensor, None]:
        ((cell,),) = layers
        return cell(state), None

    return state if cells is None else run_steps([Part(cells)], step, state, [()] * cells.count, forward)[0]


def _can_be_stacked(step_input: Any) -> bool:
    return all(isinstance(leaf, tf.Tensor | float) for leaf in tf.nest.flatten(step_input))


def _unrolled(parts, step, state, inputs, forward) -> tuple[tf.Tensor, list[Any]]:
    """The last state and all outputs, with every step in the graph by itself."""
    outputs = []
    with contextlib.ExitStack() as opened:
        functions = [opened.enter_context(unstacked(part.stack, forward)) for part in parts]
        for index, step_input in enumerate(inputs, -len(inputs)):
            layers = [
                part.layers_of_step(part_layers, index) for part, part_layers in zip(parts, functions, strict=True)
            ]
            state, output = step(layers, state, step_input)
            outputs.append(output)
    return state, outputs


def _layers_outside_loop(part: Part, weights: Any, index: int, forward: ForwardPass) -> list[Callable]:
    """The layers of a step that comes before the loop; they do not record."""
    numbers = [] if part.stack is None else part.layers_of_step(range(part.stack.count), index)
    return [_layer(part, _map(operator.itemgetter(number), weights), forward) for number in numbers]


def _layer(part: Part, weights: Any, forward: ForwardPass, records: list | None = None, place: int = 0) -> Callable:
    """A layer with these weights as a function of a tensor, which puts its statistics into `records[place]`."""
    apply = part.stack.application(forward)

    def layer(inputs: tf.Tensor) -> tf.Tensor:
        recording = records is not None and (forward.training or forward.initializing)
        outputs, statistics = apply(weights, inputs, recording)
        if recording:
            records[place] = statistics
        return outputs

    return layer


def _loop(parts, weights, step, state, inputs, forward, output_tensors) -> tuple[tf.Tensor, list, list[list]]:
    """The last state, the stacked output tensors, and for each recorder its statistics with an axis for the steps."""
    step_weights = [
        _map(functools.partial(_weights_of_last_steps, part, len(inputs)), part_weights)
        for part, part_weights in zip(parts, weights, strict=True)
    ]
    # The arguments of all steps, as a step takes them but with an axis for the steps in front.
    stacked = step_weights, tf.nest.map_structure(lambda *each: tf.stack(each), *inputs)
    leaves = [leaf for leaf in tf.nest.flatten(stacked) if leaf is not None]
    num_statistics: list[int] = []

    def flat_step(state: tf.Tensor, slices: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        """A step of flat lists of tensors: `(state, slices) -> (state, outputs, statistics)`."""
        remaining = iter(slices)
        weights, step_input = _map(lambda _: next(remaining), stacked)
        layers, records = [], []
        for part, part_weights in zip(parts, weights, strict=True):
            layer_weights = [] if part.stack is None else _split_layers(part, part_weights)
            part_records = [None] * len(layer_weights)
            layers.append(
                [_layer(part, each, forward, part_records, place) for place, each in enumerate(layer_weights)]
            )
            records.append(part_records)
        state, output = step(layers, state, step_input)
        statistics = [
            tensors for pair in zip(parts, records, strict=True) for tensors in _statistics_by_recorder(*pair)
        ]
        num_statistics[:] = map(len, statistics)
        return state, output_tensors(output), [tensor for tensors in statistics for tensor in tensors]

    recording = forward.training or forward.initializing
    scan = _scan_with_gradient if recording else _scan_for_inference
    state, outputs, statistics = scan(flat_step, state, leaves)
    remaining = iter(statistics)
    return state, outputs, [[next(remaining) for _ in range(count)] for count in num_statistics]


def _weights_of_last_steps(part: Part, num_steps: int, weight: tf.Tensor) -> tf.Tensor:
    """The weights of the last steps: `[steps, ...]`, or `[steps, layers, ...]` where a step has several layers."""
    num_layers = num_steps * part.layers_per_step
    last = weight if part.stack.count == num_layers else weight[-num_layers:]
    several = [num_steps, part.layers_per_step, *weight.shape[1:]]
    return last if part.layers_per_step == 1 else tf.reshape(last, several)


def _split_layers(part: Part, weights: Any) -> list[Any]:
    """The weights of each of a step's layers."""
    return [weights] if part.layers_per_step == 1 else layers_of(weights, part.layers_per_step)


def _statistics_by_recorder(part: Part, records: list) -> list[list[tf.Tensor]]:
    """Groups what a step's layers have recorded by recorder: for each a tensor for each of its statistics, or none."""
    if not records or records[0] is None:
        return [[] for _ in part.recorders()]
    groups = []
    for layer_records in zip(*records, strict=True):  # of one recorder, from each layer of the step
        columns = [] if layer_records[0] is None else zip(*layer_records, strict=True)
        groups.append([column[0] if len(column) == 1 else tf.stack(column) for column in columns])
    return groups


def _map(function: Callable, structure: Any) -> Any:
    """`tf.nest.map_structure` that leaves None as it is."""
    return tf.nest.map_structure(lambda leaf: None if leaf is None else function(leaf), structure)


# The loops themselves. `step(state, slices) -> (state, outputs, statistics)`, with flat lists of tensors.


def _scan_with_gradient(step: Callable, state: tf.Tensor, leaves: Sequence[tf.Tensor]) -> tuple[tf.Tensor, list, list]:
    """Runs `step` for each slice of the leaves; their gradient is a second loop, which goes backward.

    Returns the last state, and all outputs and statistics with an axis for the steps in front.
    """
    num_steps = leaves[0].shape[0]
    leaf_packing = Packing([tf.TensorSpec(leaf.shape[1:], leaf.dtype) for leaf in leaves])
    # Packed outside of the operation, which has a gradient of zeros for each argument that needs none.
    packed_leaves = leaf_packing.pack(leaves)
    traced = _TracedStep(lambda state, slices: step(state, leaf_packing.unpack(slices)), state, packed_leaves)
    result_packing, statistics = Packing(traced.results), []

    @tf.custom_gradient
    def operation(state: tf.Tensor, *leaves: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        def slices(number: tf.Tensor) -> list[tf.Tensor]:
            return [tf.gather(leaf, number) for leaf in leaves]

        def forward_body(number: tf.Tensor, state: tf.Tensor, tables: list) -> tuple:
            next_state, *results = traced.forward(state, *slices(number))
            next_state.set_shape(state.shape)
            return number + 1, next_state, _write(tables, number, result_packing.pack(results))

        start = 0, state, _tables(result_packing.specs, num_steps)
        _, last_state, tables = _while(lambda number, *_: number < num_steps, forward_body, start, num_steps)

        def gradient(state_gradient: tf.Tensor, *output_gradients: tf.Tensor) -> list[tf.Tensor | None]:
            def backward_body(number: tf.Tensor, state_gradient: tf.Tensor, gradient_tables: list) -> tuple:
                results = result_packing.unpack([table.read(number) for table in tables])
                kept = results[traced.num_outputs + traced.num_statistics :]
                upstream = [tf.gather(each, number) for each in output_gradients]
                previous, *slice_gradients = traced.backward(*kept, *slices(number), state_gradient, *upstream)
                previous.set_shape(state_gradient.shape)
                return number - 1, previous, _write(gradient_tables, number, slice_gradients)

            start = num_steps - 1, state_gradient, _tables(traced.slice_gradients, num_steps)
            _, state_gradient, gradient_tables = _while(lambda number, *_: number >= 0, backward_body, start, num_steps)
            stacked = iter([table.stack() for table in gradient_tables])
            return [state_gradient, *(next(stacked) if has_one else None for has_one in traced.has_gradient)]

        results = result_packing.unpack([table.stack() for table in tables])
        outputs, others = results[: traced.num_outputs], results[traced.num_outputs :]
        # Not results of the operation, because they have no gradient.
        statistics[:] = others[: traced.num_statistics]
        return [last_state, *outputs], gradient

    last_state, *outputs = operation(state, *packed_leaves)
    return last_state, outputs, statistics


def _scan_for_inference(step: Callable, state: tf.Tensor, leaves: Sequence[tf.Tensor]) -> tuple[tf.Tensor, list, list]:
    """As `_scan_with_gradient` without statistics; the gradient, if one is asked for, is TensorFlow's."""
    num_steps = leaves[0].shape[0]
    slice_specs = [tf.TensorSpec(leaf.shape[1:], leaf.dtype) for leaf in leaves]
    # Traced for the outputs' shapes alone: in a function that is called TensorFlow would fuse nothing.
    traced = tf.function(step, autograph=False)
    output_specs = traced.get_concrete_function(tf.TensorSpec(state.shape, state.dtype), slice_specs)
    output_specs = output_specs.structured_outputs[1]

    def body(number: tf.Tensor, state: tf.Tensor, tables: list) -> tuple:
        # Unlike what `tf.gather` gives, these slices share the memory of the leaves where they are aligned.
        begin = tf.reshape(number, [1])
        place = {"begin": begin, "end": begin + 1, "strides": [1], "shrink_axis_mask": 1}
        next_state, outputs, _ = step(state, [tf.raw_ops.StridedSlice(input=leaf, **place) for leaf in leaves])
        next_state.set_shape(state.shape)
        return number + 1, next_state, _write(tables, number, outputs)

    start = 0, state, _tables(output_specs, num_steps)
    # Up to four steps at once: the slices of the next ones are taken meanwhile.
    _, last_state, tables = _while(lambda number, *_: number < num_steps, body, start, num_steps, parallel_iterations=4)
    return last_state, [table.stack() for table in tables], []


def _while(condition: Callable, body: Callable, start: tuple, num_steps: int, parallel_iterations: int = 1) -> tuple:
    number, *others = start
    settings = {"maximum_iterations": num_steps, "parallel_iterations": parallel_iterations}
    return tf.while_loop(condition, body, (tf.constant(number), *others), **settings)


def _tables(specs: Sequence[tf.TensorSpec], num_steps: int) -> list[tf.TensorArray]:
    return [tf.TensorArray(spec.dtype, num_steps, element_shape=spec.shape, clear_after_read=False) for spec in specs]


def _write(tables: Sequence[tf.TensorArray], number: tf.Tensor, tensors: Sequence[tf.Tensor]) -> list[tf.TensorArray]:
    return [table.write(number, tensor) for table, tensor in zip(tables, tensors, strict=True)]


class _TracedStep:
    """A step and its gradient, traced in one graph and cut in two at what the forward piece keeps for the backward one.

    `forward(state, *slices)` returns the next state and all `results`: outputs, statistics, and what is kept.
    `backward(*kept, *slices, *upstream)` returns the gradients of the state and of those slices that have one.
    """

    def __init__(self, step: Callable, state: tf.Tensor, leaves: Sequence[tf.Tensor]):
        slice_specs = [tf.TensorSpec(leaf.shape[1:], leaf.dtype) for leaf in leaves]
        whole = tf.compat.v1.wrap_function(step, [tf.TensorSpec(state.shape, state.dtype), slice_specs])
        if whole.graph.captures:
            raise ValueError(f"a step has no gradient for what it uses besides its arguments: {whole.graph.captures}")
        next_state, outputs, statistics = whole.structured_outputs
        _, *slices = whole.inputs
        forward_operations = {operation.name for operation in whole.graph.get_operations()}
        with whole.graph.as_default():
            upstream = [tf.compat.v1.placeholder(each.dtype, each.shape) for each in (next_state, *outputs)]
            state_gradient, *slice_gradients = tf.gradients([next_state, *outputs], whole.inputs, upstream)
        self.has_gradient = [gradient is not None for gradient in slice_gradients]
        self.slice_gradients = [gradient for gradient in slice_gradients if gradient is not None]
        gradients = [state_gradient, *self.slice_gradients]
        kept = _kept_tensors(gradients, {each.name for each in (*slices, *upstream)}, forward_operations)
        self.num_outputs, self.num_statistics = len(outputs), len(statistics)
        self.results = [*outputs, *statistics, *kept]
        self.forward = whole.prune(whole.inputs, [next_state, *self.results])
        self.backward = whole.prune([*kept, *slices, *upstream], gradients)


def _kept_tensors(gradients: Sequence[tf.Tensor], given: set[str], forward_operations: set[str]) -> list[tf.Tensor]:
    """The tensors of the forward pass at which the search for what the gradients need ends, see `_KEPT`.

    `given` are names of tensors that the backward piece has anyway. What lies between is computed again.
    """
    pending, seen, kept = list(gradients), set(given), []
    while pending:
        tensor = pending.pop()
        if tensor.name not in seen:
            seen.add(tensor.name)
            if tensor.op.name in forward_operations and tensor.op.type in (*_KEPT, "Placeholder"):
                kept.append(tensor)
            else:
                pending += tensor.op.inputs
    return kept
