"""Equal steps, each with its layers of some stacks: one after another in the graph, or as one loop of it.

The loop (`ForwardPass.scanned`) keeps the program that XLA compiles as small for fifty groups as for one. Its body is
the same step, with a slice of the stacked weights; TensorFlow derives its gradient, another loop.
"""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from nvae_tf.layers.stacked import ForwardPass, StackedLayer, layers_of, unstacked


class Part(NamedTuple):
    """A stack, None where there is none, of which every step has so many layers; the last steps where it has fewer."""

    stack: StackedLayer | None
    layers_a_step: int = 1


class Gathering(NamedTuple):
    """What a loop keeps of a step's output."""

    tensors: Callable[[Any], list[tf.Tensor]]  # of an output
    like: Sequence[tf.Tensor] = ()  # of the same types and shapes


# `(layers, state, input) -> (state, output)`; `layers` are functions of a tensor, a list of them for each part.
Step = Callable[[list[list[Callable]], tf.Tensor, Any], tuple[tf.Tensor, Any]]
NOTHING = Gathering(lambda _: [])


def in_turn(
    parts: Sequence[Part],
    step: Step,
    state: tf.Tensor,
    inputs: Sequence[Any],
    forward: ForwardPass,
    gathering: Gathering = NOTHING,
) -> tuple[tf.Tensor, list[Any], list[tf.Tensor]]:
    """The state after a step for each of the `inputs`, and what the steps have put out; records batch statistics.

    Outputs are those of steps by themselves. Steps of a loop give the tensors of `gathering` instead, with an axis for
    the steps in front; these are the last steps, and all have layers of every part. Where `forward.scanned` there is a
    loop, for two equal steps or more. Steps that lack layers of a part must not have layers that record.
    """
    alone = max(len(inputs) - part.stack.count // part.layers_a_step for part in parts if part.stack is not None)
    if not forward.scanned or tf.executing_eagerly() or len(inputs) - alone < 2:
        return (*_unrolled(parts, step, state, inputs, forward), [])
    weights = [None if part.stack is None else part.stack.weights_of(forward) for part in parts]
    outputs = []
    for index in range(alone):
        layers = [_layers_of_step(*pair, index - len(inputs), forward) for pair in zip(parts, weights, strict=True)]
        state, output = step(layers, state, inputs[index])
        outputs.append(output)
    state, stacked = _loop(parts, weights, step, state, inputs[alone:], forward, gathering)
    records = iter(stacked[len(gathering.like) :])
    for part in parts:
        for recorder in _recorders(part):
            of_layers = [next(records) for _ in recorder.statistics]
            if None not in of_layers:
                pairs = zip(of_layers, recorder.statistics, strict=True)
                recorder.record(forward, [tf.reshape(tensor, variable.shape) for tensor, variable in pairs])
    return state, outputs, stacked[: len(gathering.like)]


def run_cells(cells: StackedLayer | None, state: tf.Tensor, forward: ForwardPass) -> tf.Tensor:
    """All layers of a stack, or none, one after the other."""
    if cells is None:
        return state
    return in_turn([Part(cells)], lambda layers, state, _: (layers[0][0](state), None), state, [None] * cells.count, forward)[0]


def _unrolled(parts, step, state, inputs, forward) -> tuple[tf.Tensor, list[Any]]:
    outputs = []
    with contextlib.ExitStack() as stack:
        functions = [stack.enter_context(unstacked(part.stack, forward)) for part in parts]
        for index, of_step in enumerate(inputs, -len(inputs)):
            layers = [_those_of_step(*pair, index) for pair in zip(functions, parts, strict=True)]
            state, output = step(layers, state, of_step)
            outputs.append(output)
    return state, outputs


def _those_of_step(layers: Sequence[Any], part: Part, index: int) -> Sequence[Any]:
    """A step's layers; steps count from the end, -1 is the last. None where they are too few for it."""
    first = len(layers) + index * part.layers_a_step
    return layers[first : first + part.layers_a_step] if first >= 0 else []


def _layers_of_step(part: Part, weights: Any, index: int, forward: ForwardPass) -> list[Callable]:
    numbers = [] if part.stack is None else _those_of_step(range(part.stack.count), part, index)
    return [_layer(part, _map(lambda weight, number=number: weight[number], weights), forward) for number in numbers]


def _layer(
    part: Part, weights: Any, forward: ForwardPass, records: list | None = None, place: int = 0
) -> Callable:
    """A layer with these weights as a function of a tensor, which leaves at a place of `records` what it records."""
    apply = part.stack.application(forward)

    def layer(inputs: tf.Tensor) -> tf.Tensor:
        recording = records is not None and (forward.training or forward.initializing)
        outputs, found = apply(weights, inputs, recording)
        if recording:
            records[place] = found
        return outputs

    return layer


def _loop(parts, weights, step, state, inputs, forward, gathering) -> tuple[tf.Tensor, list[tf.Tensor]]:
    count, shape = len(inputs), state.shape
    of_steps = [_map(functools.partial(_of_steps, part, count), each) for part, each in zip(parts, weights, strict=True)]
    given = (of_steps, tf.nest.map_structure(_last_first, *inputs))
    leaves = [leaf for leaf in tf.nest.flatten(given) if leaf is not None]
    statistics = [(part, each) for part in parts for recorder in _recorders(part) for each in recorder.statistics]
    kept = [tf.TensorSpec(like.shape, like.dtype) for like in gathering.like]
    kept += [tf.TensorSpec(_of_a_step(part, variable.shape[1:])) for part, variable in statistics]
    recorded: list[bool] = []

    def body(number: tf.Tensor, state: tf.Tensor, lists: list, gathered: list) -> tuple:
        lists, elements = zip(*map(_popped, lists, leaves), strict=True)
        following = iter(elements)
        slices, of_step = _map(lambda _: next(following), given)
        records = [[None] * part.layers_a_step for part in parts]
        layers = [
            [_layer(part, weights, forward, found, place) for place, weights in enumerate(_of_layers(part, of_part))]
            for part, of_part, found in zip(parts, slices, records, strict=True)
        ]
        state, output = step(layers, state, of_step)
        state.set_shape(shape)
        tensors = list(gathering.tensors(output))
        for pair in zip(parts, records, strict=True):
            tensors += _of_statistics(*pair)
        recorded[:] = [tensor is not None for tensor in tensors]
        return number + 1, state, list(lists), list(map(_pushed, gathered, tensors))

    loop_variables = tf.constant(0), state, list(map(_list_of, leaves)), [_empty_list(spec, count) for spec in kept]
    condition, limits = lambda number, *_: number < count, {"maximum_iterations": count, "parallel_iterations": 1}
    _, state, _, gathered = tf.while_loop(condition, body, loop_variables, **limits)
    stacked = [_stacked(*each, count) for each in zip(gathered, kept, recorded, strict=True)]
    return state, stacked


# The weights of a loop's steps are elements of lists, from which each step takes the last: TensorFlow derives of this a
# list to which the backward loop appends a step's gradient. Of a slice it derives a tensor of all steps in each step.


def _list_of(tensor: tf.Tensor) -> tf.Tensor:
    return tf.raw_ops.TensorListFromTensor(tensor=tensor, element_shape=_shape(tensor.shape[1:]))


def _popped(items: tf.Tensor, like: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    shape = like.shape[1:]
    rest, last = tf.raw_ops.TensorListPopBack(input_handle=items, element_shape=_shape(shape), element_dtype=like.dtype)
    last.set_shape(shape)
    return rest, last


def _empty_list(spec: tf.TensorSpec, count: int) -> tf.Tensor:
    shape = _shape(spec.shape)
    return tf.raw_ops.EmptyTensorList(element_shape=shape, max_num_elements=count, element_dtype=spec.dtype)


def _pushed(items: tf.Tensor, tensor: tf.Tensor | None) -> tf.Tensor:
    return items if tensor is None else tf.raw_ops.TensorListPushBack(input_handle=items, tensor=tensor)


def _stacked(items: tf.Tensor, spec: tf.TensorSpec, is_there: bool, count: int) -> tf.Tensor | None:
    if not is_there:
        return None
    shape = _shape(spec.shape)
    stacked = tf.raw_ops.TensorListStack(
        input_handle=items, element_shape=shape, element_dtype=spec.dtype, num_elements=count
    )
    stacked.set_shape([count, *spec.shape])
    return stacked


def _shape(shape: Sequence[int | None]) -> tf.Tensor:
    return tf.constant([-1 if size is None else size for size in shape], tf.int32)


# What a part has in a step: one layer, or several with an axis for them in front.


def _of_a_step(part: Part, shape: Sequence[int]) -> list[int]:
    return [*([part.layers_a_step] if part.layers_a_step > 1 else []), *shape]


def _of_steps(part: Part, count: int, weight: tf.Tensor) -> tf.Tensor:
    """The weights of the last `count` steps, those of the last step first."""
    last = weight[-count * part.layers_a_step :] if part.stack.count > count * part.layers_a_step else weight
    return tf.reverse(tf.reshape(last, [count, *_of_a_step(part, weight.shape[1:])]), [0])


def _last_first(*inputs: Any) -> tf.Tensor | None:
    return None if inputs[0] is None else tf.stack(inputs[::-1])


def _of_layers(part: Part, weights: Any) -> list[Any]:
    if part.stack is None or part.layers_a_step == 1:
        return [] if part.stack is None else [weights]
    return layers_of(weights, part.layers_a_step)


def _recorders(part: Part) -> list[StackedLayer]:
    return [] if part.stack is None else part.stack.recorders()


def _of_statistics(part: Part, records: list) -> list[tf.Tensor | None]:
    """What a step's layers have recorded, for each of the recorders' statistics; None for those that have not."""
    if part.stack is None or records[0] is None:
        return [None for recorder in _recorders(part) for _ in recorder.statistics]
    found: list[tf.Tensor | None] = []
    for recorder, *of_layers in zip(_recorders(part), *records, strict=True):
        columns = [[None]] * len(recorder.statistics) if of_layers[0] is None else zip(*of_layers, strict=True)
        found += [column[0] if len(column) == 1 else tf.stack(column) for column in columns]
    return found


def _map(function: Callable, structure: Any) -> Any:
    return tf.nest.map_structure(lambda leaf: None if leaf is None else function(leaf), structure)
