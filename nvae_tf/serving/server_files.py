"""The files that TensorFlow Serving needs to serve all exports of a folder in Docker.

`templates/` has those that do not depend on measurements or versions. The batching parameters are fitted to how long
batches of the exports take. The server collects requests to one signature until they are `max_execution_batch_size`
rows or the first has waited `batch_timeout_micros`, and runs them as one batch. A request of more rows is split, as
long as it has no more than `max_batch_size`. There are no `allowed_batch_sizes`: batches would be padded to one of
them, on a CPU a padded row takes as long as any, and the server's code disagrees with itself on what the last of them
must be where requests are split.
"""

import contextlib
import datetime
import json
import math
import os
import pathlib
import platform
import re
import statistics
import time
import typing
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from google.protobuf import text_format

from nvae_tf.errors import first_line, require, start_tensorflow_quietly
from nvae_tf.files import atomic_write
from nvae_tf.serving.client import nearest

if typing.TYPE_CHECKING:
    from nvae_tf.serving.served_versions import LoadedVersion

# The release whose TensorFlow, 2.21, is the one that writes the exports.
SERVING_IMAGE = "tensorflow/serving:2.21.0"
BATCHING_FILE = "batching_parameters.txt"
AUTOMATIC_LABELS = "auto"
# A batch is doubled as long as that gives so much more throughput: a larger one costs every request latency.
LEAST_GAIN = 0.10
# The part of the time it takes alone for which a request may wait for others.
WAIT_FRACTION = 0.20
# A queue that takes longer makes clients give up: the server refuses at once instead.
LONGEST_QUEUE_SECONDS = 10.0
MOST_ENQUEUED = 1000
# A request may have so many rows, and the queue has place for two such, however long they take.
MOST_ROWS = 64
_BATCHES = (1, 2, 4, 8, 16, 32, MOST_ROWS)
# A median is over so many runs; over fewer, not below the least, once they have taken so long.
_MOST_RUNS, _LEAST_RUNS, _ENOUGH_SECONDS = 25, 3, 2.0
# The usual signature of requests to a generative model.
_USUAL_SIGNATURE = "sample"
# Names of models and labels become parts of addresses, `/v1/models/NAME/labels/LABEL`.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class ServedExports(NamedTuple):
    """One model of the folder: its versions, oldest first, and the labels of some of them."""

    name: str
    versions: tuple[int, ...]
    labels: dict[str, int]

    @property
    def served(self) -> tuple[int, ...]:
        """The versions that are loaded: those with a label; without labels the newest."""
        return tuple(sorted(set(self.labels.values()))) or self.versions[-1:]


class BatchTiming(NamedTuple):
    """The median time of one batch."""

    rows: int
    seconds: float


class BatchingParameters(NamedTuple):
    """The message of that name in tensorflow_serving/servables/tensorflow/session_bundle_config.proto."""

    max_batch_size: int
    max_execution_batch_size: int
    batch_timeout_micros: int
    max_enqueued_batches: int
    num_batch_threads: int


def write_server_files(
    models: pathlib.Path,
    output: pathlib.Path,
    image: str = SERVING_IMAGE,
    labels: str = "",
    measure: bool = True,
    longest_batch_seconds: float = 1.0,
) -> str:
    """Writes the files for all exports `models/NAME/VERSION/saved_model.pb` into `output`; returns a text about it.

    Files of the same names are replaced, others are left alone. Without `measure` the batching parameters that are
    there are used, or else requests are not batched. Nothing is written where there are no exports, or one can't be
    run.
    """
    jinja2 = require("jinja2", "serving")
    match = re.fullmatch(r"[\w./-]+(?::\d+/[\w./-]+)?(?::(?P<tag>[\w.-]+))?(?P<digest>@sha256:[0-9a-f]{64})?", image)
    tag, digest = (match["tag"] or "", match["digest"]) if match else ("", None)
    if not digest and (not tag or tag.split("-")[0] in ("latest", "nightly")):
        raise ValueError(f"--image={image}: name one release by its tag or digest, as {SERVING_IMAGE}")
    exports = with_labels(find_exports(models), labels)
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output={output}: a file; name a folder")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    kept = not measure and (output / BATCHING_FILE).is_file()
    names = [model.name for model in exports]
    # JSON's strings and lists are YAML's, and `$` would begin a variable. Relative, so that both folders can move.
    path = pathlib.PurePath(os.path.relpath(models.resolve(), output.resolve())).as_posix()
    source = json.dumps((path if path.startswith(".") else f"./{path}").replace("$", "$$"), ensure_ascii=False)
    values = {
        "names": names,
        "image": image,
        "batching": measure or kept,
        "labels": any(model.labels for model in exports),
        "cores": cores,
        "models": source,
        "health_check": json.dumps(["CMD", "bash", "/serving/health_check.sh", *names]),
    }
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("nvae_tf.serving"), keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    files = {"models.config": _models_config(exports)}
    files |= {name: templates.get_template(name).render(values) for name in templates.list_templates()}
    if measure:
        files[BATCHING_FILE], done = _measured_batching(models, exports, cores, longest_batch_seconds)
    else:
        done = f"{BATCHING_FILE}: {'the one that is there is used' if kept else 'none, so requests are not batched'}."
    output.mkdir(parents=True, exist_ok=True)
    replaced = [name for name in files if (output / name).exists()]
    for name, text in files.items():
        atomic_write(output / name, text)
    lines = [done, f"Wrote {', '.join(files)} to {output}."]
    lines += [f"Replaced what was there of {', '.join(replaced)}."] if replaced else []
    return "\n".join([*lines, f"To start the server: cd {output} && docker compose up --detach --wait"])


