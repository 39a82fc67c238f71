"""The files that TensorFlow Serving needs to serve all exports of a folder, in Docker or on Kubernetes.

`templates/` has those that do not depend on measurements or versions. The batching parameters are fitted to how long
batches of the exports take. The server collects requests to one signature until they are `max_execution_batch_size`
rows or the first has waited `batch_timeout_micros`, and runs them as one batch. A request of more rows is split, as
long as it has no more than `max_batch_size`. There are no `allowed_batch_sizes`: batches would be padded to one of
them, on a CPU a padded row takes as long as any.

A batch has one status: where the graph ends with an error for a row, all its requests fail. So requests are batched
only where every signature has an output `valid`, which gives each row its own verdict.
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

from nvae_tf.config import check, check_choice
from nvae_tf.errors import first_line, require, start_tensorflow_quietly
from nvae_tf.files import atomic_write
from nvae_tf.serving.explorer_files import PAGE, write_explorer

if typing.TYPE_CHECKING:
    from nvae_tf.serving.loaded_version import LoadedVersion

# The newest release of which public threads say that its image exists (github.com/tensorflow/serving/issues/4129,
# August 2026).
SERVING_IMAGE = "tensorflow/serving:2.20.0"
# Of the release whose TensorFlow is older than the one that writes exports: its graph version, and what the newer one
# has that it has not, operations (None) and attributes of operations; found by comparing those of both packages.
_RELEASE, _WRITTEN_BY, _GRAPH_VERSION = "2.20", "2.21", 2288
_NEWER = {"DecodeJxl": None, "TensorListGetItem": "Tshape"}
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
# Names of models and labels become parts of addresses, `/v1/models/NAME/labels/LABEL`, and of Kubernetes.
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
    is_release = digest or (tag and tag.split("-")[0] not in ("latest", "nightly"))
    check(bool(is_release), f"--image={image}: name one release by its tag or digest, as {SERVING_IMAGE}")
    exports = with_labels(find_exports(models), labels)
    check(not output.exists() or output.is_dir(), f"--output={output}: a file; name a folder")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    batching, done = _batching(models, exports, output / BATCHING_FILE, cores, longest_batch_seconds, measure)
    # JSON's strings and lists are YAML's, and `$` would begin a variable. Relative, so that both folders can move.
    path = pathlib.PurePath(os.path.relpath(models.resolve(), output.resolve())).as_posix()
    names = [model.name for model in exports]
    folders = [models / model.name / str(version) for model in exports for version in model.served]
    known = operations_text(folders, tag)
    values = {
        "names": names,
        "image": image,
        "labels": any(model.labels for model in exports),
        "cores": cores,
        "models": json.dumps((path if path.startswith(".") else f"./{path}").replace("$", "$$"), ensure_ascii=False),
        "health_check": json.dumps(["CMD", "bash", "/serving/health_check.sh", *names]),
        "models_config": _models_config(exports),
        "batching": batching,
        "memory_mib": _memory_mib(folders),
    }
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("nvae_tf.serving"), keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    # Kubernetes has the monitoring configuration in its manifest, too.
    values["monitoring_config"] = templates.get_template("monitoring.config").render()
    files = {"models.config": values["models_config"]}
    files |= {name: templates.get_template(name).render(values) for name in templates.list_templates()}
    files |= {BATCHING_FILE: batching} if batching else {}
    output.mkdir(parents=True, exist_ok=True)
    replaced = [name for name in files if (output / name).exists()]
    for name, text in files.items():
        atomic_write(output / name, text)
    lines = [done, known, f"Wrote {', '.join(files)} to {output}."]
    lines += [f"Replaced what was there of {', '.join(replaced)}."] if replaced else []
    lines += _written_explorer(models, exports, output / "explorer")
    return "\n".join([*lines, f"To start the server: cd {output} && docker compose up --detach --wait"])


def _written_explorer(models: pathlib.Path, exports: Sequence[ServedExports], output: pathlib.Path) -> list[str]:
    """Writes the explorer for the exports that are models of this project; gives a line about it if there are some."""
    newest = {model.name: models / model.name / str(model.served[-1]) for model in exports}
    explored = {name: folder for name, folder in newest.items() if (folder / "assets.extra/latents.json").is_file()}
    if not explored:
        return []
    write_explorer(output, explored)
    address = f"http://localhost:8000/{PAGE}?server=http://localhost:8501"
    return [f"To explore, with SERVING_CORS=true for the server: python -m http.server -d {output} 8000, then {address}"]


def find_exports(models: pathlib.Path) -> list[ServedExports]:
    """The models of a folder `models/NAME/VERSION/saved_model.pb`, by name."""

    def versions_in(folder: pathlib.Path) -> tuple[int, ...]:
        files = folder.glob("*/saved_model.pb")
        return tuple(sorted(int(file.parent.name) for file in files if re.fullmatch("[1-9][0-9]*", file.parent.name)))

    if not models.is_dir():
        raise FileNotFoundError(f"{models}: no such folder; give one that holds NAME/VERSION/saved_model.pb")
    one = f"{models}: holds the versions of one model; give the folder above it, {models.parent}"
    check(not versions_in(models), one)
    folders = sorted(folder for folder in models.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    found = [ServedExports(folder.name, versions, {}) for folder in folders if (versions := versions_in(folder))]
    if not found:
        raise FileNotFoundError(f"{models}: no export in it; nvae-export --output={models}/NAME makes one")
    for model in found:
        rule = "rename it; a model's name has letters, digits, '_', '-', '.' only"
        check(bool(_NAME.fullmatch(model.name)), f"{models / model.name}: {rule}")
    return found


def with_labels(exports: list[ServedExports], labels: str) -> list[ServedExports]:
    """Gives versions their labels: `digits:stable=3,digits:canary=4`, or none.

    `auto` gives every model two: canary is the newest version, stable the newest but one, or the newest where there is
    no other.
    """
    if labels == AUTOMATIC_LABELS:
        pairs = [(model, model.versions[-2:]) for model in exports]
        return [model._replace(labels={"stable": newest[0], "canary": newest[-1]}) for model, newest in pairs]
    models = {model.name: model for model in exports}
    for entry in filter(None, labels.split(",")):
        match = re.fullmatch(r"([^:=]+):([^:=]+)=([0-9]+)", entry)
        is_entry = match and _NAME.fullmatch(match[2])
        check(bool(is_entry), f"--labels: {entry!r} is no MODEL:LABEL=VERSION, as digits:stable=3")
        name, label, version = match[1], match[2], int(match[3])
        check_choice(f"--labels={entry}: the model", name, models)
        model, there = models[name], ", ".join(map(str, models[name].versions))
        check(version in model.versions, f"--labels: {entry!r}: {name!r} has no version {version}; there is {there}")
        check(label not in model.labels, f"--labels: {entry!r}: {name!r} has a label {label!r} already")
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
    header = "# A ModelServerConfig; the server reads it again when it has changed.\n"
    return header + text_format.MessageToString(config)


def _memory_mib(folders: Sequence[pathlib.Path]) -> int:
    """A limit to begin with: 2 GiB for the server and its batches, and the exports four times.

    Weights are in memory as a file and as tensors, and of a model that is replaced both versions are.
    """
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
    return 2048 + 4 * math.ceil(sum(file.stat().st_size for file in files) / 2**20)


def operations_text(folders: Sequence[pathlib.Path], tag: str) -> str:
    """What is known of the exports' operations in the release with this tag; ValueError where it lacks some."""
    release = ".".join(tag.split("-")[0].split(".")[:2])
    if release not in (_RELEASE, _WRITTEN_BY):
        return f"It is not known here whether TensorFlow {tag.split('-')[0]} has all operations of the exports."
    start_tensorflow_quietly()
    from tensorflow.core.protobuf import saved_model_pb2

    for folder in folders if release == _RELEASE else ():
        try:
            saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        except Exception as error:  # protobuf has several kinds
            raise ValueError(f"{folder}: a damaged export ({first_line(error)}); copy it anew") from None
        for graph in (meta_graph.graph_def for meta_graph in saved.meta_graphs):
            wanted, which = graph.versions.min_consumer, f"{folder}: TensorFlow {release}"
            check(wanted <= _GRAPH_VERSION, f"{which} runs graphs of up to version {_GRAPH_VERSION}, it needs {wanted}")
            nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
            lacking = {node.op for node in nodes if node.op in _NEWER and _NEWER[node.op] in (None, *node.attr)}
            check(not lacking, f"{folder}: has operations that TensorFlow {release} has not: {', '.join(lacking)}")
    return f"TensorFlow {release} has all operations of the exports."


