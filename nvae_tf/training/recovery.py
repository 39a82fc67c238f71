"""Recovery from divergence: a run whose steps are skipped one after another is rolled back, with smaller steps.

After `train.refused_steps` skipped steps in a row a run is rolled back to its latest checkpoint, that of step 0 if
there is no later one, and the learning rate is half of what it would be from there on. After `train.rollbacks` of these
it stops, and the error says what grew first.
"""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from nvae_tf.models import NVAE
from nvae_tf.models.metrics import RecentSteps
from nvae_tf.published.names import named_weights
from nvae_tf.training.run import Run

# At fixed steps, so that an interruption does not show, and not at each: that would hold up an accelerator.
_CHECK_EVERY_STEPS = 10
_RATE_FACTOR = 0.5
# A value has grown where it is so many times its usual one, the median over the earlier half of accepted steps.
_GROWN = 3.0


class Recovery:
    """Decides when a run is rolled back, and with which learning rate it continues."""

    def __init__(self, run: Run):
        self._model, self._guard, self._rate = run.model, run.model.step_guard, run.schedule
        self._settings = run.config.train

    @property
    def variables(self) -> list[tf.Variable]:
        """What a checkpoint must hold for this."""
        return [*self._guard.variables, *self._rate.variables]

    @property
    def is_sound(self) -> bool:
        """Whether the latest step was taken: only then is a checkpoint worth a roll-back to it."""
        return float(self._guard.skipped_in_a_row.numpy()) == 0.0

    def must_roll_back(self, step: int) -> bool:
        """Whether too many steps in a row were skipped; checked every tenth step."""
        if step % _CHECK_EVERY_STEPS:
            return False
        return float(self._guard.skipped_in_a_row.numpy()) >= self._settings.refused_steps

    def next_rollback(self, latest: int) -> tuple[int, str]:
        """The number of the roll-back that is due and its reason; read before the state is restored, which resets both.

        ValueError, with the step of the `latest` checkpoint: the run was rolled back as often as it may.
        """
        skipped, limit = int(self._guard.skipped_in_a_row.numpy()), float(self._guard.limit)
        number = int(self._rate.rollbacks.numpy()) + 1
        or_above = "" if math.isinf(limit) else f", or their loss is above the limit of {limit:,.4g}"
        reason = f"{skipped} steps in a row were skipped: their loss or gradients are not finite{or_above}"
        if number > self._settings.rollbacks:
            shapes = enumerate(self._model.plan.latent_shapes())
            groups = [f"group {index} ({height}x{width})" for index, (height, width, _) in shapes]
            growth = growth_sentence(self._model.recent.read(), groups, layer_names(self._model))
            raise ValueError(
                f"{reason}, after {number - 1} returns to a checkpoint with half the learning rate each time. "
                f"{growth}. The latest checkpoint is that of step {latest:,}"
                f"{'' if latest else ', where the run began'}. Try a lower optimizer.learning_rate, longer "
                "optimizer.warmup_epochs or a higher objective.regularisation in a new run, or look for damaged images"
            )
        return number, reason

    def lower_rate(self, number: int) -> float:
        """Lowers the learning rate for the roll-back of a number, once the state is restored; returns the factor."""
        factor = _RATE_FACTOR**number
        self._rate.rollbacks.assign(number)
        self._rate.factor.assign(factor)
        self._guard.skipped_in_a_row.assign(0.0)
        self._model.recent.forget()
        return factor


def layer_names(model: NVAE) -> list[str]:
    """The name of every convolution, in the order of the spectral norms."""
    names = {id(weight): name.rpartition("/")[0] for name, weight in named_weights(model).items()}
    return [f"{names[id(stack.kernel)]}[{index}]" for stack in model.convolutions for index in range(stack.count)]


def growth_sentence(steps: RecentSteps, groups: Sequence[str], layers: Sequence[str]) -> str:
    """Of the latest steps: the KL of which group and the spectral norm of which layer grew first, by their names."""
    if not len(steps.accepted):
        return "No step is remembered"
    kl = _first_growth(steps.kl_per_group, steps.accepted, groups, "KL", " nats")
    norm = _first_growth(steps.spectral_norms, steps.accepted, layers, "spectral norm", "")
    return f"In the last {len(steps.accepted)} steps: {kl}; {norm}"


def _first_growth(values: np.ndarray, accepted: np.ndarray, names: Sequence[str], what: str, unit: str) -> str:
    taken = np.flatnonzero(accepted)
    usual = np.median(values[taken[: max(len(taken) // 2, 1)]], axis=0) if len(taken) else values[0]
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratios = np.where(np.isfinite(values), np.abs(values) / np.maximum(np.abs(usual), 1e-6), np.inf)
    ratios = np.nan_to_num(ratios, nan=0.0, posinf=np.inf)
    grown = (ratios > _GROWN).any(axis=1)
    step = int(np.argmax(grown)) if grown.any() else int(np.argmax(ratios.max(axis=1)))
    place = int(np.argmax(ratios[step]))
    before_last = len(values) - 1 - step
    when = "at the last step" if before_last == 0 else f"{before_last} steps before the last"
    if not np.isfinite(usual[place]):
        return f"the {what} of {names[place]} was {values[step, place]:,.4g} {when}"
    change = f"{usual[place]:,.4g} to {values[step, place]:,.4g}{unit} {when}"
    if not grown.any():
        return f"no {what} has tripled, that of {names[place]} grew most, from {change}"
    return f"the {what} of {names[place]} grew first, from {change}"
