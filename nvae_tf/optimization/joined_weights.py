"""A step of `NVAEAdamax` for XLA on one GPU, with the small weights joined into few tensors."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from nvae_tf.layers import Packing
from nvae_tf.optimization.adamax import NVAEAdamax

MOST_JOINED_VALUES = 2**19  # weights up to this many values are joined
# The list of `postponed_assignments`; None outside of its block.
_POSTPONED = contextvars.ContextVar("postponed", default=None)


@contextlib.contextmanager
def postponed_assignments() -> Iterator[list[tuple[Callable[[list], None], list]]]:
    """Yields a list. A training step in this block assigns no small weights, but adds `(assign, tensors)` to the list.

    `training/strategy.py` has XLA's program return these tensors, the new values of joined weights, and then calls
    `assign(tensors)` outside of the program: inside, XLA would take a kernel for each weight to cut the joined tensors.
    """
    token = _POSTPONED.set([])
    try:
        yield _POSTPONED.get()
    finally:
        _POSTPONED.reset(token)


def apply_joined_if(
    optimizer: NVAEAdamax, condition: tf.Tensor, gradients: Sequence[tf.Tensor], weights: Sequence[keras.Variable]
) -> None:
    """`optimizer.apply(gradients, weights)` if a condition holds, where `optimizer.is_plain`; made for XLA on one GPU.

    XLA compiles kernels for each tensor that a program updates, and a model has hundreds of weights. Here the small
    ones are joined into few tensors, which take the step, and are cut again, outside of XLA's program. The condition
    chooses between values: a branch would have XLA's program copy every variable several times.
    """
    optimizer.build(list(weights))  # unless it is built
    corrected_rate = optimizer.learning_rate / (1.0 - optimizer.beta_1_power())

    def values_after(gradient, weight, momentum, norm) -> list[tf.Tensor]:
        """The rule of `NVAEAdamax`, where the slot `norm` is u - epsilon, in operations that XLA fuses into one."""
        gradient += optimizer.l2 * weight
        new_momentum = momentum + (1.0 - optimizer.beta_1) * (gradient - momentum)
        new_norm = tf.maximum(optimizer.beta_2 * norm - optimizer.epsilon * (1.0 - optimizer.beta_2), tf.abs(gradient))
        new_weight = weight - corrected_rate * (new_momentum / (new_norm + optimizer.epsilon))
        pairs = (new_weight, weight), (new_momentum, momentum), (new_norm, norm)
        return [tf.where(condition, *pair) for pair in pairs]

    small = []  # tuples (gradient, weight, momentum, norm)
    for gradient, weight in zip(gradients, weights, strict=True):
        variables = weight, *optimizer.slots_of(weight)
        if weight.shape.num_elements() <= MOST_JOINED_VALUES:
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
    packing = Packing(columns[0], MOST_JOINED_VALUES)
    packed_columns = [packing.pack(list(map(tf.convert_to_tensor, column))) for column in (gradients, *columns)]
    # For each packed tensor: the new weights, momentums and norms.
    joined = [values_after(*packed) for packed in zip(*packed_columns, strict=True)]

    def assign(joined: list[list[tf.Tensor]]) -> None:
        for column, values in zip(columns, zip(*joined, strict=True), strict=True):
            for variable, value in zip(column, packing.unpack(values), strict=True):
                variable.assign(value)

    if (postponed := _POSTPONED.get()) is None:
        assign(joined)
    else:
        postponed.append((assign, joined))