def _batching(
    models: pathlib.Path,
    exports: Sequence[ServedExports],
    file: pathlib.Path,
    cores: int,
    longest_seconds: float,
    measure: bool,
) -> tuple[str, str]:
    """The text of --batching_parameters_file, empty where requests are not batched, and what to say about it."""
    if not measure:
        kept = file.is_file()
        done = f"{file.name}: {'the one that is there is used' if kept else 'none, so requests are not batched'}."
        return file.read_text() if kept else "", done
    timings = {}
    for name, version in [(model.name, version) for model in exports for version in model.served]:
        print(f"Measuring batches of {name}/{version} ...", flush=True)
        signature, batches = measure_batches(models / name / str(version), longest_seconds)
        if not batches:
            reason = f"signature {signature} has no output `valid`, so a row that it refuses would fail its whole batch"
            return "", f"Requests are not batched: {name}/{version} is an older export, whose {reason}."
        timings[f"{name}/{version}, {signature}"] = batches
    parameters = fit_batching(timings, cores, longest_seconds)
    table = []
    for export, batches in timings.items():
        table += ["", export, "  rows   ms a batch   rows/s"]
        table += [f"{rows:6d} {1e3 * seconds:12.1f} {rows / seconds:8.1f}" for rows, seconds in batches]
    machine = f"{cores} cores ({platform.machine()}), up to {_MOST_RUNS} runs"
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
    return "".join(f"# {line}".rstrip() + "\n" for line in comments) + "".join(fields), "\n".join([*table, "", summary])


