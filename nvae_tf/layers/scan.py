"""Equal steps, each with its layers of some stacks: one after another in the graph, or as one loop of it.

The loop (`ForwardPass.scanned`) keeps the program that XLA compiles, and the graph that draws or is served, as small
for fifty groups as for two. Its body is the same step with a slice of the stacked weights. In training the
gradient is a second loop: what the forward loop keeps for it are the results of convolutions and products; all else in
a step takes little time and is computed again.
"""

import contextlib
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

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
        """Those of a step; steps count from the end, -1 is the last. An empty list where they are too few for it."""
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

    Where `forward.scanned` the last steps, those that have layers of every part and inputs of tensors alone, are a loop
    if they are three or more; two take less of a program than a loop. Of these steps the third result has the
    `tensors_of` an output, with an axis for the steps in front; the second has the outputs of all other steps. Steps
    that lack layers of a part have none that record.
    """
    alone = max(len(inputs) - part.stack.count // part.layers_a_step for part in parts if part.stack is not None)
    alone = max([alone, *(number for number, given in enumerate(inputs, 1) if not _can_be_stacked(given))])
    if not forward.scanned or tf.executing_eagerly() or len(inputs) - alone < 3:
        return (*_unrolled(parts, step, state, inputs, forward), [])
    weights = [None if part.stack is None else forward.weights_of(part.stack) for part in parts]
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


def _can_be_stacked(given: Any) -> bool:
    return all(isinstance(leaf, tf.Tensor | float) for leaf in tf.nest.flatten(given))


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
    lengths: list[int] = []

    def flat_step(state: tf.Tensor, slices: list[tf.Tensor]) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
        following = iter(slices)
        of_step, input_of_step = _map(lambda _: next(following), given)
        layers, records = [], []
        for part, of_part in zip(parts, of_step, strict=True):
            of_layers = [] if part.stack is None else _unpacked(part, of_part)
            found = [None] * len(of_layers)
            layers.append([_layer(part, each, forward, found, place) for place, each in enumerate(of_layers)])
            records.append(found)
        state, output = step(layers, state, input_of_step)
        of_recorders = [each for pair in zip(parts, records, strict=True) for each in _of_recorders(*pair)]
        lengths[:] = map(len, of_recorders)
        return state, tensors_of(output), [tensor for each in of_recorders for tensor in each]

    recording = forward.training or forward.initializing
    state, outputs, records = (_scan if recording else _scan_without_records)(flat_step, state, leaves)
    following = iter(records)
    return state, outputs, [[next(following) for _ in range(length)] for length in lengths]


class Packing:
    """Joins small tensors of one type, so that a program has a few of them in place of hundreds."""

    def __init__(self, tensors: Sequence[Any], small: int = _SMALL):
        """For tensors like these, which may have axes in front; those of at most so many numbers count as small."""
        # First those that differ in their first axis alone: that takes no reshaping.
        self._alike = Joining(tensors, small)
        flat = [[each.shape.num_elements()] if _is_small(each, small) else each.shape for each in self._alike.specs]
        pairs = zip(flat, self._alike.specs, strict=True)
        self._flat = Joining([tf.TensorSpec(shape, each.dtype) for shape, each in pairs], small)
        # Of what `packed` gives, and which of it are several tensors.
        self.specs = self._flat.specs
        self.joins = [len(group) > 1 or len(self._alike.groups[group[0]]) > 1 for group in self._flat.groups]

    def packed(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """The large ones, and few tensors for all small ones."""
        return self._flat.joined(_reshaped(self._alike.joined(tensors), self._alike.specs, self._flat.given))

    def unpacked(self, tensors: Sequence[tf.Tensor | None]) -> list[tf.Tensor | None]:
        """What `packed` has joined; None for None."""
        return self._alike.divided(_reshaped(self._flat.divided(tensors), self._flat.given, self._alike.specs))


class Joining:
    """Joins small tensors of one type and of shapes that differ in their first axis alone, along it."""

    def __init__(self, given: Sequence[Any], small: float):
        """For tensors like these; those of at most so many numbers count as small."""
        self.given, groups = given, {}
        for index, each in enumerate(given):
            can_be_joined = _is_small(each, small) and each.shape.rank
            key = (tf.as_dtype(each.dtype), *each.shape[1:]) if can_be_joined else index
            groups.setdefault(key, []).append(index)
        self.groups, self.specs = list(groups.values()), []
        for group in self.groups:
            shape, dtype = given[group[0]].shape, given[group[0]].dtype
            shape = [sum(self._lengths(group)), *shape[1:]] if group[1:] else shape
            self.specs.append(tf.TensorSpec(shape, dtype))

    def _lengths(self, group: list[int]) -> list[int]:
        return [self.given[index].shape[0] for index in group]

    def joined(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Those that differ in their first axis alone as one, in the order of `specs`."""
        groups = [[tensors[index] for index in group] for group in self.groups]
        pairs = zip(groups, self.specs, strict=True)
        return [tf.concat(each, _axes_in_front(each[0], spec)) if each[1:] else each[0] for each, spec in pairs]

    def divided(self, tensors: Sequence[tf.Tensor | None]) -> list[tf.Tensor | None]:
        """What `joined` has joined; None for None."""
        found: dict[int, tf.Tensor | None] = {}
        for tensor, group, spec in zip(tensors, self.groups, self.specs, strict=True):
            pieces = [tensor] * len(group)
            if group[1:] and tensor is not None:
                pieces = tf.split(tensor, self._lengths(group), _axes_in_front(tensor, spec))
            found |= zip(group, pieces, strict=True)
        return [found[index] for index in range(len(self.given))]


