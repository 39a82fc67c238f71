"""The optimizer without the loss scaling that Keras puts around it for mixed_float16."""

from typing import Any


def inner_optimizer(optimizer: Any) -> Any:
    """The optimizer that updates the weights: the one inside Keras' `LossScaleOptimizer`, else the given one itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)
