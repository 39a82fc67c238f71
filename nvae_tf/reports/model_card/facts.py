"""What a model card tells, gathered from the files of a run folder; what they do not say stays None."""

import csv
import dataclasses
import math
import pathlib
from typing import NamedTuple

from nvae_tf.config import ExperimentConfig
from nvae_tf.latent_plan import LatentPlan, latent_plan
from nvae_tf.reports.model_card.origin import Origin, origin_of_run
from nvae_tf.reports.model_card.scores import Evaluation, read_evaluation
from nvae_tf.training.checkpoints import folder_of_best, steps_of_files
from nvae_tf.training.run_folder import ImageCounts, RunFolder, read_image_counts, read_run_config

_SPLITS = ("test", "train")
_UNREADABLE = (LookupError, OSError, TypeError, ValueError)


class TrainingScore(NamedTuple):
    """The last line of `metrics.csv`: the negative bound of the test images, in nats an image and bits a value."""

    step: int
    nelbo_nats: float
    bits_per_dim: float


class LearningRates(NamedTuple):
    """The learning rate as `metrics.csv` has it: the highest and the last, each with the step after which it was so."""

    highest: float
    highest_step: int
    last: float
    last_step: int


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What the card is about.

    Attributes:
      name: the run folder's own name.
      config: its settings.
      plan: scales and groups of its model.
      parameters: how many numbers are trained; None where the caller did not say.
      step: of the newest checkpoint; None before the first.
      best_step: of the checkpoint with the best test score, if there is one.
      images: how many there were in training; None where that is not noted.
      origin: what is known of the weights' source and license.
      evaluations: those of the test part, then of the training part.
      training_score: the test images' last score in training.
      learning_rates: what the learning rate really was; None before the first evaluation.
      samples: the newest picture of samples and its step.
    """

    name: str
    config: ExperimentConfig
    plan: LatentPlan
    parameters: int | None
    step: int | None
    best_step: int | None
    images: ImageCounts | None
    origin: Origin | None
    evaluations: tuple[Evaluation, ...]
    training_score: TrainingScore | None
    learning_rates: LearningRates | None
    samples: tuple[str, int] | None

    @property
    def is_imported(self) -> bool:
        """Whether the newest weights are those of a file, as it was imported."""
        return self.origin is not None and self.origin.step is not None and self.origin.step == self.step

    @property
    def checkpoint(self) -> str:
        """Which checkpoint the card's commands take, "latest" or "best": that of the scores, if it is still there."""
        of_scores = [evaluation.made_with.get("checkpoint") for evaluation in self.evaluations if evaluation.scores]
        wants_best = self.step is None or of_scores[:1] == ["best"]
        return "best" if wants_best and self.best_step is not None else "latest"


def gather(folder: RunFolder, parameters: int | None = None) -> RunFacts:
    """Reads the files of a run folder. Figures that can't be read are left out.

    Raises:
      FileNotFoundError, ValueError: see `read_run_config` and `origin_of_run`, or the settings make no model.
      OSError: a file can't be read.
    """
    config = read_run_config(folder)
    name = folder.path.resolve().name
    steps = steps_of_files(folder.checkpoints, "index")
    best = steps_of_files(folder_of_best(folder.checkpoints), "index")
    evaluations = (read_evaluation(folder.evaluation_file(split), name) for split in _SPLITS)
    return RunFacts(
        name,
        config,
        latent_plan(config.model),
        parameters,
        step=steps[-1] if steps else None,
        best_step=best[-1] if best else None,
        images=_image_counts(folder.images_file),
        origin=origin_of_run(folder, config.train.initialise_from),
        evaluations=tuple(filter(None, evaluations)),
        training_score=_training_score(folder.metrics_file),
        learning_rates=_learning_rates(folder.metrics_file),
        samples=_newest_samples(folder),
    )


def _image_counts(file: pathlib.Path) -> ImageCounts | None:
    try:
        return read_image_counts(file)
    except (OSError, ValueError):
        return None


def _training_score(file: pathlib.Path) -> TrainingScore | None:
    try:
        *_, last = _rows(file)
        figures = float(last["test_nelbo_nats"]), float(last["test_bits_per_dim"])
        return TrainingScore(int(last["step"]), *figures) if all(map(math.isfinite, figures)) else None
    except (csv.Error, *_UNREADABLE):
        return None


def _learning_rates(file: pathlib.Path) -> LearningRates | None:
    try:
        rates = [(float(row["learning_rate"]), int(row["step"])) for row in _rows(file)]
        return LearningRates(*max(rates, key=lambda rate: rate[0]), *rates[-1])
    except (csv.Error, *_UNREADABLE):
        return None


def _rows(file: pathlib.Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _newest_samples(folder: RunFolder) -> tuple[str, int] | None:
    steps = {
        int(file.stem.removeprefix("step-")): file.name
        for file in folder.samples.glob("step-*[0-9].png")
        if file.stem.removeprefix("step-").isdecimal()
    }
    return (f"{folder.samples.name}/{steps[max(steps)]}", max(steps)) if steps else None
