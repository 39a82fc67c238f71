"""Runs equal steps of stacked layers, one after another in the graph or as one loop of it: a `jax.lax.scan`.

    for i in range(number of steps):
        layers = [the layers of step i from each stack]  # a list of functions of a tensor for each
        state, outputs[i] = step(layers, state, inputs[i])

The last step uses the last layers of every stack; where a stack has too few for all steps, the first steps use none.
The four groups of the smallest scale for example, whose first group has no prior and no cells:

    step                            0         1        2        3
    posteriors: 4 layers            p0        p1       p2       p3
    priors: 3 layers                          q0       q1       q2
    cells: 6 layers, 2 a step                 c0 c1    c2 c3    c4 c5
                                 unrolled  |-------- the loop --------|

As a loop (`ForwardPass.scanned`) the graph has one step, which takes slices of the stacked weights: the program that
XLA compiles, and the graph that is exported, stay as small for fifty groups as for two. In training the step is cut in
two, a forward and a backward piece, and the gradient of the loop is a second loop, which goes backward (a picture is in
docs/architecture.md). For each step the forward loop keeps its outputs, the statistics that batch norm records (which
have no gradient), the state before it, and the results of its convolutions, matrix products and calls of functions. The
backward loop reads these states and results, and computes every other tensor of the step again, which takes little
time. TensorFlow's gradient of a loop would keep every tensor that the backward pass reads, slices of the weights too.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from nvae_tf.layers.packing import Packing
from nvae_tf.layers.stacked import ForwardPass, StackedLayer, Weights, unstacked

_FEWEST_STEPS = 3  # fewer steps make a smaller program one by one than as a loop
# Operations whose results the forward loop keeps for the backward loop (of a called function its results, not what it
# computes inside); all else is cheap to compute again.
_KEPT = ("Conv2D", "DepthwiseConv2dNative", "MatMul", "PartitionedCall", "StatefulPartitionedCall")

Layer = Callable[[tf.Tensor], tf.Tensor]


class StackShare(NamedTuple):
    """A stack, and the number of its layers that each step uses; with `stack` None no step uses any."""

    stack: StackedLayer | None
    layers_per_step: int = 1


def run_steps(
    shares: Sequence[StackShare],
    step: Callable[[list[list[Layer]], tf.Tensor, Any], tuple[tf.Tensor, Any]],
    state: tf.Tensor,
    inputs: Sequence[Any],
    forward: ForwardPass,
    output_to_tensors: Callable[[Any], list[tf.Tensor]] = lambda _: [],
    stacked_tensors_to_outputs: Callable[[list[tf.Tensor]], list[Any]] = lambda _: [],
) -> tuple[tf.Tensor, list[Any]]:
    """Runs a step for each of the `inputs`, and records batch statistics in `forward`.

    Where `forward.scanned`, in a graph, the last steps become a loop if they are three or more: the steps that have
    layers of every stack, and inputs of tensors and numbers alone. The other steps are unrolled; those before a loop
    must record nothing (the top group has no batch norm). A loop can return tensors only: `output_to_tensors` turns the
    output of a step into tensors, the loop stacks them to `[steps, ...]`, and `stacked_tensors_to_outputs` turns the
    stacks into a list of outputs of any length; by default a loop has no outputs.
    Returns the last state, and the outputs of the unrolled steps, then of the loop.
    """
    num_unrolled = _num_unrolled_steps(shares, inputs, forward)
    num_in_loop = len(inputs) - num_unrolled
    layers_of_shares = [_layers_of_unrolled_steps(share, num_unrolled, num_in_loop, forward) for share in shares]
    outputs = []
    for number in range(num_unrolled):
        state, output = step([by_step[number] for by_step in layers_of_shares], state, inputs[number])
        outputs.append(output)
    if num_in_loop:
        state, tensors = _run_loop(shares, step, state, inputs[num_unrolled:], forward, output_to_tensors)
        outputs += stacked_tensors_to_outputs(tensors)
    return state, outputs


def run_cells(cells: StackedLayer | None, state: tf.Tensor, forward: ForwardPass, keeps_states: bool = False) -> tuple:
    """The state after all layers of a stack in turn, and a list of the states after each, if these are kept.

    Without a stack the state is returned as it is. States that are not kept are freed, eagerly too, when the next is
    there.
    """
    if cells is None:
        return state, []

    def step(layers: list[list[Layer]], state: tf.Tensor, _: tuple) -> tuple[tf.Tensor, tf.Tensor | None]:
        [[cell]] = layers  # one share, one layer a step
        state = cell(state)
        return state, state if keeps_states else None

    arguments = [StackShare(cells)], step, state, [()] * cells.count, forward
    if not keeps_states:
        return run_steps(*arguments)
    return run_steps(*arguments, lambda state: [state], lambda states: tf.unstack(states[0]))


def _num_unrolled_steps(shares: Sequence[StackShare], inputs: Sequence[Any], forward: ForwardPass) -> int:
    """The number of first steps that lack layers or have inputs that can't be stacked; all, if too few are left."""
    if not forward.scanned or tf.executing_eagerly():
        return len(inputs)

    def is_of_tensors(step_input: Any) -> bool:
        return all(isinstance(leaf, tf.Tensor | float) for leaf in tf.nest.flatten(step_input))

    lacking = [len(inputs) - share.stack.count // share.layers_per_step for share in shares if share.stack is not None]
    # For each step whose input can't be stacked, the number of steps that end with it: the loop begins after them.
    unstackable = [number for number, step_input in enumerate(inputs, 1) if not is_of_tensors(step_input)]
    num_unrolled = max([0, *lacking, *unstackable])
    return num_unrolled if len(inputs) - num_unrolled >= _FEWEST_STEPS else len(inputs)


def _layers_of_unrolled_steps(
    share: StackShare, num_unrolled: int, num_in_loop: int, forward: ForwardPass
) -> list[list[Layer]]:
    """The share's layers of each unrolled step."""
    stack, per_step = share
    if stack is None:
        return [[]] * num_unrolled
    if num_in_loop:  # the stack's first layers, which record nothing, see `run_steps`; the loop has the others
        weights, num_layers = forward.weights_of(stack), stack.count - num_in_loop * per_step
        slices = [tf.nest.map_structure(operator.itemgetter(number), weights) for number in range(num_layers)]
        layers, _ = stack.layer_functions(slices, forward)
    else:  # all layers, whose records `forward` gathers
        layers = stack.layers(forward)
    by_step = [layers[first : first + per_step] for first in range(0, len(layers), per_step)]
    return [[]] * (num_unrolled - len(by_step)) + by_step


def _run_loop(shares, step, state, inputs, forward, output_to_tensors) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The state after a step for each of the `inputs`, and the output tensors, with an axis for the steps in front."""
    stacked_weights = [_weights_of_last_steps(share, len(inputs), forward) for share in shares]
    stacked_inputs = stacked_weights, tf.nest.map_structure(lambda *each: tf.stack(each), *inputs)

    def body(state: tf.Tensor, slices: tuple[list[Weights], Any]) -> tuple[tf.Tensor, list, list]:
        step_weights, step_input = slices
        layers, recorded = [], []  # a list for each share; calling the layers fills the lists in `recorded`
        for (stack, per_step), weights in zip(shares, step_weights, strict=True):
            layer_weights = [weights] if per_step == 1 else unstacked(weights, per_step)
            functions, own_recorded = ([], []) if stack is None else stack.layer_functions(layer_weights, forward)
            layers.append(functions)
            recorded.append(own_recorded)
        state, output = step(layers, state, step_input)
        return state, output_to_tensors(output), recorded

    scan = scan_with_gradient if forward.training else scan_for_inference
    state, outputs, recorded = scan(body, state, stacked_inputs)
    if forward.training:  # inference records nothing
        forward.recorded += [(share.stack, each) for share, each in zip(shares, recorded, strict=True) if each]
    return state, outputs


def _weights_of_last_steps(share: StackShare, num_steps: int, forward: ForwardPass) -> Weights:
    """The share's weights of the last steps, `[steps, ...]`; `[steps, layers, ...]` where a step has several layers."""
    stack, per_step = share
    if stack is None:
        return ()

    def by_step(weight: tf.Tensor) -> tf.Tensor:
        last = weight if stack.count == num_steps * per_step else weight[-num_steps * per_step :]
        return last if per_step == 1 else tf.reshape(last, [num_steps, per_step, *weight.shape[1:]])

    return tf.nest.map_structure(by_step, forward.weights_of(stack))


# Both loops take `body(state, inputs[i]) -> (state, outputs[i], recorded[i])`, the first state, and `inputs`, any
# structure of tensors `[n, ...]`. They return the last state, the outputs with an axis in front, and all records. A
# `turn` is what TensorFlow's loop runs: it takes the number of a step, and slices its inputs for `body`. A table is a
# `tf.TensorArray` with a place for each step.


def scan_with_gradient(body: Callable, state: tf.Tensor, inputs: Any) -> tuple[tf.Tensor, list[tf.Tensor], list]:
    """A loop whose gradient is a second loop, which goes backward and keeps less than TensorFlow's."""
    leaves = tf.nest.flatten(inputs)
    packing = Packing([tf.TensorSpec(leaf.shape[1:], leaf.dtype) for leaf in leaves])
    # Packed, so that `loop` has few arguments: `tf.custom_gradient` makes zeros for each one without a gradient.
    packed_inputs = packing.pack(leaves)

    def body_of_packed(state: tf.Tensor, slices: list[tf.Tensor]) -> tuple:
        return body(state, tf.nest.pack_sequence_as(inputs, packing.unpack(slices)))

    traced = _TracedStep(body_of_packed, state, packed_inputs)
    # Filled by `loop`, not returned by it: what it returns would be differentiated.
    recorded: list = []

    @tf.custom_gradient
    def loop(first_state: tf.Tensor, *packed: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        last_state, tables = traced.forward_loop(first_state, packed)
        outputs, recorded[:], _ = traced.unpack_results([table.stack() for table in tables])

        def gradient(state_gradient: tf.Tensor, *output_gradients: tf.Tensor) -> list[tf.Tensor | None]:
            return traced.backward_loop(tables, packed, state_gradient, output_gradients)

        return [last_state, *outputs], gradient

    last_state, *outputs = loop(state, *packed_inputs)
    return last_state, outputs, recorded


def scan_for_inference(body: Callable, state: tf.Tensor, inputs: Any) -> tuple[tf.Tensor, list[tf.Tensor], list]:
    """A loop whose gradient, if one is asked for, is TensorFlow's; nothing is recorded."""
    num_steps = tf.nest.flatten(inputs)[0].shape[0]
    slice_specs = tf.nest.map_structure(lambda leaf: tf.TensorSpec(leaf.shape[1:], leaf.dtype), inputs)
    # A first trace, for the outputs' shapes alone. The loop traces `body` itself: within a function that is called
    # TensorFlow would fuse nothing.
    shape_probe = tf.function(lambda state, slices: body(state, slices)[1], autograph=False)
    specs = shape_probe.get_concrete_function(tf.TensorSpec(state.shape, state.dtype), slice_specs).structured_outputs

    def turn(number: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        # Unlike what `tf.gather` gives, these slices share the memory of the leaves where they are aligned.
        begin = tf.reshape(number, [1])
        place = {"begin": begin, "end": begin + 1, "strides": [1], "shrink_axis_mask": 1}
        slices = tf.nest.map_structure(lambda leaf: tf.raw_ops.StridedSlice(input=leaf, **place), inputs)
        return body(state, slices)[:2]

    # Up to four steps at once: the slices of the next ones are taken meanwhile.
    last_state, tables = _loop(turn, state, specs, num_steps, parallel_iterations=4)
    return last_state, [table.stack() for table in tables], []


class _TracedStep:
    """A step and its gradient, traced in one graph and cut in two: a forward and a backward piece.

    `forward(state, *slices)` returns the next state and the flat `results`: outputs, what is recorded, what is kept.
    `backward(*kept, *slices, state_gradient, *output_gradients)` returns the gradients of the state and of those
    slices that have one.
    """

    def __init__(self, body: Callable, state: tf.Tensor, inputs: Sequence[tf.Tensor]):
        slice_specs = [tf.TensorSpec(each.shape[1:], each.dtype) for each in inputs]
        # 1. The step, by a function of TensorFlow 1: only its result can be cut at chosen tensors (`prune`).
        whole = tf.compat.v1.wrap_function(body, [tf.TensorSpec(state.shape, state.dtype), slice_specs])
        if whole.graph.captures:
            raise ValueError(f"a step has no gradient for what it uses besides its arguments: {whole.graph.captures}")
        next_state, outputs, recorded = whole.structured_outputs
        state_input, *slices = whole.inputs
        costly = [operation for operation in whole.graph.get_operations() if operation.type in _KEPT]
        # 2. Its gradient, in the same graph.
        with whole.graph.as_default():
            # Placeholders for the gradients of what the step returns, which the backward loop feeds.
            upstream = [tf.compat.v1.placeholder(each.dtype, each.shape) for each in (next_state, *outputs)]
            state_gradient, *slice_gradients = tf.gradients([next_state, *outputs], whole.inputs, upstream)
        self._has_gradient = [gradient is not None for gradient in slice_gradients]
        existing = [gradient for gradient in slice_gradients if gradient is not None]
        self._gradient_specs = [tf.TensorSpec(gradient.shape, gradient.dtype) for gradient in existing]
        gradients = [state_gradient, *existing]
        # 3. The cut: what the gradients need of the forward piece is the state before the step, and costly results.
        may_be_kept = [state_input, *(result for operation in costly for result in operation.outputs)]
        kept = _needed_of(may_be_kept, gradients, [*slices, *upstream])
        self._results_structure = outputs, recorded, kept
        results = tf.nest.flatten(self._results_structure)
        self._packing, self._num_steps = Packing(results), inputs[0].shape[0]
        self._forward = whole.prune(whole.inputs, [next_state, *results])
        self._backward = whole.prune([*kept, *slices, *upstream], gradients)

    def unpack_results(self, packed: list[tf.Tensor]) -> tuple[list[tf.Tensor], list, list[tf.Tensor]]:
        """Outputs, what is recorded, and what is kept, from what the tables hold."""
        return tf.nest.pack_sequence_as(self._results_structure, self._packing.unpack(packed))

    def forward_loop(self, state: tf.Tensor, inputs: Sequence[tf.Tensor]) -> tuple[tf.Tensor, list[tf.TensorArray]]:
        """The last state, and tables of the results of all steps."""

        def turn(number: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
            next_state, *results = self._forward(state, *(tf.gather(each, number) for each in inputs))
            return next_state, self._packing.pack(results)

        return _loop(turn, state, self._packing.specs, self._num_steps)

    def backward_loop(
        self,
        result_tables: list[tf.TensorArray],
        inputs: Sequence[tf.Tensor],
        state_gradient: tf.Tensor,
        output_gradients: Sequence[tf.Tensor],
    ) -> list[tf.Tensor | None]:
        """The gradients of the first state and of the inputs, None for an input without one."""

        def turn(number: tf.Tensor, state_gradient: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
            _, _, kept = self.unpack_results([table.read(number) for table in result_tables])
            slices = [tf.gather(each, number) for each in inputs]
            upstream = [tf.gather(each, number) for each in output_gradients]
            previous, *slice_gradients = self._backward(*kept, *slices, state_gradient, *upstream)
            return previous, slice_gradients

        first_gradient, tables = _loop(turn, state_gradient, self._gradient_specs, self._num_steps, backward=True)
        input_gradients = iter([table.stack() for table in tables])
        return [first_gradient, *(next(input_gradients) if has else None for has in self._has_gradient)]


def _needed_of(may_be_kept: list[tf.Tensor], wanted: list[tf.Tensor], known: list[tf.Tensor]) -> list[tf.Tensor]:
    """The tensors of `may_be_kept` from which, with what is `known`, the `wanted` ones can be computed.

    Goes back from the wanted tensors to their inputs, and stops at those that may be kept or are known.
    """
    names, pending, seen, needed = {each.name for each in may_be_kept}, list(wanted), {each.name for each in known}, []
    while pending:
        tensor = pending.pop()
        if tensor.name not in seen:
            seen.add(tensor.name)
            if tensor.name in names:
                needed.append(tensor)
            else:
                pending += tensor.op.inputs
    return needed


def _loop(turn, state, specs, num_steps, backward=False, parallel_iterations=1) -> tuple[tf.Tensor, list]:
    """Runs `state, tensors = turn(number, state)` for each step; returns the last state, and a table of each tensor."""
    tables = [tf.TensorArray(spec.dtype, num_steps, element_shape=spec.shape, clear_after_read=False) for spec in specs]

    def counted_turn(count: tf.Tensor, state: tf.Tensor, tables: list[tf.TensorArray]) -> tuple:
        number = num_steps - 1 - count if backward else count
        next_state, tensors = turn(number, state)
        next_state.set_shape(state.shape)
        written = [table.write(number, tensor) for table, tensor in zip(tables, tensors, strict=True)]
        return count + 1, next_state, written

    _, state, tables = tf.while_loop(
        lambda count, *_: count < num_steps,
        counted_turn,
        (tf.constant(0), state, tables),
        maximum_iterations=num_steps,
        parallel_iterations=parallel_iterations,
    )
    return state, tables
