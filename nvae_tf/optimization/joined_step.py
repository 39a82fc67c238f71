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

# Weights of at most this number of values are joined.
SMALL_WEIGHT = 2**19
# Open while XLA compiles the step of `training/strategy.py`.
_POSTPONED = contextvars.ContextVar("postponed", default=None)


@contextlib.contextmanager
def postponed_assignments() -> Iterator[list[tuple[Callable[[list], None], list]]]:
    """Gives a list; in the block `apply_joined_if` adds `(assign, tensors)` to it instead of assigning small weights.

    The program that XLA compiles returns the tensors; inside, cutting them takes a kernel for each weight.
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
    rate = optimizer.learning_rate / (1.0 - optimizer.beta_1_power())

    def values_after(gradient: tf.Tensor, *before: tf.Tensor) -> list[tf.Tensor]:
        after = adamax_step(optimizer, gradient, *before, rate)
        return [tf.where(condition, *pair) for pair in zip(after, before, strict=True)]

    small = []
    for gradient, weight in zip(gradients, weights, strict=True):
        row = gradient, weight, *optimizer.slots_of(weight)
        if weight.shape.num_elements() <= SMALL_WEIGHT:
            small.append(row)
            continue
        for variable, value in zip(row[1:], values_after(*map(tf.convert_to_tensor, row)), strict=True):
            variable.assign(value)

    if small:
        _apply_to_small(values_after, small)
    optimizer.iterations.assign_add(tf.where(condition, 1, 0))


def _apply_to_small(values_after: Callable[..., list[tf.Tensor]], small: Sequence[tuple]) -> None:
    """A step of the small weights: rows of gradient, weight, momentum and norm."""
    # `kinds` are three lists: the small weights, their momentums, and their norms.
    gradients, *kinds = zip(*small, strict=True)
    packing = Packing(kinds[0], SMALL_WEIGHT)
    packed = [packing.pack(list(map(tf.convert_to_tensor, same))) for same in (gradients, *kinds)]
    # Of each joined tensor the new weights, momentums and norms.
    joined = [values_after(*tensors) for tensors in zip(*packed, strict=True)]

    def assign(joined: list[list[tf.Tensor]]) -> None:
        for kind, values in zip(kinds, zip(*joined, strict=True), strict=True):
            for variable, value in zip(kind, packing.unpack(values), strict=True):
                variable.assign(value)

    if (postponed := _POSTPONED.get()) is None:
        assign(joined)
    else:
        postponed.append((assign, joined))


def adamax_step(
    optimizer: NVAEAdamax, gradient, weight, momentum, norm, rate
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Weight, m and u - epsilon after a step: what `NVAEAdamax.update_step` does, in operations that XLA makes one."""
    gradient += optimizer.l2 * weight
    momentum += (1.0 - optimizer.beta_1) * (gradient - momentum)
    norm = tf.maximum(optimizer.beta_2 * norm - optimizer.epsilon * (1.0 - optimizer.beta_2), tf.abs(gradient))
    return weight - rate * (momentum / (norm + optimizer.epsilon)), momentum, norm
