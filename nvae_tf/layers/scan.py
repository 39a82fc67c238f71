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
from nvae_tf.layers.stacked import ForwardPass, Recorded, StackedLayer, Weights, layers_of

_FEWEST_STEPS = 3  # a loop of fewer steps would take more of a program than the steps themselves


class StackShare(NamedTuple):
    """The layers of a stack that each step uses; the first steps use none where the stack has too few layers for all.

    With `stack` None no step uses any.
    """

    stack: StackedLayer | None
    layers_per_step: int = 1

    def layers_of_first_steps(self, num_first: int, num_in_loop: int, forward: ForwardPass) -> list[list[Callable]]:
        """The layers of each of the first steps: those before a loop, or all if there is none in the loop."""
        if self.stack is None:
            return [[]] * num_first
        size = self.layers_per_step
        if num_in_loop:
            weights, num_layers = forward.weights_of(self.stack), self.stack.count - num_in_loop * size
            slices = [tf.nest.map_structure(operator.itemgetter(number), weights) for number in range(num_layers)]
            layers, _ = self.stack.layer_functions(slices, forward)  # they record nothing, see `run_steps`
        else:
            layers = self.stack.layers(forward)  # all of the stack, and what they record
        by_step = [layers[first : first + size] for first in range(0, len(layers), size)]
        return [[]] * (num_first - len(by_step)) + by_step

    def weights_of_last_steps(self, num_last: int, forward: ForwardPass) -> Weights:
        """The weights of the last steps, `[steps, ...]`, or `[steps, layers, ...]` where a step has several layers."""
        if self.stack is None:
            return ()
        num_layers = num_last * self.layers_per_step

        def by_step(weight: tf.Tensor) -> tf.Tensor:
            last = weight if self.stack.count == num_layers else weight[-num_layers:]
            several = [num_last, self.layers_per_step, *weight.shape[1:]]
            return last if self.layers_per_step == 1 else tf.reshape(last, several)

        return tf.nest.map_structure(by_step, forward.weights_of(self.stack))

    def layers_of_one_step(self, weights: Weights, forward: ForwardPass) -> tuple[list[Callable], list[Recorded]]:
        """The layers of a step with these weights, and a list that gets what they record."""
        if self.stack is None:
            return [], []
        layer_weights = layers_of(weights, self.layers_per_step) if self.layers_per_step > 1 else [weights]
        return self.stack.layer_functions(layer_weights, forward)


# `(layers, state, input) -> (state, output)`; `layers` are functions of a tensor, a list of them for each share.
Step = Callable[[list[list[Callable]], tf.Tensor, Any], tuple[tf.Tensor, Any]]


def run_steps(
    shares: Sequence[StackShare],
    step: Step,
    state: tf.Tensor,
    inputs: Sequence[Any],
    forward: ForwardPass,
    output_tensors: Callable[[Any], list[tf.Tensor]] = lambda _: [],  # in the loop: a step's output -> tensors
    outputs_of_loop: Callable[[list[tf.Tensor]], list[Any]] = lambda _: [],  # after: `[steps, ...]` -> outputs
) -> tuple[tf.Tensor, list[Any]]:
    """Runs a step for each of the `inputs`, and records batch statistics in `forward`.

    Where `forward.scanned`, the last steps become a loop if they are three or more: those that have layers of every
    stack, and inputs of tensors alone. The steps before must record nothing (the top group has no batch norm). A loop
    returns tensors alone, with an axis for the steps in front. Returns the last state and all outputs.
    """
    num_before_loop = _num_steps_before_loop(shares, inputs)
    has_loop = forward.scanned and not tf.executing_eagerly() and len(inputs) - num_before_loop >= _FEWEST_STEPS
    num_first = num_before_loop if has_loop else len(inputs)
    layers_of_shares = [share.layers_of_first_steps(num_first, len(inputs) - num_first, forward) for share in shares]
    outputs = []
    for *layers, step_input in zip(*layers_of_shares, inputs[:num_first], strict=True):
        state, output = step(layers, state, step_input)
        outputs.append(output)
    if has_loop:
        state, tensors = _run_loop(shares, step, state, inputs[num_first:], forward, output_tensors)
        outputs += outputs_of_loop(tensors)
    return state, outputs


def _num_steps_before_loop(shares: Sequence[StackShare], inputs: Sequence[Any]) -> int:
    """The number of first steps that lack layers of a stack (the top group has no prior) or can't be stacked."""
    lacking = [len(inputs) - share.stack.count // share.layers_per_step for share in shares if share.stack is not None]
    unstackable = [
        num_until_here
        for num_until_here, step_input in enumerate(inputs, 1)
        if not all(isinstance(leaf, tf.Tensor | float) for leaf in tf.nest.flatten(step_input))
    ]
    return max([0, *lacking, *unstackable])


def _run_loop(shares, step, state, inputs, forward, output_tensors) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The state after a step for each of the `inputs`, and the stacked output tensors."""
    weights = [share.weights_of_last_steps(len(inputs), forward) for share in shares]
    # What all steps take, with an axis for the steps in front.
    stacked_inputs = weights, tf.nest.map_structure(lambda *each: tf.stack(each), *inputs)

    def body(state: tf.Tensor, slices: tuple[list[Weights], Any]) -> tuple[tf.Tensor, list, list]:
        step_weights, step_input = slices
        pairs = [
            share.layers_of_one_step(its_weights, forward)
            for share, its_weights in zip(shares, step_weights, strict=True)
        ]
        state, output = step([layers for layers, _ in pairs], state, step_input)
        return state, output_tensors(output), [recorded for _, recorded in pairs]

    scan = scan_with_gradient if forward.training else scan_for_inference
    state, outputs, recorded = scan(body, state, stacked_inputs)
    if forward.training:  # inference records nothing
        forward.recorded += [(share.stack, each) for share, each in zip(shares, recorded, strict=True) if each]
    return state, outputs


def run_cells(cells: StackedLayer | None, state: tf.Tensor, forward: ForwardPass) -> tf.Tensor:
    """The state after all layers of a stack, one after the other; the state itself where there is no stack."""
    if cells is None:
        return state

    # Without outputs, so that eagerly each state is freed when the next is there.
    def step(layers: list[list[Callable]], state: tf.Tensor, _: tuple) -> tuple[tf.Tensor, None]:
        [[cell]] = layers
        return cell(state), None

    return run_steps([StackShare(cells)], step, state, [()] * cells.count, forward)[0]


def states_of_cells(cells: StackedLayer, state: tf.Tensor, forward: ForwardPass) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The state after all layers of a stack, and a list of the states after each."""
    shares, inputs = [StackShare(cells)], [()] * cells.count

    def step(layers: list[list[Callable]], state: tf.Tensor, _: tuple) -> tuple[tf.Tensor, tf.Tensor]:
        [[cell]] = layers
        state = cell(state)
        return state, state

    return run_steps(shares, step, state, inputs, forward, lambda state: [state], lambda states: tf.unstack(states[0]))