def _is_small(tensor: Any, small: float) -> bool:
    return tensor.shape.is_fully_defined() and tensor.shape.num_elements() <= small


def _axes_in_front(tensor: tf.Tensor, spec: Any) -> int:
    return tensor.shape.rank - spec.shape.rank


def _reshaped(tensors: Sequence[tf.Tensor], before: Sequence[Any], after: Sequence[Any]) -> list[tf.Tensor]:
    """With the shapes of other specs behind the axes in front."""
    found = []
    for tensor, old, new in zip(tensors, before, after, strict=True):
        is_same = tensor is None or old.shape == new.shape
        front = [] if is_same else tensor.shape[: _axes_in_front(tensor, old)]
        found.append(tensor if is_same else tf.reshape(tensor, [*front, *new.shape]))
    return found


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
    count, packing = leaves[0].shape[0], Packing([tf.TensorSpec(leaf.shape[1:], leaf.dtype) for leaf in leaves])
    # Joined before the operation, which has a gradient of zeros for each argument that needs none.
    packed = packing.packed(leaves)
    traced = _TracedStep(lambda state, slices: step(state, packing.unpacked(slices)), state, packed)
    of_made, records = Packing(traced.made), []

    @tf.custom_gradient
    def operation(state: tf.Tensor, *leaves: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
        def slices(number: tf.Tensor) -> list[tf.Tensor]:
            return [tf.gather(each, number) for each in leaves]

        def ahead(number: tf.Tensor, state: tf.Tensor, tables: list) -> tuple:
            following, *made = traced.forward(state, *slices(number))
            following.set_shape(state.shape)
            return number + 1, following, _written(tables, number, of_made.packed(made))

        begun = 0, state, _tables(of_made.specs, count)
        _, last, tables = _while(lambda number, *_: number < count, ahead, begun, count)

        def gradient(upstream: tf.Tensor, *of_results: tf.Tensor) -> list[tf.Tensor | None]:
            def back(number: tf.Tensor, upstream: tf.Tensor, sums: list) -> tuple:
                kept = of_made.unpacked([table.read(number) for table in tables])[traced.num_results :]
                of_outputs = [tf.gather(each, number) for each in of_results]
                of_state, *found = traced.backward(*kept, *slices(number), upstream, *of_outputs)
                of_state.set_shape(upstream.shape)
                return number - 1, of_state, _written(sums, number, found)

            begun = count - 1, upstream, _tables(traced.slice_gradients, count)
            _, upstream, sums = _while(lambda number, *_: number >= 0, back, begun, count)
            stacked = iter([table.stack() for table in sums])
            return [upstream, *(next(stacked) if is_there else None for is_there in traced.has_gradient)]

        results = of_made.unpacked([table.stack() for table in tables])
        # No results of the operation: they have no gradient.
        records[:] = results[traced.num_outputs : traced.num_results]
        return [last, *results[: traced.num_outputs]], gradient

    last, *outputs = operation(state, *packed)
    return last, outputs, records


def _scan_without_records(
    step: Callable, state: tf.Tensor, leaves: Sequence[tf.Tensor]
) -> tuple[tf.Tensor, list, list]:
    """As `_scan`, in inference: the gradient, if one is asked for, is TensorFlow's."""
    slices, count = [tf.TensorSpec(leaf.shape[1:], leaf.dtype) for leaf in leaves], leaves[0].shape[0]
    traced = tf.function(step, autograph=False).get_concrete_function(tf.TensorSpec(state.shape, state.dtype), slices)
    specs = traced.structured_outputs[1]  # alone: in a function that is called TensorFlow would fuse nothing

    def ahead(number: tf.Tensor, state: tf.Tensor, tables: list) -> tuple:
        # Unlike what `tf.gather` gives, these share the memory of the leaves where they are aligned.
        begin = tf.reshape(number, [1])
        place = {"begin": begin, "end": begin + 1, "strides": [1], "shrink_axis_mask": 1}
        following, outputs, _ = step(state, [tf.raw_ops.StridedSlice(input=leaf, **place) for leaf in leaves])
        following.set_shape(state.shape)
        return number + 1, following, _written(tables, number, outputs)

    begun = 0, state, _tables(specs, count)
    # Up to four steps at once: the next ones' slices are taken meanwhile.
    _, last, tables = _while(lambda number, *_: number < count, ahead, begun, count, parallel_iterations=4)
    return last, [table.stack() for table in tables], []


def _while(condition: Callable, body: Callable, variables: tuple, count: int, parallel_iterations: int = 1) -> tuple:
    first, *others = variables
    settings = {"maximum_iterations": count, "parallel_iterations": parallel_iterations}
    return tf.while_loop(condition, body, (tf.constant(first), *others), **settings)


def _tables(specs: Sequence[tf.TensorSpec], count: int) -> list[tf.TensorArray]:
    return [tf.TensorArray(spec.dtype, count, element_shape=spec.shape, clear_after_read=False) for spec in specs]


def _written(tables: Sequence[tf.TensorArray], number: tf.Tensor, tensors: Sequence[tf.Tensor]) -> list[tf.TensorArray]:
    return [table.write(number, tensor) for table, tensor in zip(tables, tensors, strict=True)]


class _TracedStep:
    """A step and its gradient in one graph, cut in two at what the forward piece keeps for the backward piece.

    `forward(state, *slices)` gives the next state and all that is `made`: outputs, records, and what is kept.
    `backward(*kept, *slices, *upstream)` gives the gradients of the state and of the slices that have one.
    """

    def __init__(self, step: Callable, state: tf.Tensor, leaves: Sequence[tf.Tensor]):
        slices = [tf.TensorSpec(leaf.shape[1:], leaf.dtype) for leaf in leaves]
        whole = tf.compat.v1.wrap_function(step, [tf.TensorSpec(state.shape, state.dtype), slices])
        if whole.graph.captures:
            raise ValueError(f"a step has no gradient for what it uses besides its arguments: {whole.graph.captures}")
        following, outputs, records = whole.structured_outputs
        _, *slices = whole.inputs
        early = {operation.name for operation in whole.graph.get_operations()}
        with whole.graph.as_default():
            upstream = [tf.compat.v1.placeholder(each.dtype, each.shape) for each in (following, *outputs)]
            of_state, *of_slices = tf.gradients([following, *outputs], whole.inputs, upstream)
        self.has_gradient = [gradient is not None for gradient in of_slices]
        self.slice_gradients = [gradient for gradient in of_slices if gradient is not None]
        gradients = [of_state, *self.slice_gradients]
        kept = _kept_tensors(gradients, {each.name for each in (*slices, *upstream)}, early)
        self.num_outputs, self.num_results = len(outputs), len(outputs) + len(records)
        self.made = [*outputs, *records, *kept]
        self.forward = whole.prune(whole.inputs, [following, *self.made])
        self.backward = whole.prune([*kept, *slices, *upstream], gradients)


def _kept_tensors(gradients: Sequence[tf.Tensor], given: set[str], early: set[str]) -> list[tf.Tensor]:
    """What the gradients need of the forward pass's operations besides what is given, see `_KEPT`."""
    pending, seen, kept = list(gradients), set(given), []
    while pending:
        tensor = pending.pop()
        if tensor.name not in seen:
            seen.add(tensor.name)
            if tensor.op.name in early and tensor.op.type in (*_KEPT, "Placeholder"):
                kept.append(tensor)
            else:
                pending += tensor.op.inputs
    return kept
