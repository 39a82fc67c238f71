"""Why a run has diverged, for messages; what is done then: `StepGuard`, and `_roll_back` in `training/loop.py`."""

import math
from collections.abc import Sequence

import numpy as np

from nvae_tf.models import NVAE
from nvae_tf.models.metrics import RecentSteps
from nvae_tf.runs.checkpoints import named_weights

# A value has grown when it is this many times its usual value, the median over the earlier half of accepted steps.
_GROWN = 3.0


def skipped_in_a_row(model: NVAE) -> float:
    """The number of steps skipped in a row, up to the latest step."""
    return float(model.step_guard.skipped_in_a_row.numpy())


def reason_of_skips(model: NVAE) -> str:
    """Why the latest steps were skipped."""
    limit = float(model.step_guard.limit)
    or_above = "" if math.isinf(limit) else f", or their loss is above the limit of {limit:,.4g}"
    number = skipped_in_a_row(model)
    return f"{number:.0f} steps in a row were skipped: their loss or gradients are not finite{or_above}"


def growth_in(model: NVAE) -> str:
    """The group whose KL, and the layer whose spectral norm, first exceeded three times their usual values."""
    shapes = enumerate(model.plan.latent_shapes())
    groups = [f"group {index} ({height}x{width})" for index, (height, width, _) in shapes]
    return growth_clause(model.recent.read(), groups, layer_names(model))


def layer_names(model: NVAE) -> list[str]:
    """The name of every convolution, in the order of the spectral norms."""
    names = {id(weight): name.rpartition("/")[0] for name, weight in named_weights(model).items()}
    return [f"{names[id(stack.kernel)]}[{index}]" for stack in model.convolutions for index in range(stack.count)]


def growth_clause(steps: RecentSteps, groups: Sequence[str], layers: Sequence[str]) -> str:
    """What of the latest steps has grown first, by the names of groups and layers."""
    measured = ("KL", steps.kl_per_group, groups), ("spectral norm", steps.spectral_norms, layers)
    taken = np.flatnonzero(steps.accepted)
    clauses = []
    for what, values, names in measured if len(taken) else ():
        usual = np.median(np.abs(values[taken[: max(len(taken) // 2, 1)]]), axis=0)
        # What is not finite has grown too.
        grown = ~(np.abs(values) <= _GROWN * np.maximum(usual, 1e-6))
        if grown.any():
            step, place = np.argwhere(grown)[0]
            change = f"from {usual[place]:,.4g} to {values[step, place]:,.4g}"
            clauses.append(f"the {what} of {names[place]} {change}, {len(values) - 1 - step} steps before the last")
    return f"what grew first: {' and '.join(clauses) or 'no KL or spectral norm of the latest steps'}"
