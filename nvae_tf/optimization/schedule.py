"""The learning-rate schedule of the published training runs, and a factor on it that a run can lower."""

import math

import keras
import tensorflow as tf
from keras import ops


@keras.saving.register_keras_serializable("nvae_tf")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear from 0 over the warm-up, one epoch at its last value, then a cosine that moves once an epoch.

    With W warm-up steps, step `i < W` has `learning_rate * i / W`. The first epoch after the warm-up keeps
    `start = learning_rate * (W - 1) / W`; the t-th epoch after it has
    `minimum + (start - minimum) * (1 + cos(pi t / T)) / 2` with `T = epochs - warmup_epochs - 1`
    (Vahdat & Kautz 2020, appendix A, as the published runs did it).
    """

    def __init__(self, learning_rate: float, minimum: float, warmup_steps: int, steps_per_epoch: int, total_steps: int):
        self.learning_rate, self.minimum, self.warmup_steps = learning_rate, minimum, warmup_steps
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps

    def __call__(self, step):
        """The learning rate at a step counted from 0."""
        step = ops.cast(step, "float32")
        warmup = max(self.warmup_steps, 1)
        start = self.learning_rate * (warmup - 1) / warmup if self.warmup_steps else self.learning_rate
        epochs = max(math.ceil((self.total_steps - self.warmup_steps) / self.steps_per_epoch) - 1, 1)
        epoch = ops.clip(ops.floor((step - self.warmup_steps) / self.steps_per_epoch), 0.0, epochs)
        cosine = self.minimum + (start - self.minimum) * 0.5 * (1.0 + ops.cos(math.pi * epoch / epochs))
        return ops.where(step < self.warmup_steps, self.learning_rate * step / warmup, cosine)

    def get_config(self) -> dict:
        return dict(vars(self))


@keras.saving.register_keras_serializable("nvae_tf")
class LoweredRate(keras.optimizers.schedules.LearningRateSchedule):
    """Another schedule times a `factor` that is lowered at each of the `rollbacks` of training to a checkpoint."""

    def __init__(self, schedule: keras.optimizers.schedules.LearningRateSchedule, factor: float = 1.0):
        self.schedule = schedule
        self.factor = tf.Variable(factor, trainable=False, dtype=tf.float32, name="learning_rate_factor")
        self.rollbacks = tf.Variable(0.0, trainable=False, dtype=tf.float32, name="rollbacks")
        self.variables = [self.factor, self.rollbacks]  # what a checkpoint must hold for a run to resume exactly

    def __call__(self, step):
        """The learning rate at a step counted from 0."""
        return self.schedule(step) * self.factor

    def get_config(self) -> dict:
        schedule = keras.optimizers.schedules.serialize(self.schedule)
        return {"schedule": schedule, "factor": float(self.factor.numpy())}

    @classmethod
    def from_config(cls, config: dict) -> "LoweredRate":
        return cls(keras.optimizers.schedules.deserialize(config["schedule"]), config["factor"])
