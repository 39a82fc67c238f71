"""Runs equal steps of stacked layers, one after another in the graph or as one loop of it: a `jax.lax.scan`.

A step takes a state and gives the next state and an output; step i has the i-th layers of every stack and the i-th
input. As a loop (`ForwardPass.scanned`) the graph has one step, which takes slices of the stacked weights: the program
that XLA compiles, and the graph that is exported, stay as small for fifty groups as for two. The loops themselves, and
their gradient, are in scan_loops.py.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from nvae_tf.layers.scan_loops import scan_for_inference, scan_with_gradient
from nvae_tf.layers.stacked import ForwardPass, StackedLayer, Weights, layers_of

# A loop of fewer steps would take more of a program than the steps themselves.
_FEWEST_STEPS = 3


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
    # The number of steps before the loop: those that lack layers of a stack (as the top group lacks a prior), and those
    # up to the last input that is not of tensors alone (a source of latents that holds another source's settings).
    lacking = [len(inputs) - part.stack.count // part.layers_per_step for part in stacks]
    unstackable = [number for number, each in enumerate(inputs, 1) if not _has_only_tensors(each)]
    num_before = max([0, *lacking, *unstackable])
    if not _is_loop(forward, len(inputs) - num_before):
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
    if cells is None:
        return state
    if not _is_loop(forward, cells.count):
        for cell in cells.layers(forward):
            state = cell(state)
        return state

    def step(layers: list[list[Callable]], state: tf.Tensor, _: tuple) -> tuple[tf.Tensor, None]:
        ((cell,),) = layers
        return cell(state), None

    return run_steps([Part(cells)], step, state, [()] * cells.count, forward)[0]


def _is_loop(forward: ForwardPass, num_steps: int) -> bool:
    return forward.scanned and not tf.executing_eagerly() and num_steps >= _FEWEST_STEPS


def _has_only_tensors(step_input: Any) -> bool:
    return all(isinstance(leaf, tf.Tensor | float) for leaf in tf.nest.flatten(step_input))


def _unrolled(parts, step, state, inputs, forward) -> tuple[tf.Tensor, list[Any]]:
    """The last state and all outputs, with every step in the graph by itself."""
    outputs = []
    functions = [[] if part.stack is None else part.stack.layers(forward) for part in parts]
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
            weights_of_layers = [part_weights]
            if part.layers_per_step > 1:
                weights_of_layers = layers_of(part_weights, part.layers_per_step)
            vectors: list[list[tf.Tensor]] = [[] for _ in weights_of_layers]
            recorded.append(vectors)
            layers.append([] if part.stack is None else part.stack.layer_functions(weights_of_layers, forward, vectors))
        state, output = step(layers, state, slices[1])
        return state, output_tensors(output), recorded

    scan = scan_with_gradient if forward.training else scan_for_inference
    state, outputs, recorded = scan(body, state, stacked_inputs)
    for part, part_recorded in zip(parts, recorded, strict=False):  # inference records nothing
        if part_recorded and part_recorded[0]:
            vectors = tf.stack([vector for (vector,) in part_recorded], axis=1)  # [steps, layers of a step, width]
            by_layer = tf.reshape(vectors, (part.stack.count, -1))
            forward.made_updates += part.stack.updates_from(by_layer, forward.initializing)
    return state, outputs


def _weights_by_step(part: Part, weights: Weights, num_steps: int) -> Weights:
    """The weights of the last steps: `[steps, ...]`, or `[steps, layers, ...]` where a step has several layers."""
    num_layers = num_steps * part.layers_per_step

    def by_step(weight: tf.Tensor) -> tf.Tensor:
        last = weight if part.stack.count == num_layers else weight[-num_layers:]
        several = [num_steps, part.layers_per_step, *weight.shape[1:]]
        return last if part.layers_per_step == 1 else tf.reshape(last, several)

    return tf.nest.map_structure(by_step, weights)
