"""Which training steps are taken: one that would carry NaN or a runaway loss into the weights is skipped.

`models/training_step.py` leaves such a step out; after `train.refused_steps` of them in a row `training/loop.py` goes
back to a checkpoint.
"""

import tensorflow as tf

_RATE = 0.02  # the weight of the newest loss in the running level and spread
_LARGEST_PULL = 3.0  # how far, in spreads, one loss can pull them
_SMALLEST_SPREAD = 0.01  # as a fraction of the level: on very even losses, noise is no explosion


class StepGuard:
    """Skips steps whose loss or gradients are not finite: they change no weight, slot, statistic or running mean."""

    def accepts(self, loss: tf.Tensor, gradient_norm: tf.Tensor) -> tf.Tensor:
        """Whether to take the step, a boolean scalar, by its loss and the norm of all gradients as one vector."""
        return tf.math.is_finite(loss) & tf.math.is_finite(gradient_norm)

    def observe(self, loss: tf.Tensor, accepted: tf.Tensor) -> None:
        """Called after each step with its loss and whether it was taken."""


class RunawayGuard(StepGuard):
    """Also skips steps whose loss is far above those before, and counts how many were skipped in a row.

    The limit is `level + tolerance * spread`: running means of the accepted losses and of their distance from the
    level. For the first `settling_steps` accepted steps, or with a tolerance of 0, there is none.
    """

    def __init__(self, tolerance: float = 10.0, settling_steps: int = 100):
        self.tolerance = tolerance
        self.settling_steps = settling_steps
        self.variables = [  # what a checkpoint must hold for a run to resume exactly
            tf.Variable(0.0, trainable=False, name=name, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
            for name in ("level", "spread", "accepted_steps", "skipped_in_a_row")
        ]
        self.level, self.spread, self.accepted_steps, self.skipped_in_a_row = self.variables

    @property
    def limit(self) -> tf.Tensor:
        """The loss above which a step is skipped; infinity as long as there is no limit."""
        limit = self.level + self.tolerance * self._bounded_spread()
        holds = (self.accepted_steps >= self.settling_steps) & (self.tolerance > 0.0)
        return tf.where(holds, limit, float("inf"))

    def accepts(self, loss: tf.Tensor, gradient_norm: tf.Tensor) -> tf.Tensor:
        return super().accepts(loss, gradient_norm) & (loss <= self.limit)

    def observe(self, loss: tf.Tensor, accepted: tf.Tensor) -> None:
        """Moves level and spread by an accepted loss; counts the steps skipped in a row."""
        taken = tf.cast(accepted, tf.float32)
        # A plain mean of all losses, until there are enough for the running mean.
        rate = taken * tf.maximum(_RATE, 1.0 / (self.accepted_steps + 1.0))
        settled = self.accepted_steps >= self.settling_steps
        reach = tf.where(settled, _LARGEST_PULL * self._bounded_spread(), float("inf"))
        distance = tf.clip_by_value(tf.where(accepted, loss, self.level) - self.level, -reach, reach)
        spread = self.spread + rate * (tf.abs(distance) - self.spread)
        level = self.level + rate * distance
        skipped = (self.skipped_in_a_row + 1.0) * (1.0 - taken)
        for variable, value in zip(self.variables, (level, spread, self.accepted_steps + taken, skipped), strict=True):
            variable.assign(value)

    def _bounded_spread(self) -> tf.Tensor:
        return tf.maximum(self.spread, _SMALLEST_SPREAD * tf.abs(self.level))
