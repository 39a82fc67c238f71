"""The facts that the files of a run folder have, for its model card and its page; None for what they do not say."""

import collections
import contextlib
import csv
import io
import math
import os
import pathlib
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from huggingface_hub import EvalResult
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util

from nvae_tf.config import DataSpec
from nvae_tf.evaluation.table import rows, table
from nvae_tf.generation.image_grid import read_images
from nvae_tf.latent_plan import latent_plan
from nvae_tf.runs.checkpoint_files import steps_of_files
from nvae_tf.runs.companions import prior_text, read_about
from nvae_tf.runs.origin import origin_of_run
from nvae_tf.runs.run_folder import RunFolder, read_image_counts, read_run_config
from nvae_tf.schemas import ANY_OBJECT, read_object

# The errors that a damaged file, or one of another version, may lead to.
UNREADABLE = (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError, csv.Error)

# The entries of an evaluation file that the Hub gets.
_BOUNDS = ("importance_weighted_nats", "importance_weighted_bits_per_dim", "nelbo_nats", "bits_per_dim")
_SCORES = (*_BOUNDS, "reconstruction_nats", "kl_nats", "fid", "frechet")
_MADE_WITH = ("num_images", "seed", "checkpoint", "step", "checkpoint_sha256")
_DISTANCE_MADE_WITH = ("samples", "real_images", "batch_norm_iterations", "extractor", "extractor_is_published")
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


def gather(folder: RunFolder, parameters: int | None = None) -> types.SimpleNamespace:
    """Reads the facts of a run that its card and page show; None, or nothing, for what is not known or can't be read.

    `parameters` is how many numbers are trained. Raises ValueError for damaged settings.
    """
    config = read_run_config(folder)
    steps, best = (steps_of_files(place, "index") for place in (folder.checkpoints, folder.best_checkpoints))
    files = [folder.evaluation_file(split) for split in ("test", "train")]
    evaluations = [_read(_evaluation, file, hub_dataset(config.data)) for file in files]
    samples = sorted(folder.samples.glob(f"step-{'[0-9]' * 8}.png"))
    facts = types.SimpleNamespace(
        name=folder.path.resolve().name,
        config=config,
        plan=latent_plan(config.model),
        parameters=parameters,
        step=steps[-1] if steps else None,
        best_step=best[-1] if best else None,
        images=_read(read_image_counts, folder.images_file),
        origin=origin_of_run(folder, config.train.initialize_from),
        evaluations=[evaluation for evaluation in evaluations if evaluation],
        training_score=_read(_training_score, folder.metrics_file),
        environment=_read(read_object, folder.environment_file, ANY_OBJECT),
        samples=(f"samples/{samples[-1].name}", int(samples[-1].stem[5:])) if samples else None,
        prior=_read(_prior, folder.prior_file),
    )
    tested = [evaluation for evaluation in facts.evaluations if evaluation.metrics["split"] == "test"]
    facts.test_evaluation = tested[0] if tested else None
    # Whether the newest weights are those of a file, as it was imported.
    facts.is_imported = facts.origin is not None and facts.origin.step is not None and facts.origin.step == facts.step
    # The checkpoint for the card's commands is that of the scores, if it is still there.
    scored = [evaluation.metrics.get("checkpoint") for evaluation in facts.evaluations if evaluation.rows]
    wants_best = facts.step is None or scored[:1] == ["best"]
    facts.checkpoint = "best" if wants_best and best else "latest"
    # Whether the reweighted prior was learned for that checkpoint.
    step = facts.best_step if facts.checkpoint == "best" else facts.step
    facts.has_prior = facts.prior is not None and facts.prior[0] == step
    return facts


def _read(reader: Callable[..., Any], *arguments: Any) -> Any:
    """Returns what a reader returns; None where its file is missing or damaged."""
    try:
        return reader(*arguments)
    except UNREADABLE:
        return None


def _training_score(file: pathlib.Path) -> tuple[int, float, float]:
    """The last step of `metrics.csv`, its test NELBO in nats and in bits."""
    with file.open(encoding="utf-8", newline="") as lines:
        *_, last = csv.DictReader(lines)
    return int(last["step"]), _finite(float(last["test_nelbo_nats"])), _finite(float(last["test_bits_per_dim"]))


def _prior(file: pathlib.Path) -> tuple[int, str]:
    """The step that the reweighted prior was learned for, and what was measured of it."""
    step, about = read_about(file)
    return step, prior_text(about)


class Curve(NamedTuple):
    """Values at training steps, in ascending order of the steps; NaN for a gap."""

    steps: Sequence[int]
    values: Sequence[float]


