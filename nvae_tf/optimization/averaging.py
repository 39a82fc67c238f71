"""Running means of the weights, which Keras' optimizers keep: what a model is evaluated with."""

import contextlib
from collections.abc import Iterator

import keras


def average_of_weights(model: keras.Model) -> dict[int, keras.Variable]:
    """The running mean of every trainable weight by its `id`; empty where the optimizer keeps none."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not getattr(optimizer, "use_ema", False):
        return {}
    averages = optimizer._model_variables_moving_average
    return {id(weight): average for weight, average in zip(model.trainable_variables, averages, strict=True)}


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Inside its `with` block the model has the running means in place of its weights, if there are any."""
    if not average_of_weights(model):
        yield
        return
    kept = [weight.numpy() for weight in model.trainable_variables]
    model.optimizer.finalize_variable_values(model.trainable_variables)
    try:
        yield
    finally:
        for weight, value in zip(model.trainable_variables, kept, strict=True):
            weight.assign(value)
