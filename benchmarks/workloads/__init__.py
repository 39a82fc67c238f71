"""What `benchmarks.all` measures, by name. Nothing here loads TensorFlow: each workload does, in its own process."""

from typing import NamedTuple

# Times that take turns often; and slow ones, a turn of which takes up to minutes.
MANY_ROUNDS, FEW_ROUNDS = 15, 3
IMPORTANCE_SAMPLES = 100
SAMPLES_A_BATCH = 16

# Those of `benchmarks.train_step`. CelebA's 16 would need 15 GiB, and 4 need 7, as `train.estimate` has it.
_TRAINING = {"digits": 60, "mnist": 16, "cifar10": 4, "celeba64": 4}
_SAMPLING = dict.fromkeys(_TRAINING, SAMPLES_A_BATCH)
# Commands have no batch.
_COMMAND = dict.fromkeys(_TRAINING)
_USUAL = ("mnist", "cifar10")


class Workload(NamedTuple):
    """How a workload is measured.

    Attributes:
      what: what one turn does, for the table.
      place: module in this package and class, `module:Class`; see `benchmarks.workloads.worker`.
      batch_sizes: images at a time for every preset that it can be measured with; None where there is no batch.
      presets: those that it is measured with if none are named.
      most_rounds: timed turns at most.
      is_command: whether a turn is a whole command in a process anew, so that there is no first step.
      yardstick_of_preset: whether the yardstick of the same name is its clock, where there is one.
    """

    what: str
    place: str
    batch_sizes: dict[str, int | None]
    presets: tuple[str, ...] = _USUAL
    most_rounds: int = MANY_ROUNDS
    is_command: bool = False
    yardstick_of_preset: bool = False

    def yardstick(self, preset: str) -> str:
        """The preset of `benchmarks.torch_yardstick` that is the clock; there is none for every architecture."""
        return "mnist" if self.yardstick_of_preset and preset == "mnist" else "cifar10"


WORKLOADS = {
    "training": Workload(
        "training step",
        "training:Training",
        _TRAINING,
        ("mnist", "cifar10", "celeba64"),
        yardstick_of_preset=True,
    ),
    "recomputed_training": Workload(
        "training step, train.recompute=all", "training:RecomputedTraining", _TRAINING, yardstick_of_preset=True
    ),
    "sampling": Workload("sampling, the model in Python", "sampling:Sampling", _SAMPLING),
    "nelbo": Workload("NELBO of a batch", "evaluation:Nelbo", _TRAINING),
    "importance_weighted": Workload(
        f"importance-weighted bound of a batch, K = {IMPORTANCE_SAMPLES}",
        "evaluation:ImportanceWeighted",
        _TRAINING,
        most_rounds=FEW_ROUNDS,
    ),
    "saved_model_sampling": Workload(
        "sampling, the exported SavedModel", "saved_model_sampling:SavedModelSampling", _SAMPLING
    ),
    "export": Workload(
        "export.export_saved_model, checked", "commands:Export", _COMMAND, most_rounds=FEW_ROUNDS, is_command=True
    ),
    "import": Workload(
        "export.import_torch_checkpoint",
        "commands:Import",
        # The published form has no data set like the digits.
        {"mnist": None, "cifar10": None},
        ("cifar10",),
        most_rounds=FEW_ROUNDS,
        is_command=True,
    ),
}
PRESETS = tuple(_TRAINING)
# They, and the yardstick, can't do without PyTorch.
NEED_TORCH = ("import",)