def read_curves(folder: RunFolder) -> tuple[dict[str, Curve], float]:
    """Reads the curves of a run by their names in `metrics.csv`, and the seconds that training took.

    A curve comes from TensorBoard's files, which have every logged step, where they have more points of it. They have
    the KL of single groups, too, as `kl_per_group/00`.
    """
    points, (logged, seconds) = _read_metrics(folder.metrics_file), _read_events(folder.tensorboard)
    for tag, values in logged.items():
        name = re.sub("^(schedule|speed)/", "", re.sub("^(test|train)/", r"\1_", tag))
        # Tags of training do not name the unit.
        name = f"{name}_nats" if name in ("train_reconstruction", "train_kl") else name
        points[name] = max(points[name], values, key=len)
    reconstruction, kl = points["train_reconstruction_nats"], points["train_kl_nats"]
    nelbo = {step: value + kl[step] for step, value in reconstruction.items() if step in kl}
    points["train_nelbo_nats"] = max(points["train_nelbo_nats"], nelbo, key=len)
    curves = {name: sorted(values.items()) for name, values in points.items() if values}
    return {name: Curve(*map(list, zip(*curve, strict=True))) for name, curve in curves.items()}, seconds


def _read_metrics(file: pathlib.Path) -> dict[str, dict[int, float]]:
    """Reads the columns of `metrics.csv` by step; NaN stands for text. None if the file is missing or of another kind.

    The columns that the file lacks are empty.
    """
    points: dict[str, dict[int, float]] = collections.defaultdict(dict)
    with contextlib.suppress(*UNREADABLE):
        text = file.read_text(encoding="utf-8", errors="replace")
        # The line that a running training is writing has no end yet.
        for row in csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])):
            step = row.pop("step") or ""
            for name in row if step.isdecimal() else ():
                points[name][int(step)] = _number(row[name])
    return points


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _read_events(folder: pathlib.Path) -> tuple[dict[str, dict[int, float]], float]:
    """Reads TensorBoard's scalars by tag and step, the latest of a step, and the seconds that its files span.

    The files are read one event at a time (TensorBoard's accumulator would keep all images in memory). Damaged files
    are read up to the damage.
    """
    points: dict[str, dict[int, float]] = collections.defaultdict(dict)
    seconds = 0.0
    # A file's name begins with the time of its making.
    for file in sorted(folder.glob("*tfevents*")):
        times = []
        with contextlib.suppress(tf.errors.OpError, OSError):
            for event in EventFileLoader(str(file)).Load():
                times.append(event.wall_time)
                for value in event.summary.value:
                    if value.metadata.plugin_data.plugin_name == "scalars":
                        points[value.tag][event.step] = float(tensor_util.make_ndarray(value.tensor))
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
    named = [path for metric in ("latents", "outliers") for path in metrics.get(metric, {}).get("pictures", ())]
    # Paths in the run folder alone.
    inside = [path for path in named if not os.path.isabs(path) and ".." not in pathlib.PurePath(path).parts]
    pictures = tuple(path for path in inside if (file.parent / path).is_file())
    results = tuple(_results(metrics, dataset or identifier(metrics["dataset"])))
    for name in [name for name, value in metrics.items() if isinstance(value, str)]:
        # A name must not look like other lines of the table; commands have a line each.
        kept = "\n" if name == "command" else ""
        metrics[name] = "".join(letter if letter.isprintable() or letter in kept else " " for letter in metrics[name])
    return Evaluation(metrics, results, table(metrics), tuple(rows(metrics)), pictures)


def _results(metrics: Mapping[str, Any], dataset: str) -> Iterator[EvalResult]:
    """Yields the scores of an evaluation file as the Hub has them; ValueError for a number that is not finite."""
    place = {"task_type": TASK, "dataset_type": dataset, "dataset_name": str(metrics["dataset"])}
    for key in [key for key in _SCORES if key in metrics]:
        value, how = metrics[key], {name: metrics[name] for name in _MADE_WITH if metrics.get(name) is not None}
        if key.startswith("importance"):
            how["importance_samples"] = metrics["importance_samples"]
        if isinstance(value, Mapping):
            how |= {name: value[name] for name in _DISTANCE_MADE_WITH} | {"temperature": str(value["temperature"])}
            if value.get("prior") == "reweighted":
                how["prior"] = "reweighted"
            # Samples are compared with training images, whatever the part that was evaluated.
            how.pop("num_images", None)
            value = value["value"]
        names = {"metric_type": key.removesuffix("_nats"), "metric_name": key.replace("_", " ")}
        names |= {"dataset_split": metrics["split"], "metric_value": _finite(value), "metric_args": how}
        yield EvalResult(**place, **names)


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value
