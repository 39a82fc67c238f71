"""Runs equal steps of stacked layers, one after another in the graph or as one loop of it: a `jax.lax.scan`.

A step takes a state and gives the next state and an output; step i has the i-th layers of every stack and the i-th
input. As a loop (`ForwardPass.scanned`) the graph has one step, which takes slices of the stacked weights: the program
that XLA compiles, and the graph that is exported, stay as small for fifty groups as for two. In training the loop has a
gradient of its own, a second loop that goes backward: see `_scan_with_gradient` and docs/architecture.md.
"""

import contextlib
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from nvae_tf.layers.packing import Packing
from nvae_tf.layers.stacked import ForwardPass, StackedLayer, Weights, layers_of, open_layers

# A loop of fewer steps would take more of a program than the steps themselves.
_FEWEST_STEPS = 3
# Operations whose results the forward loop keeps for the backward loop.
_KEPT = ("Conv2D", "DepthwiseConv2dNative", "MatMul", "PartitionedCall", "StatefulPartitionedCall")


class Part(NamedTuple):
    """The layers of a stack that each step uses; the first steps use none where the stack has too few layers for all.

    With `stack` None no step uses any.
    """

    stack: StackedLayer | None
    layers_per_step: int = 1

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
    part, and inputs of tensors alone. The steps before them must not record.

    Returns:
      The last state; the outputs of the steps outside of the loop; and, of the loop's steps, the `output_tensors` of an
      output, each with an axis for the steps in front (empty without a loop).
    """
    stacks = [part for part in parts if part.stack is not None]
    num_before = max([0, *(len(inputs) - part.stack.count // part.layers_per_step for part in stacks)])
    for number, step_input in enumerate(inputs, 1):
        if not all(isinstance(leaf, tf.Tensor | float) for leaf in tf.nest.flatten(step_input)):
            num_before = max(num_before, number)
    if not forward.scanned or tf.executing_eagerly() or len(inputs) - num_before < _FEWEST_STEPS:
        return (*_unrolled(parts, step, state, inputs, forward), [])
    weights = [() if part.stack is None else forward.weights_of(part.stack) for part in parts]
    outputs = []
    for index, step_input in enumerate(inputs[:num_before], -len(inputs)):
        layers = [_layers_before_loop(*pair, index, forward) for pair in zip(parts, weights, strict=True)]
        state, output = step(layers, state, step_input)
        outputs.append(output)
    state, stacked = _loop_of_steps(parts, weights, step, state, inputs[num_before:], forward, output_tensors)
    return state, outputs, stacked


def run_cells(cells: StackedLayer | None, state: tf.Tensor, forward: ForwardPass) -> tf.Tensor:
    """The state after all layers of a stack, one after the other; the state itself where there is no stack."""

    def step(layers: list[list[Callable]], state: tf.Tensor, _: tuple) -> tuple[tf.Tensor, None]:
        ((cell,),) = layers
        return cell(state), None

    return state if cells is None else run_steps([Part(cells)], step, state, [()] * cells.count, forward)[0]


def _unrolled(parts, step, state, inputs, forward) -> tuple[tf.Tensor, list[Any]]:
    """The last state and all outputs, with every step in the graph by itself."""
    outputs = []
    with contextlib.ExitStack() as opened:
        functions = [opened.enter_context(open_layers(part.stack, forward)) for part in parts]
        for index, step_input in enumerate(inputs, -len(inputs)):
            layers = [part.layers_of_step(each, index) for part, each in zip(parts, functions, strict=True)]
            state, output = step(layers, state, step_input)
            outputs.append(output)
    return state, outputs


def _layers_before_loop(part: Part, weights: Weights, index: int, forward: ForwardPass) -> list[Callable]:
    """The layers of a step that comes before the loop."""
    if part.stack is None:
        return []
    numbers = part.layers_of_step(range(part.stack.count), index)
    slices = [tf.nest.map_structure(operator.itemgetter(number), weights) for number in numbers]
    return part.stack.layer_functions(slices, forward, [[] for _ in numbers])


def _loop_of_steps(parts, weights, step, state, inputs, forward, output_tensors) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The last state and the stacked output tensors."""
    step_weights = [_weights_by_step(*pair, len(inputs)) for pair in zip(parts, weights, strict=True)]
    # What all steps take, with an axis for the steps in front.
    stacked_inputs = step_weights, tf.nest.map_structure(lambda *each: tf.stack(each), *inputs)

    def body(state: tf.Tensor, slices: tuple[list[Weights], Any]) -> tuple[tf.Tensor, list, list]:
        layers, recorded = [], []
        for part, part_weights in zip(parts, slices[0], strict=True):
            several = [part_weights] if part.layers_per_step == 1 else layers_of(part_weights, part.layers_per_step)
            recorded.append([[] for _ in several])
            layers.append([] if part.stack is None else part.stack.layer_functions(several, forward, recorded[-1]))
        state, output = step(layers, state, slices[1])
        return state, output_tensors(output), recorded

    scan = _scan_with_gradient if forward.training else _scan_for_inference
    state, outputs, recorded = scan(body, state, stacked_inputs)
    for part, part_recorded in zip(parts, recorded, strict=False):  # inference records nothing
        if part_recorded and part_recorded[0]:
            vectors = tf.stack([vector for (vector,) in part_recorded], axis=1)  # [steps, layers of a step, width]
            part.stack.add_updates(forward, tf.reshape(vectors, (part.stack.count, -1)))
    return state, outputs


