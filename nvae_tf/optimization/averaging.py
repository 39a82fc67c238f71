"""Running means of the weights, which Keras' optimizers keep: what a model is evaluated with."""

import contextlib
from collections.abc import Iterator

import keras

from nvae_tf.optimization.loss_scaling import inner_optimizer


def average_of_weights(model: keras.Model) -> dict[int, keras.Variable]:
    """The running mean of every trained weight by its `id`; empty where the optimizer keeps none."""
    return {id(weight): average for weight, average in _pairs(model)}


def start_averages(model: keras.Model) -> None:
    """Lets the running means be the weights themselves before the first step, and not the zeros that Keras begins with.

    The first step that is taken sets them to the weights, but the first ones may be refused, or overflow.
    """
    pairs = _pairs(model)
    if pairs and int(model.optimizer.iterations.numpy()) == 0:
        for weight, average in pairs:
            average.assign(weight)


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Inside its `with` block the model has the running means in place of its weights, if there are any."""
    start_averages(model)
    pairs = _pairs(model)
    kept = [weight.numpy() for weight, _ in pairs]
    try:
        for weight, average in pairs:
            weight.assign(average)
        yield
    finally:
        for (weight, _), value in zip(pairs, kept, strict=True):
            weight.assign(value)


def _pairs(model: keras.Model) -> list[tuple[keras.Variable, keras.Variable]]:
    """Every weight that the optimizer trains, with its running mean."""
    # A model that was never compiled has no such attribute.
    optimizer = inner_optimizer(getattr(model, "optimizer", None))
    if not getattr(optimizer, "use_ema", False) or not optimizer.built:
        return []
    return list(zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True))
