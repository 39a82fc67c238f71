"""Recovery from divergence, and the sentence that says what grew first when nothing helps."""

import math
from collections.abc import Sequence

import numpy as np

from nvae_tf.models import NVAE
from nvae_tf.models.metrics import RecentSteps
from nvae_tf.runs.checkpoints import named_weights
from nvae_tf.training.run import Run

# A value has grown when it is this many times its usual value, the median over the earlier half of accepted steps.
_GROWN = 3.0


class Recovery:
    """After `train.refused_steps` skipped steps in a row a run goes back to its latest checkpoint, with half the rate.

    After `train.rollbacks` of these it stops.
    """

    def __init__(self, run: Run):
        self._model, self._guard, self._rate = run.model, run.model.step_guard, run.schedule
        self._settings = run.config.train
        self.variables = [*self._guard.variables, *self._rate.variables]  # must be in checkpoints

    @property
    def skipped(self) -> float:
        """The number of steps skipped in a row, up to the latest step."""
        return float(self._guard.skipped_in_a_row.numpy())

    def next_rollback(self) -> tuple[int, str]:
        """The number of the rollback that is due, and the reason; ValueError where that is one too many."""
        limit, number = float(self._guard.limit), int(self._rate.rollbacks.numpy()) + 1
        or_above = "" if math.isinf(limit) else f", or their loss is above the limit of {limit:,.4g}"
        reason = f"{self.skipped:.0f} steps in a row were skipped: their loss or gradients are not finite{or_above}"
        if number <= self._settings.rollbacks:
            return number, reason
        shapes = enumerate(self._model.plan.latent_shapes())
        groups = [f"group {index} ({height}x{width})" for index, (height, width, _) in shapes]
        grown = growth_clause(self._model.recent.read(), groups, layer_names(self._model))
        raise ValueError(
            f"{reason}, after {number - 1} returns to a checkpoint with half the learning rate each time; {grown}; try "
            "a lower optimizer.learning_rate, longer optimizer.warmup_epochs or a higher objective.regularization in a "
            "new run, or look for damaged images"
        )

    def lower_rate(self, number: int) -> None:
        """Lowers the learning rate for this rollback, once the state is restored."""
        self._rate.rollbacks.assign(number)
        self._rate.factor.assign(0.5**number)
        self._guard.skipped_in_a_row.assign(0.0)
        self._model.recent.forget()


def layer_names(model: NVAE) -> list[str]:
    """The name of every convolution, in the order of the spectral norms."""
    names = {id(weight): name.rpartition("/")[0] for name, weight in named_weights(model).items()}
    return [f"{names[id(stack.kernel)]}[{index}]" for stack in model.convolutions for index in range(stack.count)]


def growth_clause(steps: RecentSteps, groups: Sequence[str], layers: Sequence[str]) -> str:
    """The group whose KL, and the layer whose spectral norm, first exceeded three times their usual values."""
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
