"""The exponential moving averages (EMA) of the weights, which any Keras optimizer can keep (`use_ema=True`)."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer inside Keras' `LossScaleOptimizer`, else the given one itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def average_of_weights(model: keras.Model) -> dict[int, keras.Variable]:
    """The exponential moving average of every trained weight by its `id`; empty if the optimizer keeps none."""
    return {id(weight): average for weight, average in _weights_and_averages(model)}


def start_averages(model: keras.Model) -> None:
    """Sets the averages to the weights before the first step. Keras does so at that step, but it may be skipped."""
    for weight, average in _weights_and_averages(model):
        if int(model.optimizer.iterations.numpy()) == 0:
            average.assign(weight)


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Inside the `with` block the model has the averages in place of its weights, if there are any."""
    start_averages(model)
    pairs = _weights_and_averages(model)
    kept = [weight.numpy() for weight, _ in pairs]
    try:
        for weight, average in pairs:
            weight.assign(average)
        yield
    finally:
        for (weight, _), value in zip(pairs, kept, strict=True):
            weight.assign(value)


def _weights_and_averages(model: keras.Model) -> list[tuple[keras.Variable, keras.Variable]]:
    # A model that was never compiled has no such attribute.
    optimizer = inner_optimizer(getattr(model, "optimizer", None))
    if not getattr(optimizer, "use_ema", False) or not optimizer.built:
        return []
    return list(zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True))
