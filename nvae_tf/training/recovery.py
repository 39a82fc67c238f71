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
    """Recovery from divergence: after `train.refused_steps` skipped steps in a row a run is rolled back to its latest
    checkpoint, and its learning rate halved. After `train.rollbacks` of these it stops; the error says what grew first.
    """

    def __init__(self, run: Run):
        self._model, self._guard, self._rate = run.model, run.model.step_guard, run.schedule
        self._settings = run.config.train
        self.variables = [*self._guard.variables, *self._rate.variables]  # must be in checkpoints

    @property
    def skipped(self) -> float:
        """The number of steps skipped in a row, up to the latest step."""
        return float(self._guard.skipped_in_a_row.numpy())

    def next_rollback(self, latest: int) -> tuple[int, str]:
        """The number of the roll-back that is due and its reason; read before the state is restored, which resets both.

        ValueError: the run was rolled back as often as it may. `latest` is the step of the latest checkpoint.
        """
        limit, number = float(self._guard.limit), int(self._rate.rollbacks.numpy()) + 1
        or_above = "" if math.isinf(limit) else f", or their loss is above the limit of {limit:,.4g}"
        reason = f"{self.skipped:.0f} steps in a row were skipped: their loss or gradients are not finite{or_above}"
        if number <= self._settings.rollbacks:
            return number, reason
        shapes = enumerate(self._model.plan.latent_shapes())
        groups = [f"group {index} ({height}x{width})" for index, (height, width, _) in shapes]
        sentence = divergence_sentence(self._model.recent.read(), groups, layer_names(self._model))
        raise ValueError(
            f"{reason}, after {number - 1} returns to a checkpoint with half the learning rate each time. {sentence}. "
            f"The latest checkpoint is that of step {latest:,}{'' if latest else ', where the run began'}. "
            "Try a lower optimizer.learning_rate, longer optimizer.warmup_epochs or a higher objective.regularization "
            "in a new run, or look for damaged images"
        )

    def lower_rate(self, number: int) -> None:
        """Lowers the learning rate for this roll-back, once the state is restored."""
        self._rate.rollbacks.assign(number)
        self._rate.factor.assign(0.5**number)
        self._guard.skipped_in_a_row.assign(0.0)
        self._model.recent.forget()


def layer_names(model: NVAE) -> list[str]:
    """The name of every convolution, in the order of the spectral norms."""
    names = {id(weight): name.rpartition("/")[0] for name, weight in named_weights(model).items()}
    return [f"{names[id(stack.kernel)]}[{index}]" for stack in model.convolutions for index in range(stack.count)]


def divergence_sentence(steps: RecentSteps, groups: Sequence[str], layers: Sequence[str]) -> str:
    """A sentence that names the group whose KL, and the layer whose spectral norm, grew first in the latest steps."""
    count = len(steps.accepted)
    if not count:
        return "No step is remembered"
    kl = _first_growth(steps.kl_per_group, steps.accepted, groups, "KL", " nats")
    norm = _first_growth(steps.spectral_norms, steps.accepted, layers, "spectral norm", "")
    return f"In the last {count} steps: {kl}; {norm}"


def _first_growth(values: np.ndarray, accepted: np.ndarray, names: Sequence[str], what: str, unit: str) -> str:
    """The clause about `values` `[steps, names]`: which grew first, from what to what, and when."""
    taken = np.flatnonzero(accepted)
    usual = np.median(values[taken[: max(len(taken) // 2, 1)]], axis=0) if len(taken) else values[0]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratios = np.where(np.isfinite(values), np.abs(values) / np.maximum(np.abs(usual), 1e-6), np.inf)
    ratios = np.nan_to_num(ratios, nan=0.0, posinf=np.inf)
    grown = (ratios > _GROWN).any(axis=1)
    step = int(np.argmax(grown if grown.any() else ratios.max(axis=1)))
    place, before_last = int(np.argmax(ratios[step])), len(values) - 1 - step
    when = "at the last step" if before_last == 0 else f"{before_last} steps before the last"
    if not np.isfinite(usual[place]):
        return f"the {what} of {names[place]} was {values[step, place]:,.4g} {when}"
    change = f"{usual[place]:,.4g} to {values[step, place]:,.4g}{unit} {when}"
    if not grown.any():
        return f"no {what} has tripled, that of {names[place]} grew most, from {change}"
    return f"the {what} of {names[place]} grew first, from {change}"
