"""The model of an experiment's settings as it is trained: compiled, with its optimizer and its schedule."""

from typing import NamedTuple

import keras

from nvae_tf.config import ExperimentConfig, resolve_lengths
from nvae_tf.models.nvae import NVAE
from nvae_tf.optimization import LoweredRate, NVAEAdamax, RunawayGuard, WarmupCosine


class ModelForTraining(NamedTuple):
    """A model with its first weights, compiled; the optimizer's slots are not made yet.

    Attributes:
      model: the model, with a `RunawayGuard`.
      schedule: step -> learning rate.
    """

    model: NVAE
    schedule: LoweredRate

    @property
    def variables(self) -> list:
        """What a checkpoint must hold besides weights, metrics and the optimizer's variables."""
        return [*self.model.step_guard.variables, *self.schedule.variables]


def model_for_training(config: ExperimentConfig, steps_per_epoch: int, total_steps: int) -> ModelForTraining:
    """Makes the model of an experiment; the same settings give the same first weights.

    Args:
      config: the settings.
      steps_per_epoch: whole batches in the training images.
      total_steps: the length of the run.
    """
    settings, rates = config.train, resolve_lengths(config, steps_per_epoch, total_steps).optimizer
    keras.utils.set_random_seed(settings.seed)
    model = NVAE(
        config.model,
        config.objective,
        seed=settings.seed,
        recompute=settings.recompute,
        accumulate_steps=settings.accumulate_steps,
        dtype=settings.precision,
    )
    schedule = LoweredRate(
        WarmupCosine(
            rates.learning_rate,
            rates.learning_rate_min,
            warmup_steps=round(rates.warmup_epochs * steps_per_epoch),
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
        )
    )
    model.step_guard = RunawayGuard(settings.loss_tolerance)
    average = {"use_ema": True, "ema_momentum": rates.ema_momentum} if rates.ema_momentum else {}
    optimizer = NVAEAdamax(learning_rate=schedule, l2=rates.weight_decay, **average)
    # What compiles is the step with all that is around it, see `nvae_tf.training.strategy`.
    model.compile(optimizer=optimizer, jit_compile=False)
    return ModelForTraining(model, schedule)
