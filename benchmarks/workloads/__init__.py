"""What `benchmarks.all` measures, by name. Nothing here loads TensorFlow: each workload does, in its own process."""

from typing import NamedTuple

MANY_ROUNDS = 15
# Of slow workloads, a turn of which takes up to minutes.
MOST_ROUNDS_OF_SLOW = 3
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
      is_slow: whether it gets few turns, and none to warm up.
      is_command: whether a turn is a whole command in a process anew, so that there is no first step.
      yardstick_of_preset: whether the yardstick of the same name is its clock, where there is one.
    """

    what: str
    place: str
    batch_sizes: dict[str, int | None]
    presets: tuple[str, ...] = _USUAL
    is_slow: bool = False
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
        is_slow=True,
    ),
    "saved_model_sampling": Workload(
        "sampling, the exported SavedModel", "saved_model_sampling:SavedModelSampling", _SAMPLING
    ),
    "export": Workload(
        "export.export_saved_model, checked", "commands:Export", _COMMAND, is_slow=True, is_command=True
    ),
    "import": Workload(
        "export.import_torch_checkpoint",
        "commands:Import",
        # Of which a published file can be made without training: the digits are no data set that the form knows.
        {"mnist": None, "cifar10": None},
        ("cifar10",),
        is_slow=True,
        is_command=True,
    ),
}
PRESETS = tuple(_TRAINING)
# They, and the yardstick, can't do without PyTorch.
NEED_TORCH = ("import",)
