"""One loop of the graph over equal steps, as `jax.lax.scan`; in training its gradient is a second loop.

    for i in range(number of steps):
        state, outputs[i], records[i] = body(state, inputs[i])

`inputs` is any structure of tensors with a leading axis for the steps. Outputs and records come back with the same
leading axis, after the last state. Records have no gradient: they are the statistics of batch norm.

TensorFlow's gradient of a loop keeps every tensor of every step that the backward pass reads. Here one step and its
gradient are traced in one graph, which is cut in two pieces (a picture is in docs/architecture.md):

    forward(state, inputs[i])            -> next state, outputs[i], records[i], kept[i]
    backward(kept[i], inputs[i], gradients of next state and outputs[i])
                                         -> gradients of state and inputs[i]

A loop of the forward piece fills tables, then a loop of the backward piece reads them from the last step to the first.
Kept are the state before a step, and the results of its convolutions, matrix products and calls of functions (`_KEPT`).
The backward piece computes all else of the step again from these and from the inputs, which takes little time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from nvae_tf.layers.packing import Packing

# Operations whose results the forward loop keeps for the backward loop (of a called function its results, not what it
# computes inside); all else is cheap to compute again.
_KEPT = ("Conv2D", "DepthwiseConv2dNative", "MatMul", "PartitionedCall", "StatefulPartitionedCall")


def scan_for_inference(body: Callable, state: tf.Tensor, inputs: Any) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The last state and stacked outputs, without records; a gradient, if one is asked for, is TensorFlow's."""
    num_steps = tf.nest.flatten(inputs)[0].shape[0]
    slice_specs = tf.nest.map_structure(lambda stacked: tf.TensorSpec(stacked.shape[1:], stacked.dtype), inputs)
    # A first trace, for the outputs' shapes alone. The loop traces `body` itself: within a function that is called
    # TensorFlow would fuse nothing.
    shape_probe = tf.function(lambda state, slices: body(state, slices)[1], autograph=False)
    specs = shape_probe.get_concrete_function(tf.TensorSpec(state.shape, state.dtype), slice_specs).structured_outputs

    def iteration(number: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        # Unlike what `tf.gather` gives, these slices share the memory of the inputs where they are aligned.
        begin = tf.reshape(number, [1])
        place = {"begin": begin, "end": begin + 1, "strides": [1], "shrink_axis_mask": 1}
        slices = tf.nest.map_structure(lambda stacked: tf.raw_ops.StridedSlice(input=stacked, **place), inputs)
        return body(state, slices)[:2]

    # Up to four steps at once: the slices of the next ones are taken meanwhile.
    last_state, tables = _loop(iteration, state, specs, num_steps, parallel_iterations=4)
    return last_state, [table.stack() for table in tables]


def scan_with_gradient(body: Callable, state: tf.Tensor, inputs: Any) -> tuple[tf.Tensor, list[tf.Tensor], Any]:
    """The last state, stacked outputs and stacked records; the gradient is a loop that goes backward."""
    leaves = tf.nest.flatten(inputs)
    packing = Packing([tf.TensorSpec(leaf.shape[1:], leaf.dtype) for leaf in leaves])
    # Packed, so that `loop` has few arguments: `tf.custom_gradient` makes zeros for each one without a gradient.
    packed_inputs = packing.pack(leaves)

    def body_of_packed(state: tf.Tensor, packed_slices: list[tf.Tensor]) -> tuple:
        return body(state, tf.nest.pack_sequence_as(inputs, packing.unpack(packed_slices)))

    step = _TracedStep(body_of_packed, state, packed_inputs)
    records = None  # set by `loop`, not returned by it: what it returns would be differentiated

    @tf.custom_gradient
    def loop(first_state: tf.Tensor, *packed: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        nonlocal records
        last_state, tables = step.forward_loop(first_state, packed)
        outputs, records, _ = step.unpack_results([table.stack() for table in tables])

        def gradient(state_gradient: tf.Tensor, *output_gradients: tf.Tensor) -> list[tf.Tensor | None]:
            return step.backward_loop(tables, packed, state_gradient, output_gradients)

        return [last_state, *outputs], gradient

    last_state, *outputs = loop(state, *packed_inputs)
    return last_state, outputs, records


class _TracedStep:
    """One step and its gradient as two pieces of one graph, and the loops over both.

    `_forward(state, *slices)` returns the next state and a list of results: the outputs, the records, what is kept.
    `_backward(*kept, *slices, state_gradient, *output_gradients)` returns the gradients of the state and of those
    slices that have one.
    """

    def __init__(self, body: Callable, state: tf.Tensor, inputs: Sequence[tf.Tensor]):
        slice_specs = [tf.TensorSpec(stacked.shape[1:], stacked.dtype) for stacked in inputs]
        # 1. The step, by a function of TensorFlow 1: only its result can be cut at chosen tensors (`prune`).
        whole = tf.compat.v1.wrap_function(body, [tf.TensorSpec(state.shape, state.dtype), slice_specs])
        if whole.graph.captures:
            raise ValueError(f"a step has no gradient for what it uses besides its arguments: {whole.graph.captures}")
        next_state, outputs, records = whole.structured_outputs
        state_input, *slices = whole.inputs
        # Before the gradient is added, so that these are forward operations alone.
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
        self._forward = whole.prune(whole.inputs, [next_state, *tf.nest.flatten((outputs, records, kept))])
        self._backward = whole.prune([*kept, *slices, *upstream], gradients)
        # A loop's tables hold the results packed: fewer tables, a smaller program.
        self._results = outputs, records, kept
        self._packing, self._num_steps = Packing(tf.nest.flatten(self._results)), inputs[0].shape[0]

    def unpack_results(self, packed: list[tf.Tensor]) -> tuple[list[tf.Tensor], Any, list[tf.Tensor]]:
        """The outputs, the records and what is kept, of one step or stacked, from what the tables hold."""
        return tf.nest.pack_sequence_as(self._results, self._packing.unpack(packed))

    def forward_loop(self, state: tf.Tensor, inputs: Sequence[tf.Tensor]) -> tuple[tf.Tensor, list[tf.TensorArray]]:
        """The last state, and tables of the results of all steps."""

        def iteration(number: tf.Tensor, state: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
            next_state, *results = self._forward(state, *(tf.gather(stacked, number) for stacked in inputs))
            return next_state, self._packing.pack(results)

        return _loop(iteration, state, self._packing.specs, self._num_steps)

    def backward_loop(
        self,
        result_tables: list[tf.TensorArray],
        inputs: Sequence[tf.Tensor],
        state_gradient: tf.Tensor,
        output_gradients: Sequence[tf.Tensor],
    ) -> list[tf.Tensor | None]:
        """The gradients of the first state and of the inputs, None for an input without one."""

        def iteration(number: tf.Tensor, state_gradient: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
            _, _, kept = self.unpack_results([table.read(number) for table in result_tables])
            slices = [tf.gather(stacked, number) for stacked in inputs]
            upstream = [tf.gather(stacked, number) for stacked in output_gradients]
            previous_gradient, *slice_gradients = self._backward(*kept, *slices, state_gradient, *upstream)
            return previous_gradient, slice_gradients

        first_gradient, tables = _loop(iteration, state_gradient, self._gradient_specs, self._num_steps, backward=True)
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


def _loop(iteration, state, specs, num_steps, backward=False, parallel_iterations=1) -> tuple[tf.Tensor, list]:
    """Runs `state, tensors = iteration(number, state)` for each step, the last one first if `backward`.

    Returns the last state, and for each tensor of `iteration` (`specs` describes them) a table, a `tf.TensorArray` with
    its values at all steps.
    """
    tables = [tf.TensorArray(spec.dtype, num_steps, element_shape=spec.shape, clear_after_read=False) for spec in specs]

    def counted(count: tf.Tensor, state: tf.Tensor, tables: list[tf.TensorArray]) -> tuple:
        number = num_steps - 1 - count if backward else count
        next_state, tensors = iteration(number, state)
        next_state.set_shape(state.shape)
        return count + 1, next_state, [table.write(number, each) for table, each in zip(tables, tensors, strict=True)]

    _, state, tables = tf.while_loop(
        lambda count, *_: count < num_steps,
        counted,
        (tf.constant(0), state, tables),
        maximum_iterations=num_steps,
        parallel_iterations=parallel_iterations,
    )
    return state, tables