def measure_batches(folder: pathlib.Path, longest_seconds: float) -> tuple[str, list[BatchTiming]]:
    """Runs growing batches until one takes too long or a larger one does not pay, as `largest_worthwhile` says.

    Returns:
      The signature that was run, `sample` or else the first that has images, and the timings; the last one may be
      of the batch that does not pay. Or a signature that has no output `valid`, and none.

    Raises:
      ValueError: the export can't be loaded or run, or has no signature for images.
    """
    start_tensorflow_quietly()
    from nvae_tf.serving.loaded_version import LoadedVersion

    with contextlib.closing(LoadedVersion(folder)) as version:
        for name, spec in version.specs.items():
            if "valid" not in spec.outputs:
                return name, []
        with_images = [name for name, spec in version.specs.items() if "image" in {*spec.inputs, *spec.outputs}]
        check(bool(with_images), f"{folder}: none of its signatures has an input or an output `image`")
        signature = "sample" if "sample" in with_images else with_images[0]
        timings: list[BatchTiming] = []
        for rows in _BATCHES:
            timings.append(_median_time(version, signature, rows))
            if largest_worthwhile(timings, longest_seconds) < rows:
                # Another program may have been in the way: once more before larger batches are ruled out.
                timings[-1] = min(timings[-1], _median_time(version, signature, rows))
                if largest_worthwhile(timings, longest_seconds) < rows:
                    break
    return signature, timings


def _median_time(version: "LoadedVersion", signature: str, rows: int) -> BatchTiming:
    # Inputs that every signature takes: images and temperatures of 0.5, seeds and classes of 0.
    inputs = {
        name: np.full((rows, *tensor.shape[1:]), 0.5).astype(tensor.dtype)
        for name, tensor in version.specs[signature].inputs.items()
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