def find_exports(models: pathlib.Path) -> list[ServedExports]:
    """The models of a folder `models/NAME/VERSION/saved_model.pb`, by name."""
    if not models.is_dir():
        raise FileNotFoundError(f"{models}: no such folder; give one that holds NAME/VERSION/saved_model.pb")
    if _versions(models):
        raise ValueError(f"{models}: holds the versions of one model; give the folder above it, {models.parent}")
    folders = sorted(folder for folder in models.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    found = [ServedExports(folder.name, versions, {}) for folder in folders if (versions := _versions(folder))]
    if not found:
        raise FileNotFoundError(f"{models}: no export in it; nvae-export --output={models}/NAME makes one")
    for model in found:
        if not _NAME.fullmatch(model.name):
            raise ValueError(
                f"{models / model.name}: rename it; a model's name has letters, digits, '_', '-', '.' only"
            )
    return found


def _versions(folder: pathlib.Path) -> tuple[int, ...]:
    files = folder.glob("*/saved_model.pb")
    return tuple(sorted(int(file.parent.name) for file in files if re.fullmatch("[1-9][0-9]*", file.parent.name)))


def with_labels(exports: list[ServedExports], labels: str) -> list[ServedExports]:
    """Gives versions their labels: `digits:stable=3,digits:canary=4`, or none.

    `auto` gives every model two: canary is the newest version, stable the newest but one, or the newest where there is
    no other.
    """
    if labels == AUTOMATIC_LABELS:
        return [
            model._replace(labels={"stable": model.versions[-2:][0], "canary": model.versions[-1]}) for model in exports
        ]
    models = {model.name: model for model in exports}
    for entry in filter(None, labels.split(",")):
        match = re.fullmatch(r"([^:=]+):([^:=]+)=([0-9]+)", entry)
        if not match or not _NAME.fullmatch(match[2]):
            raise ValueError(f"--labels: {entry!r} is no MODEL:LABEL=VERSION, as digits:stable=3")
        name, label, version = match[1], match[2], int(match[3])
        if name not in models:
            raise ValueError(f"--labels: {entry!r}: no model {name!r}; did you mean {nearest(name, models)!r}?")
        model = models[name]
        if version not in model.versions:
            existing = ", ".join(map(str, model.versions))
            raise ValueError(f"--labels: {entry!r}: {name!r} has no version {version}; there is {existing}")
        if label in model.labels:
            raise ValueError(f"--labels: {entry!r}: {name!r} has a label {label!r} already, {model.labels[label]}")
        models[name] = model._replace(labels={**model.labels, label: version})
    return list(models.values())


def _models_config(exports: Sequence[ServedExports]) -> str:
    """The text of a ModelServerConfig, for --model_config_file.

    A model with labels is served in those versions alone: an automatic policy could unload the version of a label.
    """
    messages = require("tensorflow_serving.config.model_server_config_pb2", "serving")
    config = messages.ModelServerConfig()
    for exported in exports:
        model = config.model_config_list.config.add(
            name=exported.name, base_path=f"/models/{exported.name}", model_platform="tensorflow"
        )
        if exported.labels:
            model.model_version_policy.specific.versions.extend(exported.served)
            model.version_labels.update(exported.labels)
        else:
            model.model_version_policy.latest.num_versions = 1
    return "# A ModelServerConfig; the server reads it again when it has changed.\n" + text_format.MessageToString(
        config
    )


def _measured_batching(
    models: pathlib.Path, exports: Sequence[ServedExports], cores: int, longest_seconds: float
) -> tuple[str, str]:
    """The file for --batching_parameters_file, and the same for people; measures every version that is served."""
    timings = {}
    for name, version in [(model.name, version) for model in exports for version in model.served]:
        print(f"Measuring batches of {name}/{version} ...", flush=True)
        signature, batches = measure_batches(models / name / str(version), longest_seconds)
        timings[f"{name}/{version}, {signature}"] = batches
    parameters = fit_batching(timings, cores, longest_seconds)
    table = []
    for export, batches in timings.items():
        table += ["", export, "  rows   ms a batch   rows/s"]
        table += [f"{rows:6d} {1e3 * seconds:12.1f} {rows / seconds:8.1f}" for rows, seconds in batches]
    import tensorflow as tf

    device = "GPU" if tf.config.list_physical_devices("GPU") else "no GPU"
    machine = f"{cores} cores ({platform.machine()}, {device}), up to {_MOST_RUNS} runs"
    comments = [
        f"BatchingParameters, fitted to the median time of batches. Measured {datetime.date.today()}, {machine}:",
        *table,
        "",
        f"A batch is doubled while that gives {LEAST_GAIN:.0%} more rows/s and it takes at most {longest_seconds:g} s.",
        f"A request waits for others for {WAIT_FRACTION:.0%} of the time that it takes alone. The queue holds",
        f"{LONGEST_QUEUE_SECONDS:g} s of batches, at most {MOST_ENQUEUED}, or two of the largest requests.",
        f"A request of more rows than a batch is split; of more than {MOST_ROWS} it is refused.",
    ]
    # The package tensorflow-serving-api lacks the message, so its text is written by hand.
    fields = [f"{name} {{ value: {value} }}\n" for name, value in parameters._asdict().items()]
    fields.append("enable_large_batch_splitting { value: true }\n")
    rows, most = parameters.max_execution_batch_size, parameters.max_batch_size
    summary = f"The server will run batches of up to {rows} rows, and refuse a request of more than {most}."
    text = "".join(f"# {line}".rstrip() + "\n" for line in comments) + "".join(fields)
    return text, "\n".join([*table, "", summary])


def measure_batches(folder: pathlib.Path, longest_seconds: float) -> tuple[str, list[BatchTiming]]:
    """Runs growing batches until one takes too long or a larger one does not pay, as `largest_worthwhile` says.

    Returns:
      The signature that was run, `sample` or else the first that has images, and the timings; the last one may be
      of the batch that does not pay.

    Raises:
      ValueError: the export can't be loaded or run, or has no signature for images.
    """
    start_tensorflow_quietly()
    from nvae_tf.serving.served_versions import LoadedVersion, request_error

    try:
        with contextlib.closing(LoadedVersion(folder)) as version:
            with_images = [name for name, spec in version.specs.items() if "image" in {*spec.inputs, *spec.outputs}]
            if not with_images:
                raise ValueError("none of its signatures has an input or an output `image`")
            signature = _USUAL_SIGNATURE if _USUAL_SIGNATURE in with_images else with_images[0]
            timings: list[BatchTiming] = []
            for rows in _BATCHES:
                timings.append(_median_time(version, signature, rows))
                if largest_worthwhile(timings, longest_seconds) < rows:
                    # Another program may have been in the way: once more before larger batches are ruled out.
                    timings[-1] = min(timings[-1], _median_time(version, signature, rows))
                    if largest_worthwhile(timings, longest_seconds) < rows:
                        break
        return signature, timings
    except Exception as error:  # TensorFlow and protobuf have many kinds for a damaged file
        reason = first_line(request_error(error))
        raise ValueError(f"{folder}: its batches can't be measured ({reason}); is the export complete?") from error


def _median_time(version: "LoadedVersion", signature: str, rows: int) -> BatchTiming:
    # Inputs that every signature takes: images and temperatures of 0.5, seeds 0, 1, 2, ...
    inputs = {
        name: np.arange(rows, dtype=tensor.dtype)
        if tensor.dtype.startswith("int")
        else np.full((rows, *tensor.shape[1:]), 0.5, tensor.dtype)
        for name, tensor in version.spec(signature).inputs.items()
    }
    version.run(signature, inputs)  # the first run optimizes the graph
    seconds: list[float] = []
    while len(seconds) < _MOST_RUNS and (len(seconds) < _LEAST_RUNS or sum(seconds) < _ENOUGH_SECONDS):
        start = time.perf_counter()
        version.run(signature, inputs)
        seconds.append(time.perf_counter() - start)
    return BatchTiming(rows, statistics.median(seconds))


def largest_worthwhile(timings: Sequence[BatchTiming], longest_seconds: float) -> int:
    """The rows of the last of growing batches that each give `LEAST_GAIN` more throughput than the one before.

    The first batch has one row; no other one may take longer than `longest_seconds`.
    """
    best = timings[0]
    for rows, seconds in timings[1:]:
        if seconds > longest_seconds or rows / seconds < (1.0 + LEAST_GAIN) * best.rows / best.seconds:
            break
        best = BatchTiming(rows, seconds)
    return best.rows


def fit_batching(
    timings: Mapping[str, Sequence[BatchTiming]], cores: int, longest_seconds: float
) -> BatchingParameters:
    """Chooses the parameters for a server of all the exports, which share them, from their timings.

    The export with the smallest worthwhile batches decides on the largest batch, the fastest one on the time to wait,
    the slowest one on the length of the queue. As many batches run at once as there are cores.
    """
    largest = min(largest_worthwhile(batches, longest_seconds) for batches in timings.values())
    alone = min(batches[0].seconds for batches in timings.values())
    slowest = max(batch.seconds for batches in timings.values() for batch in batches if batch.rows <= largest)
    enqueued = min(max(cores, math.floor(LONGEST_QUEUE_SECONDS / slowest)), MOST_ENQUEUED)
    two_requests = 2 * math.ceil(MOST_ROWS / largest)
    wait = max(1, round(1e6 * WAIT_FRACTION * alone))
    return BatchingParameters(MOST_ROWS, largest, wait, max(enqueued, two_requests), cores)
