"""The facts that the files of a run folder have, for its model card and its page; None for what they do not say."""

import contextlib
import csv
import dataclasses
import io
import math
import pathlib
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from huggingface_hub import EvalResult
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util

from nvae_tf.config import DataSpec, ExperimentConfig, named_settings
from nvae_tf.evaluation.table import rows, table
from nvae_tf.generation.image_grid import read_images
from nvae_tf.latent_plan import LatentPlan, latent_plan
from nvae_tf.presets import preset, preset_files
from nvae_tf.runs.checkpoint_files import steps_of_files
from nvae_tf.runs.companions import prior_text, read_about
from nvae_tf.runs.origin import Origin, origin_of_run
from nvae_tf.runs.run_folder import ImageCounts, RunFolder, read_image_counts, read_run_config
from nvae_tf.schemas import ANY_OBJECT, read_object

# The errors that a damaged file, or one of another version, may lead to.
UNREADABLE = (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError, csv.Error)

# By the name in the evaluation file, the type and the name of a metric on the Hub.
_BOUNDS = {
    "importance_weighted_nats": ("importance_weighted_bound", "importance-weighted bound, nats an image"),
    "importance_weighted_bits_per_dim": ("importance_weighted_bits_per_dim", "importance-weighted bound, bits/dim"),
    "nelbo_nats": ("nelbo", "NELBO (reconstruction + KL), nats an image"),
    "bits_per_dim": ("bits_per_dim", "NELBO (reconstruction + KL), bits/dim"),
    "reconstruction_nats": ("reconstruction", "reconstruction, nats an image"),
    "kl_nats": ("kl", "KL, nats an image"),
}
_MADE_WITH = dict(num_images=int, seed=int, checkpoint=str, step=int, checkpoint_sha256=str)
TASK = "unconditional-image-generation"
# Data sets of TensorFlow Datasets that the Hub has too.
_HUB_DATASETS = {"cifar10": "uoft-cs/cifar10", "mnist": "ylecun/mnist"}


class Evaluation(NamedTuple):
    """One evaluation file that can be read."""

    metrics: Mapping[str, Any]  # the content of the file, without the folder of the data, texts on one line
    results: tuple[EvalResult, ...]  # the scores for the Hub
    table: str  # the metrics as text
    rows: tuple[tuple[str, str, str], ...]  # what was measured, its value, and how
    pictures: tuple[str, ...]  # picture files that it names and that exist, relative to the run folder


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What a model card is about; None, or nothing, for what is not known or not there yet."""

    name: str  # the name of the run folder
    config: ExperimentConfig
    plan: LatentPlan
    parameters: int | None  # how many numbers are trained
    step: int | None  # the step of the newest checkpoint
    best_step: int | None  # the step of the checkpoint with the best test score
    images: ImageCounts | None  # how many images there were in training
    origin: Origin | None  # the weights' source and license
    evaluations: tuple[Evaluation, ...]  # the evaluation of the test part, then of the training part
    # The last step of `metrics.csv`, its test NELBO in nats and in bits.
    training_score: tuple[int, float, float] | None
    learning_rates: tuple[tuple[float, int], ...] | None  # the highest and the last rate, each with its step
    environment: Mapping[str, Any] | None  # hardware and versions of the latest training
    samples: tuple[str, int] | None  # the newest picture file of samples, and its step
    prior: tuple[int, str] | None  # the step that the reweighted prior was learned for, and what was measured of it

    @property
    def test_evaluation(self) -> Evaluation | None:
        """The evaluation of the test part."""
        return next((evaluation for evaluation in self.evaluations if evaluation.metrics["split"] == "test"), None)

    @property
    def is_imported(self) -> bool:
        """Whether the newest weights are those of a file, as it was imported."""
        return self.origin is not None and self.origin.step is not None and self.origin.step == self.step

    @property
    def checkpoint(self) -> str:
        """The checkpoint for the card's commands, "latest" or "best": that of the scores, if it is still there."""
        scored = [evaluation.metrics.get("checkpoint") for evaluation in self.evaluations if evaluation.results]
        wants_best = self.step is None or scored[:1] == ["best"]
        return "best" if wants_best and self.best_step is not None else "latest"

    @property
    def has_prior(self) -> bool:
        """Whether the reweighted prior was learned for the checkpoint of the card's commands."""
        step = self.best_step if self.checkpoint == "best" else self.step
        return self.prior is not None and self.prior[0] == step


