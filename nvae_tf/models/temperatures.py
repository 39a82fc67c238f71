"""Temperatures of sampling: one for all groups, one a scale, or one a group."""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from nvae_tf.latent_plan import LatentPlan, of_groups

Temperature = float | tf.Tensor | Sequence[float] | np.ndarray


def temperatures_of_groups(temperature: Temperature, plan: LatentPlan) -> list[float | tf.Tensor]:
    """The temperature of every group, top group first.

    Args:
      temperature: one number for all groups; or a list with one for every scale, the smallest first, or for every
        group, the top one first. A tensor of one axis is such a list; any other counts as one number (one an image:
        `[batch, 1, 1, 1]`). The values of tensors are not looked at.
      plan: of the model.

    Raises:
      ValueError: there are as many as neither scales nor groups, or one is not greater than 0 and finite.
    """
    if isinstance(temperature, tf.Tensor) and temperature.shape.rank == 1:
        temperature = tf.unstack(temperature)
    if isinstance(temperature, tf.Tensor):
        return [temperature] * plan.num_groups
    several = isinstance(temperature, Sequence) or (isinstance(temperature, np.ndarray) and temperature.ndim == 1)
    values = [_checked(value) for value in (temperature if several else [temperature])]
    if not several:
        return values * plan.num_groups
    return of_groups(values, plan.latent_shapes(), "temperatures")


def _checked(value: float | tf.Tensor) -> float | tf.Tensor:
    if isinstance(value, tf.Tensor):
        return value
    value = float(value)
    if not 0.0 < value < math.inf:
        raise ValueError(f"temperature = {value:g}: must be greater than 0 and finite; 1 is the model as trained")
    return value
