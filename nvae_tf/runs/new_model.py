"""A model with its first weights and its optimizer, from the settings of a run."""

from typing import NamedTuple

import keras

from nvae_tf.config import ExperimentConfig, resolve_lengths
from nvae_tf.models import NVAE
from nvae_tf.optimization import LoweredRate, NVAEAdamax, RunawayGuard, WarmupCosine


class ModelForTraining(NamedTuple):
    """A model with its first weights, compiled; the optimizer's slots are not made yet."""

    model: NVAE  # with a `RunawayGuard`
    schedule: LoweredRate  # step -> learning rate

    @property
    def variables(self) -> list:
        """The variables that a checkpoint must hold besides those of model and optimizer."""
        return [*self.model.step_guard.variables, *self.schedule.variables]


def model_for_training(config: ExperimentConfig, steps_per_epoch: int, total_steps: int) -> ModelForTraining:
    """Makes the model of an experiment; the same settings, of a run of this length, give the same first weights."""
    settings, rates = config.train, resolve_lengths(config, steps_per_epoch, total_steps).optimizer
    keras.utils.set_random_seed(settings.seed)
    model = NVAE(
        config.model,
        config.objective,
        seed=settings.seed,
        dtype=settings.precision,
        recompute=settings.recompute,
        accumulate_steps=settings.accumulate_steps,
        label_dropout=settings.label_dropout if config.model.num_classes else 0.0,
    )
    lengths = round(rates.warmup_epochs * steps_per_epoch), steps_per_epoch, total_steps
    schedule = LoweredRate(WarmupCosine(rates.learning_rate, rates.learning_rate_min, *lengths))
    model.step_guard = RunawayGuard(settings.loss_tolerance)
    average = {"use_ema": True, "ema_momentum": rates.ema_momentum} if rates.ema_momentum else {}
    optimizer = NVAEAdamax(learning_rate=schedule, l2=rates.weight_decay, **average)
    # The step is compiled with all that is around it, see `nvae_tf.training.strategy`.
    model.compile(optimizer=optimizer, jit_compile=False)
    return ModelForTraining(model, schedule)
