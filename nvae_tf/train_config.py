"""The settings of a training run apart from model, objective and data (no TensorFlow)."""

import dataclasses

from nvae_tf.setting_checks import check

LARGEST_SEED = 2**31 - 1
_ZERO_ALLOWED = {
    "steps",
    "seed",
    "checkpoint_every_minutes",
    "keep_checkpoint_every_hours",
    "loss_tolerance",
    "rollbacks",
}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The group `train` of a run's settings.

    Attributes:
      batch_size: images a step and replica.
      epochs: length of the run in passes over the training images, where `steps` is 0.
      steps: its length in steps; 0 leaves it to `epochs`.
      seed: of the initial weights, the order of images and all draws.
      checkpoint_every_steps: a checkpoint is due after so many steps.
      checkpoint_every_minutes: and after so many minutes; 0 for none by time.
      keep_checkpoints: how many of the latest checkpoints are kept.
      keep_checkpoint_every_hours: of the others one is kept for good when so many hours have passed; 0 for none.
      evaluate_every_steps: the test images are scored after so many steps.
      sample_every_steps: a picture of samples is written after so many steps.
      log_every_steps: a point of the training curves is written after so many steps.
      initialise_from: run folder, or published file (.pt), with whose weights the run starts
        (`nvae_tf.checkpoints.initialisation`).
      loss_tolerance: a step whose loss lies so many spreads above the running level is refused, see
        `nvae_tf.optimization.RunawayGuard`; 0 refuses only what is not finite.
      refused_steps: after so many refused steps in a row the run goes back to its latest checkpoint, with half the
        learning rate.
      rollbacks: how often it does; then it stops.
    """

    batch_size: int = 32
    epochs: int = 400
    steps: int = 0
    seed: int = 0
    checkpoint_every_steps: int = 1000
    checkpoint_every_minutes: float = 10.0
    keep_checkpoints: int = 2
    keep_checkpoint_every_hours: float = 0.0
    evaluate_every_steps: int = 1000
    sample_every_steps: int = 1000
    log_every_steps: int = 50
    initialise_from: str | None = None
    loss_tolerance: float = 10.0
    refused_steps: int = 20
    rollbacks: int = 3

    def __post_init__(self):
        for field in dataclasses.fields(self):
            smallest = 0 if field.name in _ZERO_ALLOWED else 1
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                check(value >= smallest, f"train.{field.name} = {value}: must be at least {smallest}")
        check(self.seed <= LARGEST_SEED, f"train.seed = {self.seed}: must be at most {LARGEST_SEED}")
