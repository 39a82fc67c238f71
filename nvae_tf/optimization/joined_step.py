"""A step of `NVAEAdamax` in a small program, for XLA on one GPU.

A model has hundreds of weights, and XLA compiles kernels for each tensor that a program updates. Here all small weights
are joined into few tensors, which take the step, and are cut again outside of the program.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from nvae_tf.layers import Packing
from nvae_tf.optimization.adamax import NVAEAdamax

SMALL_WEIGHT = 2**19  # weights of at most this number of values are joined
# Open while XLA compiles the step of `training/strategy.py`.
_POSTPONED = contextvars.ContextVar("postponed", default=None)


@contextlib.contextmanager
def postponed_assignments() -> Iterator[list[tuple[Callable[[list], None], list]]]:
    """Gives a list; a step in the block adds `(assign, tensors)` to it instead of assigning small weights.

    The program that XLA compiles returns the tensors, and `assign(tensors)` runs outside of it: inside, cutting them
    takes a kernel for each weight.
    """
    token = _POSTPONED.set([])
    try:
        yield _POSTPONED.get()
    finally:
        _POSTPONED.reset(token)


def apply_joined_if(
    optimizer: NVAEAdamax, condition: tf.Tensor, gradients: Sequence[tf.Tensor], weights: Sequence[keras.Variable]
) -> None:
    """`optimizer.apply(gradients, weights)` if a condition holds, where `optimizer.is_plain`.

    By a choice between values: a branch would have XLA's program copy every variable several times.
    """
    optimizer.build(list(weights))  # unless it is built
    corrected_rate = optimizer.learning_rate / (1.0 - optimizer.beta_1_power())

    def values_after(gradient, weight, momentum, norm) -> list[tf.Tensor]:
        """The rule of `NVAEAdamax`, where the slot `norm` is u - epsilon, in operations that XLA makes one."""
        gradient += optimizer.l2 * weight
        new_momentum = momentum + (1.0 - optimizer.beta_1) * (gradient - momentum)
        new_norm = tf.maximum(optimizer.beta_2 * norm - optimizer.epsilon * (1.0 - optimizer.beta_2), tf.abs(gradient))
        new_weight = weight - corrected_rate * (new_momentum / (new_norm + optimizer.epsilon))
        pairs = (new_weight, weight), (new_momentum, momentum), (new_norm, norm)
        return [tf.where(condition, *pair) for pair in pairs]

    small = []  # rows of a gradient, its weight, momentum and norm
    for gradient, weight in zip(gradients, weights, strict=True):
        variables = weight, *optimizer.slots_of(weight)
        if weight.shape.num_elements() <= SMALL_WEIGHT:
            small.append((gradient, *variables))
            continue
        values = values_after(gradient, *map(tf.convert_to_tensor, variables))
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    if small:
        small_gradients, *columns = zip(*small, strict=True)  # columns of weights, momentums and norms
        _apply_to_small(values_after, small_gradients, columns)
    optimizer.iterations.assign_add(tf.where(condition, 1, 0))


def _apply_to_small(values_after: Callable[..., list[tf.Tensor]], gradients: Sequence, columns: list[tuple]) -> None:
    """Assigns the values after a step to small weights and to their two slots, the `columns`; or postpones that."""
    packing = Packing(columns[0], SMALL_WEIGHT)
    packed = [packing.pack(list(map(tf.convert_to_tensor, column))) for column in (gradients, *columns)]
    # Of each joined tensor the new weights, momentums and norms.
    joined = [values_after(*tensors) for tensors in zip(*packed, strict=True)]

    def assign(joined: list[list[tf.Tensor]]) -> None:
        for column, values in zip(columns, zip(*joined, strict=True), strict=True):
            for variable, value in zip(column, packing.unpack(values), strict=True):
                variable.assign(value)

    if (postponed := _POSTPONED.get()) is None:
        assign(joined)
    else:
        postponed.append((assign, joined))
