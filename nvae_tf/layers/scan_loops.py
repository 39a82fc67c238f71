"""Loops over stacked inputs, as `jax.lax.scan`: `scan(body, state, inputs) -> (state, outputs, recorded)`.

    loop:      for i in 0 .. n-1:   state, outputs[i], recorded[i] = body(state, inputs[i])

The state is one tensor; `inputs` are any structure of tensors `[n, ...]` (`tf.nest`), `outputs` a list of them, and
`recorded` the statistics that batch norm records, without a gradient. In training `body` becomes two pieces:

    forward:   for i in 0 .. n-1:   state, results[i] = step.forward(state, inputs[i])
    backward:  for i in n-1 .. 0:   d_state, d_inputs[i] = step.backward(results[i], inputs[i], d_state, d_outputs[i])

The results of a step are its outputs, what it records, and what its backward piece needs and does not compute again.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from nvae_tf.layers.packing import Packing

# Operations whose results the forward loop keeps for the backward loop; all else is cheap to compute again.
_KEPT = ("Conv2D", "DepthwiseConv2dNative", "MatMul", "PartitionedCall", "StatefulPartitionedCall")


def scan_with_gradient(body: Callable, state: tf.Tensor, inputs: Any) -> tuple[tf.Tensor, list[tf.Tensor], list]:
    """A loop whose gradient is a second loop, which goes backward.

    TensorFlow's gradient of a loop would keep every tensor that the backward pass reads, slices of the weights among
    them. This one keeps the results of convolutions and matrix products, and computes the rest of a step again, which
    takes little time.
    """
    leaves = tf.nest.flatten(inputs)
    packing = Packing([tf.TensorSpec(leaf.shape[1:], leaf.dtype) for leaf in leaves])
    # Packed outside of `loop`: `tf.custom_gradient` makes zeros for each argument without a gradient.
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
        # 1. The step. By a function of TensorFlow 1, because this alone can be cut at chosen tensors (`prune`).
        whole = tf.compat.v1.wrap_function(body, [tf.TensorSpec(state.shape, state.dtype), slice_specs])
        if whole.graph.captures:
            raise ValueError(f"a step has no gradient for what it uses besides its arguments: {whole.graph.captures}")
        next_state, outputs, recorded = whole.structured_outputs
        state_input, *slices = whole.inputs
        costly = [operation for operation in whole.graph.get_operations() if operation.type in _KEPT]
        # 2. Its gradient, in the same graph.
        with whole.graph.as_default():
            # The gradients of what the step returns, which the backward loop gives.
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

    They are the first on the ways back from the wanted tensors to their inputs.
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
    """`state, tensors = turn(number, state)` for each step's number; the last state, and tables of the tensors."""
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
