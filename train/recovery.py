"""What becomes of a run whose steps are refused one after another: back to its checkpoint, on with smaller steps."""

import tensorflow as tf

from train.growth import what_grew_first
from train.preparation import Run

# Looked at at fixed steps, so that an interruption does not show, and not at each: that would hold up an accelerator.
_CHECK_EVERY_STEPS = 10
_RATE_FACTOR = 0.5


class Recovery:
    """Decides when to go back, and how to go on.

    The rule: after `train.refused_steps` refused steps in a row the run goes back to its latest checkpoint, and the
    learning rate is half of what it would be from there on; after `train.rollbacks` of these it stops.
    """

    def __init__(self, run: Run):
        """Takes the run whose model's guard counts refused steps and whose schedule's rate can be lowered."""
        self._model, self._guard, self._rate = run.model, run.model.step_guard, run.schedule
        self._settings = run.config.train
        self._rollbacks = tf.Variable(0.0, trainable=False, name="rollbacks")

    @property
    def variables(self) -> list[tf.Variable]:
        """What a checkpoint must hold for this."""
        return [*self._guard.variables, self._rate.factor, self._rollbacks]

    @property
    def is_sound(self) -> bool:
        """Whether the latest step was taken: only then is a checkpoint worth going back to."""
        return float(self._guard.refused_in_a_row.numpy()) == 0.0

    def must_go_back(self, step: int) -> bool:
        """Whether too many steps in a row were refused; looked at every tenth step."""
        if step % _CHECK_EVERY_STEPS:
            return False
        return float(self._guard.refused_in_a_row.numpy()) >= self._settings.refused_steps

    def lower_rate(self, go_back) -> str:
        """Goes back and lowers the learning rate.

        Args:
          go_back: puts the run into the state of its latest checkpoint, these variables too, and returns its step.

        Returns:
          What was done, for people.

        Raises:
          ValueError: the run has gone back as often as it may.
        """
        refused, limit = int(self._guard.refused_in_a_row.numpy()), float(self._guard.limit)
        rollbacks = int(self._rollbacks.numpy()) + 1
        reason = f"{refused} steps in a row were refused: their loss is not finite or above the limit of {limit:,.4g}"
        if rollbacks > self._settings.rollbacks:
            raise ValueError(
                f"{reason}, after {rollbacks - 1} returns to a checkpoint with half the learning rate each time. "
                f"{what_grew_first(self._model)}. The latest checkpoint is sound. Try a lower optimizer.learning_rate, "
                "longer optimizer.warmup_epochs or a higher objective.regularisation in a new run, or look for damaged "
                "images"
            )
        step = go_back()
        self._rollbacks.assign(rollbacks)
        self._rate.factor.assign(_RATE_FACTOR**rollbacks)
        self._guard.refused_in_a_row.assign(0.0)
        self._model.recent.forget()
        return f"{reason}. Back to step {step:,}, with {_RATE_FACTOR**rollbacks:g} of the learning rate."
