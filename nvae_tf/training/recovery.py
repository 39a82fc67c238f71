"""What becomes of a run whose steps are refused one after another: back to its checkpoint, on with smaller steps."""

import math
from typing import NamedTuple

import tensorflow as tf

from nvae_tf.training.growth import what_grew_first
from nvae_tf.training.run import Run

# Looked at at fixed steps, so that an interruption does not show, and not at each: that would hold up an accelerator.
_CHECK_EVERY_STEPS = 10
_RATE_FACTOR = 0.5


class Trouble(NamedTuple):
    """Why a run goes back to its checkpoint, for people, and how often it has then gone back."""

    reason: str
    rollbacks: int

    @property
    def rate_factor(self) -> float:
        """What the learning rate is multiplied by from there on."""
        return _RATE_FACTOR**self.rollbacks


class Recovery:
    """Decides when to go back, and how to go on.

    The rule: after `train.refused_steps` refused steps in a row the run goes back to its latest checkpoint, of step 0
    if there is no later one, and the learning rate is half of what it would be from there on; after `train.rollbacks`
    of these it stops.
    """

    def __init__(self, run: Run):
        """Takes the run whose model's guard counts refused steps and whose schedule's rate can be lowered."""
        self._model, self._guard, self._rate = run.model, run.model.step_guard, run.schedule
        self._settings = run.config.train

    @property
    def variables(self) -> list[tf.Variable]:
        """What a checkpoint must hold for this."""
        return [*self._guard.variables, *self._rate.variables]

    @property
    def is_sound(self) -> bool:
        """Whether the latest step was taken: only then is a checkpoint worth going back to."""
        return float(self._guard.skipped_in_a_row.numpy()) == 0.0

    def must_go_back(self, step: int) -> bool:
        """Whether too many steps in a row were refused; looked at every tenth step."""
        if step % _CHECK_EVERY_STEPS:
            return False
        return float(self._guard.skipped_in_a_row.numpy()) >= self._settings.refused_steps

    def trouble(self, latest: int) -> Trouble:
        """Why the run goes back; to be asked before it does, because these variables are in checkpoints too.

        Args:
          latest: the step of the run's latest checkpoint.

        Raises:
          ValueError: it has gone back as often as it may.
        """
        refused, limit = int(self._guard.skipped_in_a_row.numpy()), float(self._guard.limit)
        rollbacks = int(self._rate.rollbacks.numpy()) + 1
        or_above = "" if math.isinf(limit) else f", or their loss is above the limit of {limit:,.4g}"
        reason = f"{refused} steps in a row were refused: their loss or gradients are not finite{or_above}"
        if rollbacks > self._settings.rollbacks:
            left = f"The latest checkpoint is that of step {latest:,}"
            raise ValueError(
                f"{reason}, after {rollbacks - 1} returns to a checkpoint with half the learning rate each time. "
                f"{what_grew_first(self._model)}. {left}{'' if latest else ', where the run began'}. Try a lower "
                "optimizer.learning_rate, longer optimizer.warmup_epochs or a higher objective.regularisation in a new "
                "run, or look for damaged images"
            )
        return Trouble(reason, rollbacks)

    def lower_rate(self, trouble: Trouble) -> None:
        """Lowers the learning rate, once the run is in the state of its latest checkpoint."""
        self._rate.rollbacks.assign(trouble.rollbacks)
        self._rate.factor.assign(trouble.rate_factor)
        self._guard.skipped_in_a_row.assign(0.0)
        self._model.recent.forget()
