"""Whether a training step may be taken: one that would carry NaN or a runaway loss into the weights leaves no trace."""

import tensorflow as tf

# Of the running level and spread of the loss: the weight of the newest.
_RATE = 0.02
# How far, in spreads, one loss can pull them.
_LARGEST_PULL = 3.0
# The spread counts as this part of the level at least: on very even losses, noise is no explosion.
_SMALLEST_SPREAD = 0.01


class StepGuard:
    """Refuses steps whose loss or gradients are not finite.

    `NVAE.train_step` asks it once the gradients are there. A refused step changes nothing: no weight, no slot of the
    optimizer, no running statistic, no power vector, and not the number of steps taken.
    """

    def accepts(self, loss: tf.Tensor, gradient_norm: tf.Tensor) -> tf.Tensor:
        """Whether to take the step, a boolean scalar.

        Args:
          loss: the training loss of the batch, scalar.
          gradient_norm: the norm of all gradients as one vector, scalar; not finite if one of them is not.
        """
        return tf.math.is_finite(loss) & tf.math.is_finite(gradient_norm)

    def observe(self, loss: tf.Tensor, accepted: tf.Tensor) -> None:
        """Learns of a step's loss, and whether the step was taken."""


class RunawayGuard(StepGuard):
    """Refuses also a loss far above those before it, and counts how many steps in a row were refused.

    The limit is `level + tolerance * spread`: running means of the accepted losses and of their distance from the
    level. One loss pulls them by no more than three spreads, so that a few outliers do not raise the limit. For the
    first `settling_steps` accepted steps there is none.

    Args:
      tolerance: how many spreads above the level a loss may lie; 0 for no limit.
      settling_steps: accepted losses to learn from before the limit holds.
    """

    def __init__(self, tolerance: float = 10.0, settling_steps: int = 100):
        self.tolerance = tolerance
        self.settling_steps = settling_steps
        self.level, self.spread, self.accepted_steps, self.refused_in_a_row = (
            tf.Variable(0.0, trainable=False, name=name, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA)
            for name in ("level", "spread", "accepted_steps", "refused_in_a_row")
        )

    @property
    def variables(self) -> list[tf.Variable]:
        """What a checkpoint must hold for a run to go on as if it had not stopped."""
        return [self.level, self.spread, self.accepted_steps, self.refused_in_a_row]

    @property
    def limit(self) -> tf.Tensor:
        """The loss above which a step is refused; infinity as long as there is no limit."""
        limit = self.level + self.tolerance * self._spread_that_counts()
        holds = (self.accepted_steps >= self.settling_steps) & (self.tolerance > 0.0)
        return tf.where(holds, limit, float("inf"))

    def accepts(self, loss: tf.Tensor, gradient_norm: tf.Tensor) -> tf.Tensor:
        """Whether the step is sound: see `StepGuard`, and the loss is not above the limit."""
        return super().accepts(loss, gradient_norm) & (loss <= self.limit)

    def observe(self, loss: tf.Tensor, accepted: tf.Tensor) -> None:
        """Moves level and spread by an accepted loss; counts the steps refused in a row."""
        taken = tf.cast(accepted, tf.float32)
        # As many losses as there were weigh alike, until there are enough for the running mean.
        rate = taken * tf.maximum(_RATE, 1.0 / (self.accepted_steps + 1.0))
        reach = tf.where(
            self.accepted_steps < self.settling_steps, float("inf"), _LARGEST_PULL * self._spread_that_counts()
        )
        distance = tf.clip_by_value(tf.where(accepted, loss, self.level) - self.level, -reach, reach)
        spread = self.spread + rate * (tf.abs(distance) - self.spread)
        level = self.level + rate * distance
        for variable, value in (
            (self.spread, spread),
            (self.level, level),
            (self.accepted_steps, self.accepted_steps + taken),
            (self.refused_in_a_row, (self.refused_in_a_row + 1.0) * (1.0 - taken)),
        ):
            variable.assign(value)

    def _spread_that_counts(self) -> tf.Tensor:
        return tf.maximum(self.spread, _SMALLEST_SPREAD * tf.abs(self.level))