def _weights_by_step(part: Part, weights: Weights, num_steps: int) -> Weights:
    """The weights of the last steps: `[steps, ...]`, or `[steps, layers, ...]` where a step has several layers."""
    num_layers = num_steps * part.layers_per_step

    def by_step(weight: tf.Tensor) -> tf.Tensor:
        last = weight if part.stack.count == num_layers else weight[-num_layers:]
        several = [num_steps, part.layers_per_step, *weight.shape[1:]]
        return last if part.layers_per_step == 1 else tf.reshape(last, several)

    return tf.nest.map_structure(by_step, weights)


# The loops themselves: `scan(body, state, inputs) -> (state, outputs, recorded)`, as `jax.lax.scan` but for what batch
# norm records. `body(state, slices of the inputs)` gives the three of one step; the stacked ones have an axis in front.


def _scan_with_gradient(body: Callable, state: tf.Tensor, inputs: Any) -> tuple[tf.Tensor, list[tf.Tensor], list]:
    """A loop whose gradient is a second loop, which goes backward; what is recorded has no gradient.

    TensorFlow's gradient of a loop would keep every tensor that the backward pass reads, slices of the weights among
    them. This one keeps the results of convolutions and matrix products, and computes the rest of a step again, which
    takes little time.
    """
    leaves = tf.nest.flatten(inputs)
    leaf_packing = Packing([tf.TensorSpec(leaf.shape[1:], leaf.dtype) for leaf in leaves])
    # Packed outside of the operation, which has a gradient of zeros for each argument that needs none.
    packed_leaves, num_steps = leaf_packing.pack(leaves), leaves[0].shape[0]

    def body_of_leaves(state: tf.Tensor, leaves: list[tf.Tensor]) -> tuple:
        return body(state, tf.nest.pack_sequence_as(inputs, leaf_packing.unpack(leaves)))

    traced = _TracedStep(body_of_leaves, state, packed_leaves)
    result_packing, recorded = Packing(tf.nest.flatten(traced.results)), []

    def unpack_results(packed: list[tf.Tensor]) -> tuple[list[tf.Tensor], list, list[tf.Tensor]]:
        return tf.nest.pack_sequence_as(traced.results, result_packing.unpack(packed))

    @tf.custom_gradient
    def operation(state: tf.Tensor, *leaves: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        def slices(number: tf.Tensor) -> list[tf.Tensor]:
            return [tf.gather(leaf, number) for leaf in leaves]

        def forward_body(number: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
            next_state, *tensors = traced.forward(state, *slices(number))
            return next_state, result_packing.pack(tensors)

        last_state, tables = _loop(forward_body, state, result_packing.specs, num_steps)

        def gradient(state_gradient: tf.Tensor, *output_gradients: tf.Tensor) -> list[tf.Tensor | None]:
            def backward_body(number: tf.Tensor, state_gradient: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
                _, _, kept = unpack_results([table.read(number) for table in tables])
                upstream = [tf.gather(each, number) for each in output_gradients]
                previous, *slice_gradients = traced.backward(*kept, *slices(number), state_gradient, *upstream)
                return previous, slice_gradients

            state_gradient, gradient_tables = _loop(
                backward_body, state_gradient, traced.slice_gradients, num_steps, backward=True
            )
            stacked = iter([table.stack() for table in gradient_tables])
            return [state_gradient, *(next(stacked) if has_one else None for has_one in traced.has_gradient)]

        # Not among the results of the operation, which would have gradients.
        outputs, recorded[:], _ = unpack_results([table.stack() for table in tables])
        return [last_state, *outputs], gradient

    last_state, *outputs = operation(state, *packed_leaves)
    return last_state, outputs, recorded


def _scan_for_inference(body: Callable, state: tf.Tensor, inputs: Any) -> tuple[tf.Tensor, list[tf.Tensor], list]:
    """A loop whose gradient, if one is asked for, is TensorFlow's; nothing is recorded."""
    num_steps = tf.nest.flatten(inputs)[0].shape[0]
    slice_specs = tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape[1:], leaf.dtype), inputs)
    # Traced for the outputs' shapes alone: in a function that is called TensorFlow would fuse nothing.
    shape_probe = tf.function(lambda state, slices: body(state, slices)[1], autograph=False)
    specs = shape_probe.get_concrete_function(tf.TensorSpec(state.shape, state.dtype), slice_specs).structured_outputs

    def body_at(number: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        # Unlike what `tf.gather` gives, these slices share the memory of the leaves where they are aligned.
        begin = tf.reshape(number, [1])
        place = {"begin": begin, "end": begin + 1, "strides": [1], "shrink_axis_mask": 1}
        slices = tf.nest.map_structure(lambda leaf: tf.raw_ops.StridedSlice(input=leaf, **place), inputs)
        return body(state, slices)[:2]

    # Up to four steps at once: the slices of the next ones are taken meanwhile.
    last_state, tables = _loop(body_at, state, specs, num_steps, parallel_iterations=4)
    return last_state, [table.stack() for table in tables], []


def _loop(body_at, state, specs, num_steps, backward=False, parallel_iterations=1) -> tuple[tf.Tensor, list]:
    """`state, tensors = body_at(number, state)` for each step's number; the last state, and tables of the tensors."""
    tables = [tf.TensorArray(spec.dtype, num_steps, element_shape=spec.shape, clear_after_read=False) for spec in specs]
    first, change = (num_steps - 1, -1) if backward else (0, 1)

    def turn(number: tf.Tensor, state: tf.Tensor, tables: list[tf.TensorArray]) -> tuple:
        next_state, tensors = body_at(number, state)
        next_state.set_shape(state.shape)
        return number + change, next_state, [each.write(number, x) for each, x in zip(tables, tensors, strict=True)]

    _, state, tables = tf.while_loop(
        lambda number, *_: number >= 0 if backward else number < num_steps,
        turn,
        (tf.constant(first), state, tables),
        maximum_iterations=num_steps,
        parallel_iterations=parallel_iterations,
    )
    return state, tables


class _TracedStep:
    """A step and its gradient, traced in one graph and cut in two at what the forward piece keeps for the backward one.

    `forward(state, *slices)` returns the next state and the flat `results`: outputs, what is recorded, what is kept.
    `backward(*kept, *slices, *upstream)` returns the gradients of the state and of those slices that have one.
    """

    def __init__(self, body: Callable, state: tf.Tensor, leaves: Sequence[tf.Tensor]):
        slice_specs = [tf.TensorSpec(leaf.shape[1:], leaf.dtype) for leaf in leaves]
        whole = tf.compat.v1.wrap_function(body, [tf.TensorSpec(state.shape, state.dtype), slice_specs])
        if whole.graph.captures:
            raise ValueError(f"a step has no gradient for what it uses besides its arguments: {whole.graph.captures}")
        next_state, outputs, recorded = whole.structured_outputs
        _, *slices = whole.inputs
        forward_operations = {operation.name for operation in whole.graph.get_operations()}
        with whole.graph.as_default():
            upstream = [tf.compat.v1.placeholder(each.dtype, each.shape) for each in (next_state, *outputs)]
            state_gradient, *slice_gradients = tf.gradients([next_state, *outputs], whole.inputs, upstream)
        self.has_gradient = [gradient is not None for gradient in slice_gradients]
        self.slice_gradients = [gradient for gradient in slice_gradients if gradient is not None]
        gradients = [state_gradient, *self.slice_gradients]
        kept = _kept_tensors(gradients, {each.name for each in (*slices, *upstream)}, forward_operations)
        self.results = outputs, recorded, kept
        self.forward = whole.prune(whole.inputs, [next_state, *tf.nest.flatten(self.results)])
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
