"""The settings of a training run apart from model, objective and data (no TensorFlow)."""

import dataclasses

from nvae_tf.setting_checks import check, check_choice

LARGEST_SEED = 2**31 - 1
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
XLA_USES = ("auto", "off", "jit", "cluster")
RECOMPUTATIONS = ("none", "groups", "all")
# Settings of which None stands for a number that follows from the length of the run (`nvae_tf.config.resolve_lengths`).
INTERVALS = ("checkpoint_every_steps", "evaluate_every_steps", "sample_every_steps")

_CHOICES = {"strategy": STRATEGIES, "precision": PRECISIONS, "xla": XLA_USES, "recompute": RECOMPUTATIONS}
_ZERO_ALLOWED = {
    "steps",
    "seed",
    "checkpoint_every_minutes",
    "keep_checkpoint_every_hours",
    "loss_tolerance",
    "rollbacks",
    "replicas",
}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The group `train` of a run's settings.

    Attributes:
      batch_size: images a step and replica.
      epochs: length of the run in passes over the training images, where `steps` is 0.
      steps: its length in steps; 0 leaves it to `epochs`.
      seed: of the initial weights, the order of images and all draws.
      checkpoint_every_steps: a checkpoint is due after so many steps; None for a tenth of the run, from 10 to 1,000.
      checkpoint_every_minutes: and after so many minutes; 0 for none by time.
      keep_checkpoints: how many of the latest checkpoints are kept.
      keep_checkpoint_every_hours: of the others one is kept for good when so many hours have passed; 0 for none.
      evaluate_every_steps: the test images are scored after so many steps; None for the same.
      sample_every_steps: a picture of samples is written after so many steps; None for the same.
      log_every_steps: a point of the training curves is written after so many steps.
      initialise_from: run folder, or published file (.pt), with whose weights the run starts
        (`nvae_tf.training.initialization`).
      loss_tolerance: a step whose loss lies so many spreads above the running level is refused, see
        `nvae_tf.optimization.RunawayGuard`; 0 refuses only what is not finite.
      refused_steps: after so many refused steps in a row the run goes back to its latest checkpoint, with half the
        learning rate.
      rollbacks: how often it does; then it stops.
      strategy: which devices train: "one_device", all of this machine ("mirrored"), all of several processes that
        TF_CONFIG names ("multi_worker"), or "auto", whatever is there.
      replicas: how many devices a process takes; 0 for all GPUs. Without GPUs so many parts of the CPU.
      precision: "float32", or "mixed_bfloat16" or "mixed_float16": networks in half precision, everything else in
        float32.
      xla: whether XLA compiles the training step: whole ("jit"), in parts ("cluster"), not ("off"), or "auto".
      recompute: what the backward pass computes again instead of keeping it: nothing ("none"), the cells of the
        latent groups ("groups"), or all cells ("all"). Takes time, saves memory, the numbers stay.
      accumulate_steps: into how many parts a replica's batch is cut, one after the other, for less memory.
      deterministic: whether TensorFlow may use only operations that can be repeated bit for bit.
      profile_steps: first and last step of a profile for TensorBoard; empty for none.
      keep_best: whether the checkpoint with the best test score is kept too.
    """

    batch_size: int = 32
    epochs: int = 400
    steps: int = 0
    seed: int = 0
    checkpoint_every_steps: int | None = None
    checkpoint_every_minutes: float = 10.0
    keep_checkpoints: int = 2
    keep_checkpoint_every_hours: float = 0.0
    evaluate_every_steps: int | None = None
    sample_every_steps: int | None = None
    log_every_steps: int = 50
    initialise_from: str | None = None
    loss_tolerance: float = 10.0
    refused_steps: int = 20
    rollbacks: int = 3
    strategy: str = "auto"
    replicas: int = 0
    precision: str = "float32"
    xla: str = "auto"
    recompute: str = "none"
    accumulate_steps: int = 1
    deterministic: bool = False
    profile_steps: tuple = ()
    keep_best: bool = True

    def __post_init__(self):
        for name, choices in _CHOICES.items():
            check_choice(f"train.{name}", getattr(self, name), choices)
        for field in dataclasses.fields(self):
            smallest = 0 if field.name in _ZERO_ALLOWED else 1
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                check(value >= smallest, f"train.{field.name} = {value}: must be at least {smallest}")
        check(self.seed <= LARGEST_SEED, f"train.seed = {self.seed}: must be at most {LARGEST_SEED}")
        check(
            self.batch_size % self.accumulate_steps == 0,
            f"train.accumulate_steps = {self.accumulate_steps}: must divide train.batch_size = {self.batch_size}",
        )
        check(
            self.profile_steps == () or _is_range(self.profile_steps),
            f"train.profile_steps = {self.profile_steps}: must be the first and the last step to profile, as 10,20",
        )


def _is_range(steps: tuple) -> bool:
    return len(steps) == 2 and all(isinstance(step, int) for step in steps) and 1 <= steps[0] <= steps[1]