def gather(folder: RunFolder, parameters: int | None = None) -> RunFacts:
    """Reads the files of a run folder. Metrics that can't be read are left out; damaged settings raise ValueError."""
    config = read_run_config(folder)
    steps = steps_of_files(folder.checkpoints, "index")
    best = steps_of_files(folder.best_checkpoints, "index")
    files = [folder.evaluation_file(split) for split in ("test", "train")]
    evaluations = (_read(_evaluation, file, hub_dataset(config.data)) for file in files)
    samples = {int(file.stem[5:]): file for file in folder.samples.glob("step-*.png") if file.stem[5:].isdecimal()}
    return RunFacts(
        name=folder.path.resolve().name,
        config=config,
        plan=latent_plan(config.model),
        parameters=parameters,
        step=steps[-1] if steps else None,
        best_step=best[-1] if best else None,
        images=_read(read_image_counts, folder.images_file),
        origin=origin_of_run(folder, config.train.initialize_from),
        evaluations=tuple(filter(None, evaluations)),
        training_score=_read(_training_score, folder.metrics_file),
        learning_rates=_read(_learning_rates, folder.metrics_file),
        environment=_read(read_object, folder.environment_file, ANY_OBJECT),
        samples=(f"{folder.samples.name}/{samples[max(samples)].name}", max(samples)) if samples else None,
        prior=_read(_prior, folder.prior_file),
    )


def _read(reader: typing.Callable[..., Any], *arguments: Any) -> Any:
    """Returns what a reader returns; None where its file is missing or damaged."""
    try:
        return reader(*arguments)
    except UNREADABLE:
        return None


def _training_score(file: pathlib.Path) -> tuple[int, float, float]:
    *_, last = _rows(file)
    return int(last["step"]), _finite(float(last["test_nelbo_nats"])), _finite(float(last["test_bits_per_dim"]))


def _learning_rates(file: pathlib.Path) -> tuple[tuple[float, int], ...]:
    rates = [(float(row["learning_rate"]), int(row["step"])) for row in _rows(file)]
    return max(rates, key=lambda rate: rate[0]), rates[-1]


def _prior(file: pathlib.Path) -> tuple[int, str]:
    step, about = read_about(file)
    return step, prior_text(about)


def _rows(file: pathlib.Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


class Curve(NamedTuple):
    """Values at training steps, in ascending order of the steps; NaN for a gap."""

    steps: Sequence[int]
    values: Sequence[float]


def read_curves(folder: RunFolder) -> tuple[dict[str, Curve], float]:
    """Reads the curves of a run by their names in `metrics.csv`, and the seconds that training took.

    A curve comes from TensorBoard's files, which have every logged step, where they have more points of it. They have
    the KL of single groups, too, as `kl_per_group/00`.
    """
    curves = read_metrics(folder.metrics_file)
    points, seconds = read_events(folder.tensorboard)
    for tag, values in points.items():
        name = re.sub("^(schedule|speed)/", "", re.sub("^(test|train)/", r"\1_", tag))
        # Tags of training do not name the unit.
        name = f"{name}_nats" if name in ("train_reconstruction", "train_kl") else name
        if name not in curves or len(values) > len(curves[name].steps):
            curves[name] = Curve(list(values), list(values.values()))
    reconstruction, kl = (
        dict(zip(*curves.get(f"train_{part}_nats", ((), ())), strict=True)) for part in ("reconstruction", "kl")
    )
    nelbo = {step: value + kl[step] for step, value in reconstruction.items() if step in kl}
    if len(nelbo) > len(curves.get("train_nelbo_nats", ((),))[0]):
        curves["train_nelbo_nats"] = Curve(list(nelbo), list(nelbo.values()))
    return curves, seconds


def read_metrics(file: pathlib.Path) -> dict[str, Curve]:
    """Reads the columns of `metrics.csv`; NaN stands for text. No columns if the file is missing or of another kind."""
    with contextlib.suppress(OSError, ValueError, csv.Error):
        text = file.read_text(encoding="utf-8", errors="replace")
        # The line that a running training is writing has no end yet.
        reader = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1]))
        rows = sorted((row for row in reader if (row.get("step") or "").isdecimal()), key=lambda row: int(row["step"]))
        steps = [int(row["step"]) for row in rows]
        columns = [name for name in reader.fieldnames or [] if name != "step"] if rows else []
        return {name: Curve(steps, [_number(row.get(name)) for row in rows]) for name in columns}
    return {}


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def read_events(folder: pathlib.Path) -> tuple[dict[str, dict[int, float]], float]:
    """Reads TensorBoard's scalars by tag and step, and the seconds that its files span.

    The files are read one event at a time (TensorBoard's accumulator would keep all images in memory). Where a run was
    continued from an earlier checkpoint, the later values count. Damaged files are read up to the damage.
    """
    points: dict[str, dict[int, float]] = {}
    seconds = 0.0
    # A file's name begins with the time of its making.
    for file in sorted(folder.glob("*tfevents*")):
        times = []
        with contextlib.suppress(tf.errors.OpError, OSError):
            for event in EventFileLoader(str(file)).Load():
                times.append(event.wall_time)
                for value in event.summary.value:
                    if value.metadata.plugin_data.plugin_name == "scalars":
                        curve = points.setdefault(value.tag, {})
                        if curve and event.step <= next(reversed(curve)):
                            for later in [step for step in curve if step >= event.step]:
                                del curve[later]
                        curve[event.step] = float(tensor_util.make_ndarray(value.tensor))
        seconds += times[-1] - times[0] if times else 0.0
    return points, seconds


