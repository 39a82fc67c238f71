"""Equal steps through stacked layers, one after another in the graph or as one loop of it (scan.py).

    for i in range(number of steps):
        layers = {name of stack: the layers of step i from this stack}  # lists of functions of a tensor
        state, outputs[i] = step(layers, state, inputs[i])

The last step uses the last layers of every stack; where a stack has too few for all steps, the first steps use none.
The four groups of the smallest scale for example, whose first group has no prior and no cells:

    step                            0         1        2        3
    posteriors: 4 layers            p0        p1       p2       p3
    priors: 3 layers                          q0       q1       q2
    cells: 6 layers, 2 a step                 c0 c1    c2 c3    c4 c5
                                 unrolled  |-------- the loop --------|

As a loop (`ForwardPass.scanned`) the graph has one step, which takes slices of the stacked weights: the program that
XLA compiles, and the graph that is exported, stay as small for fifty groups as for two.
"""

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from nvae_tf.layers.scan import scan_for_inference, scan_with_gradient
from nvae_tf.layers.stacked import ForwardPass, StackedLayer, Weights, unstacked

_FEWEST_STEPS = 3  # fewer steps make a smaller program one by one than as a loop

Layer = Callable[[tf.Tensor], tf.Tensor]
Layers = Mapping[str, list[Layer]]  # what one step uses, by the names of the shares


class StackShare(NamedTuple):
    """A stack, and the number of its layers that each step uses; with `stack` None no step uses any."""

    stack: StackedLayer | None
    layers_per_step: int = 1


def run_steps(
    shares: Mapping[str, StackShare],
    step: Callable[[Layers, tf.Tensor, Any], tuple[tf.Tensor, Any]],
    state: tf.Tensor,
    inputs: Sequence[Any],
    forward: ForwardPass,
    output_to_tensors: Callable[[Any], list[tf.Tensor]] = lambda _: [],
    stacked_tensors_to_outputs: Callable[[list[tf.Tensor]], list[Any]] = lambda _: [],
) -> tuple[tf.Tensor, list[Any]]:
    """Runs a step for each of the `inputs`, and records batch statistics in `forward`.

    Where `forward.scanned`, in a graph, the last steps become a loop: those that have layers of every stack, and whose
    inputs are tensors and numbers alone. Fewer than three stay unrolled, as all other steps do. ValueError if layers of
    steps before a loop record something (in an NVAE they don't: the top group has no batch norm).
    A loop can return tensors only: `output_to_tensors` turns the output of a step into tensors, the loop stacks them to
    `[steps, ...]`, and `stacked_tensors_to_outputs` turns the stacks into a list of outputs of any length; by default a
    loop has no outputs.
    Returns the last state, and the outputs of the unrolled steps, then of the loop.
    """
    num_unrolled = _num_unrolled_steps(shares.values(), inputs, forward)
    num_in_loop = len(inputs) - num_unrolled
    layers = {name: _unrolled_layers(share, num_unrolled, num_in_loop, forward) for name, share in shares.items()}
    outputs = []
    for number in range(num_unrolled):
        state, output = step({name: by_step[number] for name, by_step in layers.items()}, state, inputs[number])
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

    def step(layers: Layers, state: tf.Tensor, _: tuple) -> tuple[tf.Tensor, tf.Tensor | None]:
        [cell] = layers["cells"]
        state = cell(state)
        return state, state if keeps_states else None

    arguments = {"cells": StackShare(cells)}, step, state, [()] * cells.count, forward
    if not keeps_states:
        return run_steps(*arguments)
    return run_steps(*arguments, lambda state: [state], lambda states: tf.unstack(states[0]))


def _num_unrolled_steps(shares: Iterable[StackShare], inputs: Sequence[Any], forward: ForwardPass) -> int:
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


def _unrolled_layers(share: StackShare, num_unrolled: int, num_in_loop: int, forward: ForwardPass) -> list[list[Layer]]:
    """The share's layers of each unrolled step."""
    stack, per_step = share
    if stack is None:
        return [[]] * num_unrolled
    if num_in_loop:  # the stack's first layers; the loop has the others
        weights, num_layers = forward.weights_of(stack), stack.count - num_in_loop * per_step
        if num_layers and forward.training and stack.recorders(forward.initializing):
            raise ValueError(f"{stack.name}: what layers record in steps before a loop would be lost")
        slices = [tf.nest.map_structure(operator.itemgetter(number), weights) for number in range(num_layers)]
        layers, _ = stack.layers_with(slices, forward)
    else:  # all layers, whose records `forward` gathers
        layers = stack.layers(forward)
    by_step = [layers[first : first + per_step] for first in range(0, len(layers), per_step)]
    return [[]] * (num_unrolled - len(by_step)) + by_step


def _run_loop(shares, step, state, inputs, forward, output_to_tensors) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The state after a step for each of the `inputs`, and the output tensors, with an axis for the steps in front."""
    used = {name: share for name, share in shares.items() if share.stack is not None}
    stacked_weights = {name: _weights_of_last_steps(share, len(inputs), forward) for name, share in used.items()}
    stacked_inputs = stacked_weights, tf.nest.map_structure(lambda *each: tf.stack(each), *inputs)

    def body(state: tf.Tensor, slices: tuple[dict[str, Weights], Any]) -> tuple[tf.Tensor, list, dict]:
        step_weights, step_input = slices
        layers, recorded = dict.fromkeys(shares, []), {}
        for name, (stack, per_step) in used.items():
            weights = [step_weights[name]] if per_step == 1 else unstacked(step_weights[name], per_step)
            # Calling the layers fills the lists in `recorded`.
            layers[name], recorded[name] = stack.layers_with(weights, forward)
        state, output = step(layers, state, step_input)
        return state, output_to_tensors(output), recorded

    if not forward.training:  # inference records nothing
        return scan_for_inference(body, state, stacked_inputs)
    state, outputs, recorded = scan_with_gradient(body, state, stacked_inputs)
    forward.recorded += [(share.stack, recorded[name]) for name, share in used.items()]
    return state, outputs


def _weights_of_last_steps(share: StackShare, num_steps: int, forward: ForwardPass) -> Weights:
    """The share's weights of the last steps, `[steps, ...]`; `[steps, layers, ...]` where a step has several layers."""
    stack, per_step = share

    def by_step(weight: tf.Tensor) -> tf.Tensor:
        last = weight if stack.count == num_steps * per_step else weight[-num_steps * per_step :]
        return last if per_step == 1 else tf.reshape(last, [num_steps, per_step, *weight.shape[1:]])

    return tf.nest.map_structure(by_step, forward.weights_of(stack))
