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
from nvae_tf.layers.stacked import ForwardPass, RecordVector, StackedLayer, Updates, Weights, layers_of

# A loop of fewer steps would take more of a program than the steps themselves.
_FEWEST_STEPS = 3


class StackShare(NamedTuple):
    """The layers of a stack that each step uses; the first steps use none where the stack has too few layers for all.

    With `stack` None no step uses any.
    """

    stack: StackedLayer | None
    layers_per_step: int = 1

    def layers_by_step(self, layers: Sequence[Any], num_steps: int) -> list[Sequence[Any]]:
        """A list of layers for each step; all are empty without a stack."""
        if self.stack is None:
            return [[]] * num_steps
        size = self.layers_per_step
        by_step = [layers[first : first + size] for first in range(0, len(layers), size)]
        return [[]] * (num_steps - len(by_step)) + by_step


# `(layers, state, input) -> (state, output)`; `layers` are functions of a tensor, a list of them for each share.
Step = Callable[[list[list[Callable]], tf.Tensor, Any], tuple[tf.Tensor, Any]]


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

    return run_steps([StackShare(cells)], step, state, [()] * cells.count, forward)[0]


def run_steps(
    shares: Sequence[StackShare],
    step: Step,
    state: tf.Tensor,
    inputs: Sequence[Any],
    forward: ForwardPass,
    output_tensors: Callable[[Any], list[tf.Tensor]] = lambda _: [],
) -> tuple[tf.Tensor, list[Any], list[tf.Tensor]]:
    """Runs a step for each of the `inputs`, and records batch statistics in `forward`.

    Where `forward.scanned`, the last steps become a loop if they are three or more: those that have layers of every
    stack, and inputs of tensors alone. The steps before must record nothing (the top group has no batch norm).

    Returns:
      The last state; the outputs of the steps outside of the loop; and, because a loop returns tensors alone, the
      `output_tensors` of the outputs of its steps, each with an axis for the steps in front (empty without a loop).
    """
    num_before = _num_steps_before_loop(shares, inputs)
    if not _is_loop(forward, len(inputs) - num_before):
        return (*_unrolled(shares, step, state, inputs, forward), [])
    weights = [() if share.stack is None else forward.weights_of(share.stack) for share in shares]
    outputs = []
    for index, step_input in enumerate(inputs[:num_before]):
        pairs = zip(shares, weights, strict=True)
        layers = [_layers_before_loop(*pair, index, len(inputs), forward) for pair in pairs]
        state, output = step(layers, state, step_input)
        outputs.append(output)
    state, stacked = _loop_of_steps(shares, weights, step, state, inputs[num_before:], forward, output_tensors)
    return state, outputs, stacked


def _is_loop(forward: ForwardPass, num_steps: int) -> bool:
    return forward.scanned and not tf.executing_eagerly() and num_steps >= _FEWEST_STEPS


def _num_steps_before_loop(shares: Sequence[StackShare], inputs: Sequence[Any]) -> int:
    """The first steps may lack layers of a stack (the top group has no prior), or have inputs that can't be stacked."""
    lacking = [len(inputs) - share.stack.count // share.layers_per_step for share in shares if share.stack is not None]
    unstackable = [number for number, each in enumerate(inputs, 1) if not _has_only_tensors(each)]
    return max([0, *lacking, *unstackable])


def _has_only_tensors(step_input: Any) -> bool:
    return all(isinstance(leaf, tf.Tensor | float) for leaf in tf.nest.flatten(step_input))


def _unrolled(shares, step, state, inputs, forward) -> tuple[tf.Tensor, list[Any]]:
    """The last state and all outputs, with every step in the graph by itself."""
    outputs = []
    functions = [[] if share.stack is None else share.stack.layers(forward) for share in shares]
    by_step = [share.layers_by_step(each, len(inputs)) for share, each in zip(shares, functions, strict=True)]
    for *layers, step_input in zip(*by_step, inputs, strict=True):
        state, output = step(layers, state, step_input)
        outputs.append(output)
    return state, outputs


def _layers_before_loop(share: StackShare, weights: Weights, index: int, num_steps: int, forward) -> list[Callable]:
    """The layers of step `index` of `num_steps`, which comes before the loop."""
    if share.stack is None:
        return []
    numbers = share.layers_by_step(range(share.stack.count), num_steps)[index]
    slices = [tf.nest.map_structure(operator.itemgetter(number), weights) for number in numbers]
    # The vectors are thrown away: these steps record nothing, see `run_steps`.
    return share.stack.layer_functions(slices, forward, [[] for _ in numbers])


def _loop_of_steps(shares, weights, step, state, inputs, forward, output_tensors) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """The last state and the stacked output tensors."""
    step_weights = [_weights_by_step(*pair, len(inputs)) for pair in zip(shares, weights, strict=True)]
    # What all steps take, with an axis for the steps in front.
    stacked_inputs = step_weights, tf.nest.map_structure(lambda *each: tf.stack(each), *inputs)

    def body(state: tf.Tensor, slices: tuple[list[Weights], Any]) -> tuple[tf.Tensor, list, list]:
        layers, vectors_of_shares = [], []
        weights_of_shares, step_input = slices
        for share, share_weights in zip(shares, weights_of_shares, strict=True):
            functions, vectors = [], []
            if share.stack is not None:
                several = share.layers_per_step > 1
                layer_weights = layers_of(share_weights, share.layers_per_step) if several else [share_weights]
                vectors = [[] for _ in layer_weights]  # filled when `step` calls the functions
                functions = share.stack.layer_functions(layer_weights, forward, vectors)
            layers.append(functions)
            vectors_of_shares.append(vectors)
        state, output = step(layers, state, step_input)
        return state, output_tensors(output), vectors_of_shares

    scan = scan_with_gradient if forward.training else scan_for_inference
    state, outputs, vectors_of_shares = scan(body, state, stacked_inputs)
    if forward.training:  # inference records nothing
        for share, vectors in zip(shares, vectors_of_shares, strict=True):
            forward.known_updates += _updates_of_loop(share, vectors, forward)
    return state, outputs


def _updates_of_loop(share: StackShare, vectors: list[RecordVector], forward: ForwardPass) -> Updates:
    """The variables of a stack and their new values, from the vectors `[steps, width]` of each layer of a step."""
    if not vectors or not vectors[0]:
        return []
    stacked = tf.stack([vector for (vector,) in vectors], axis=1)  # [steps, layers of a step, width]
    return share.stack.updates_from(tf.reshape(stacked, (share.stack.count, -1)), forward.initializing)


def _weights_by_step(share: StackShare, weights: Weights, num_steps: int) -> Weights:
    """The weights of the last steps: `[steps, ...]`, or `[steps, layers, ...]` where a step has several layers."""
    num_layers = num_steps * share.layers_per_step

    def by_step(weight: tf.Tensor) -> tf.Tensor:
        last = weight if share.stack.count == num_layers else weight[-num_layers:]
        several = [num_steps, share.layers_per_step, *weight.shape[1:]]
        return last if share.layers_per_step == 1 else tf.reshape(last, several)

    return tf.nest.map_structure(by_step, weights)