def read_training_samples(folder: RunFolder, width: int, columns: int) -> tuple[list[int], np.ndarray]:
    """Reads up to five steps at which training has drawn samples, and the first images of each.

    Images are `[steps, columns, height, width, channels]`, uint8. There are no steps where a file is damaged.
    """
    files = sorted(folder.samples.glob("step-*.png"))
    files = [files[index] for index in np.unique(np.linspace(0, len(files) - 1, 5).round().astype(int)) if files]
    with contextlib.suppress(ArithmeticError, OSError, ValueError, SyntaxError):
        images = np.array([read_images(file, width, columns)[:columns] for file in files])
        return [int(file.stem[5:]) for file in files], images
    return [], np.array([])


def nearest_preset(config: ExperimentConfig) -> tuple[str, list[tuple[str, Any, Any]]]:
    """Returns the preset that settings are most like, and what differs: setting, its value, the preset's value."""
    own, differences = named_settings(config), {}
    for preset_name in preset_files():
        groups = preset(preset_name).to_dict().items()
        values = {f"{group}.{name}": value for group, settings in groups for name, value in settings.items()}
        # None stands for what a preset leaves to the images.
        changed = {name: value for name, value in values.items() if value not in (None, own[name])}
        differences[preset_name] = [(name, own[name], value) for name, value in changed.items()]
    return min(differences.items(), key=lambda item: len(item[1]))


def hub_dataset(spec: DataSpec) -> str | None:
    """Returns the Hub's identifier of a data set; None where the Hub is not known to have the same."""
    return _HUB_DATASETS.get(spec.source_name) if spec.source == "tfds" else None


def identifier(text: str) -> str:
    """Returns a name in the form that the Hub takes: lower-case letters, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.") or "other"


def _evaluation(file: pathlib.Path, dataset: str | None) -> Evaluation:
    metrics = read_object(file, ANY_OBJECT)
    metrics["split"] = str(metrics["split"])
    # A folder of this machine, which a public card does not name.
    metrics.pop("data", None)
    pictures = tuple(
        str(path)
        for metric in ("latents", "outliers")
        for path in map(pathlib.PurePosixPath, metrics.get(metric, {}).get("pictures", ()))
        if not path.is_absolute() and ".." not in path.parts and (file.parent / path).is_file()
    )
    results = tuple(_results(metrics, dataset or identifier(metrics["dataset"])))
    for name in [name for name, value in metrics.items() if isinstance(value, str)]:
        # A name must not look like other lines of the table; commands have a line each.
        kept = "\n" if name == "command" else ""
        metrics[name] = "".join(letter if letter.isprintable() or letter in kept else " " for letter in metrics[name])
    return Evaluation(metrics, results, table(metrics), tuple(rows(metrics)), pictures)


def _results(metrics: Mapping[str, Any], dataset: str) -> Iterator[EvalResult]:
    """Yields the scores of an evaluation file as the Hub has them; ValueError for a number that is not finite."""
    made_with = {name: kind(metrics[name]) for name, kind in _MADE_WITH.items() if metrics.get(name) is not None}

    def result(kind: str, name: str, value: float, **arguments: Any) -> EvalResult:
        place = {"task_type": TASK, "dataset_type": dataset, "dataset_name": str(metrics["dataset"])}
        metric = {"metric_type": kind, "metric_name": name, "metric_value": _finite(value), "metric_args": arguments}
        return EvalResult(**place, dataset_split=str(metrics["split"]), **metric)

    for key, (kind, name) in _BOUNDS.items():
        if key in metrics:
            arguments = dict(made_with)
            if key.startswith("importance"):
                arguments["importance_samples"] = int(metrics["importance_samples"])
            if (half_width := metrics.get("half_widths_95", {}).get(key)) is not None:
                arguments["half_width_95"] = _finite(half_width)
            yield result(kind, name, metrics[key], **arguments)
    if "latents" in metrics:
        latents = metrics["latents"]
        channels = int(latents["latent_channels"]) * len(latents["active_units_per_group"])
        how = {"active_from_nats": _finite(latents["active_from_nats"]), "latent_channels": channels}
        yield result("active_units", f"active units, of {channels:,}", latents["active_units"], **made_with, **how)
    for name, outliers in metrics.get("outliers", {}).get("sets", {}).items():
        for score, value in outliers["auroc"].items():
            how = made_with | {"outliers": str(name), "num_outliers": int(outliers["num_images"])}
            yield result("roc_auc", f"AUROC of the outlier score {score}, {name}", value, **how)
    for key, name in (("fid", "FID"), ("frechet", "Fréchet distance")):
        if key not in metrics:
            continue
        fid = metrics[key]
        # Samples are compared with training images, whatever the part that was evaluated.
        how = {name: value for name, value in made_with.items() if name != "num_images"}
        how |= {name: int(fid[name]) for name in ("samples", "real_images", "batch_norm_iterations")}
        how["temperature"] = ",".join(f"{_finite(number):g}" for number in np.atleast_1d(fid["temperature"]))
        how["extractor"], how["extractor_is_published"] = str(fid["extractor"]), bool(fid["extractor_is_published"])
        if fid.get("prior") == "reweighted":
            how["prior"] = "reweighted"
        yield result(key, name, fid["value"], **how)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value
