"""The files that TensorFlow Serving needs to serve all exports of a folder, in Docker or on Kubernetes.

`templates/` has these files but the explorer. A batch has one status: where the graph ends with an error for a row, all
requests of the batch fail. So they are batched only where every signature has an output `valid`, a verdict on each row.

The explorer is a page, in `explorer/`, that shows in a browser what a served model has learned, over REST alone. Facts
about a model that REST lacks are in `explorer.json` beside the page, made from the export's `assets.extra/`.
"""

import base64
import json
import math
import os
import pathlib
import re
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from nvae_tf import errors, schemas
from nvae_tf.config import MOST_CHANNELS, MOST_CLASSES, check_choice
from nvae_tf.files import atomic_write, check_writable
from nvae_tf.serving.outputs import ASSETS, BATCH_ROWS, EXAMPLES, LARGEST_VERSION, unchecked_reason

# The newest release whose image is known to exist (github.com/tensorflow/serving/issues/4129, August 2026).
SERVING_IMAGE = "tensorflow/serving:2.20.0"
# A release older than the TensorFlow that writes exports: its graph version, and the operations (None) and attributes
# of operations that only the newer TensorFlow has, from a comparison of both packages.
_RELEASE, _WRITTEN_BY, _GRAPH_VERSION = "2.20", "2.21", 2288
_NEWER = {"DecodeJxl": None, "TensorListGetItem": "Tshape"}
# The most rows of a request, and the bytes of a row, of an export whose `source.json` has none.
_LIMITS = {"most_rows": BATCH_ROWS, "bytes_of_row": 2**20}
_SOURCE = dict.fromkeys(_LIMITS, schemas.Field("whole number", (), 1, 2**40, optional=True))
# Names of models and labels become parts of addresses, `/v1/models/NAME/labels/LABEL`, and of Kubernetes.
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
PAGE = "explorer.html"
# What the page needs of `config.json` and `latents.json`.
_SIZES = ("image_height", "image_width", "image_channels")
_MODEL = dict.fromkeys(_SIZES, schemas.Field("whole number", (), 1, 2**16)) | {
    "num_bits": schemas.Field("whole number", (), 1, 16),
    "num_classes": schemas.Field("whole number", (), 0, MOST_CLASSES, optional=True),
}
_DATA = {"display_channels": schemas.Field("whole number", (None,), 0, MOST_CHANNELS - 1, optional=True)}
_CONFIG = {"model": schemas.Field(_MODEL), "data": schemas.Field(_DATA, optional=True)}
_LAYOUT = {"shapes": schemas.LATENT_SHAPES["latent_shapes"]}


def write_server_files(models: pathlib.Path, output: pathlib.Path, image: str = SERVING_IMAGE, labels: str = "") -> str:
    """Writes the files for all exports `models/NAME/VERSION/saved_model.pb` into `output`; returns a text about it.

    Files of the same names are replaced, others are left alone. Nothing is written where there are no exports, or a
    version is damaged, whether it would be served or not.
    """
    tag, versions = _tag(image), find_exports(models)
    labeled = labels_of_versions(versions, labels)
    check_writable(output, f"--output={output}")
    lines = [unchecked_reason(models / name / str(number)) for name in versions for number in versions[name]]
    # The versions with a label are loaded; without labels the newest.
    served = {name: sorted(set(labeled[name].values())) or versions[name][-1:] for name in versions}
    folders = [models / name / str(number) for name in served for number in served[name]]
    saved = {folder: _saved_model(folder) for folder in folders}
    lines.append(_operations_text(saved, tag))
    definitions = [(folder, *item) for folder, export in saved.items() for item in export.signature_def.items()]
    named = [definition for definition in definitions if not definition[1].startswith("__")]
    if older := sorted({str(folder) for folder, _, signature in named if "valid" not in signature.outputs}):
        reason = "an older export, without the output `valid`: a row that it refuses would fail its batch"
        lines.insert(0, f"Requests are not batched: {', '.join(older)}: {reason}.")
    # Relative, so that both folders can move. JSON's strings and lists are YAML's, and `$` would begin a variable.
    path = pathlib.PurePath(os.path.relpath(models.resolve(), output.resolve())).as_posix().replace("$", "$$")
    values = _limits(folders) | {"served": served, "labeled": labeled, "image": image, "batching": not older}
    values["models"] = json.dumps(path if path.startswith(".") else f"./{path}", ensure_ascii=False)
    values["health_check"] = ["bash", "/serving/health_check.sh", *served]
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("nvae_tf.serving"), keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    files = {name: templates.get_template(name).render(values) for name in templates.list_templates()}
    if older:
        del files["batching_parameters.txt"]
    # Before the other files: it reads what may be damaged.
    newest = {name: models / name / str(numbers[-1]) for name, numbers in served.items()}
    explorer = _write_explorer(newest, output / "explorer")
    for name, text in files.items():
        atomic_write(output / name, text)
    start = f"To start the server: cd {output} && docker compose up --detach --wait"
    return "\n".join(filter(None, [*lines, f"Wrote {', '.join(files)} to {output}.", explorer, start]))


def _tag(image: str) -> str:
    """Returns the tag of an image, '' where it has only a digest; ValueError unless the image is one release."""
    match = re.fullmatch(r"[\w./-]+(?::\d+/[\w./-]+)?(?::(?P<tag>[\w.-]+))?(?P<digest>@sha256:[0-9a-f]{64})?", image)
    tag = match["tag"] or "" if match else ""
    if not match or (not match["digest"] and tag.split("-")[0] in ("", "latest", "nightly")):
        raise ValueError(f"--image={image}: name one release by its tag or digest, as {SERVING_IMAGE}")
    return tag


def _limits(folders: Sequence[pathlib.Path]) -> dict[str, int]:
    """Returns limits to begin with: memory is 1 GiB, four times the exports, and the rows that run at once."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    batch_size, largest_row = BATCH_ROWS, 1
    for file in [folder / ASSETS / "source.json" for folder in folders]:
        with errors.wrap_read_errors(f"{file}: damaged (", "); copy the export anew"):
            limits = _LIMITS | (schemas.parsed(file.read_bytes(), _SOURCE) if file.is_file() else {})
        batch_size = min(batch_size, limits["most_rows"])
        largest_row = max(largest_row, limits["bytes_of_row"])
    row_bytes = cores * batch_size * largest_row
    file_bytes = sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file())
    memory_mib = 1024 + math.ceil((4 * file_bytes + row_bytes) / 2**20)
    return {"cores": cores, "max_batch_size": batch_size, "memory_mib": memory_mib}


def _write_explorer(exports: Mapping[str, pathlib.Path], output: pathlib.Path) -> str:
    """Writes the explorer for the exports that are models of this project; returns a line about it, '' without any."""
    own = {name: folder for name, folder in exports.items() if (folder / ASSETS / "latents.json").is_file()}
    if not own:
        return ""
    write_explorer(output, {name: explorer_facts(folder) for name, folder in own.items()})
    address = f"http://localhost:8000/{PAGE}?server=http://localhost:8501"
    return f"To explore, with SERVING_CORS=true for the server: python -m http.server -d {output} 8000, then {address}"


def find_exports(models: pathlib.Path) -> dict[str, list[int]]:
    """Returns the versions, oldest first, of each model of a folder `models/NAME/VERSION/saved_model.pb`.

    ValueError where TensorFlow Serving would take something else for a version.
    """
    if any(models.glob("[0-9]*/saved_model.pb")):
        raise ValueError(f"{models}: holds the versions of one model; give the folder above it, {models.parent}")
    exports = {}
    for folder in sorted(models.glob("[!.]*/")):
        # The server reads names so, of files too: ` 7`, `+7` and `007` are version 7.
        entries = [file for file in folder.iterdir() if re.fullmatch(r"\s*[+-]?[0-9]+\s*", file.name, re.ASCII)]
        for entry in entries:
            is_usual = entry.name == str(int(entry.name)) and 0 <= int(entry.name) <= LARGEST_VERSION
            if not is_usual or not (entry / "saved_model.pb").is_file():
                reason = "TensorFlow Serving would take it for a version, and it is none"
                raise ValueError(f"{entry}: {reason}; copy the export anew, or give it a name that is not a number")
        if entries and not re.fullmatch(_NAME, folder.name):
            raise ValueError(f"{folder}: rename it; a model's name has letters, digits, '_', '-', '.'")
        if entries:
            exports[folder.name] = sorted(int(entry.name) for entry in entries)
    if not exports:
        raise FileNotFoundError(f"{models}: no export in it; nvae-export --output={models}/NAME makes one")
    return exports


def labels_of_versions(versions: Mapping[str, Sequence[int]], labels: str) -> dict[str, dict[str, int]]:
    """Returns the labels of each model's versions: `digits:stable=3,digits:canary=4`, '' for none.

    `auto` gives every model two: canary is the newest version, stable the newest but one, if there is one.
    """
    if labels == "auto":
        newest = {name: numbers[-2:] for name, numbers in versions.items()}
        return {name: {"stable": pair[0], "canary": pair[-1]} for name, pair in newest.items()}
    labeled = {name: {} for name in versions}
    for entry in filter(None, labels.split(",")):
        match = re.fullmatch(rf"([^:=]+):({_NAME})=([0-9]+)", entry)
        if match:
            check_choice(f"--labels={entry}: the model", match[1], versions)
        if not match or int(match[3]) not in versions[match[1]] or match[2] in labeled[match[1]]:
            there = "; ".join(f"{name} has {', '.join(map(str, numbers))}" for name, numbers in versions.items())
            raise ValueError(f"--labels: {entry!r} must be MODEL:LABEL=VERSION, a new label and a version ({there})")
        labeled[match[1]][match[2]] = int(match[3])
    return labeled


def _saved_model(folder: pathlib.Path) -> Any:
    """Returns the graph and the signatures of an export; ValueError for a damaged export."""
    errors.start_tensorflow_quietly()
    from tensorflow.core.protobuf import saved_model_pb2

    with errors.wrap_read_errors(f"{folder}: a damaged export (", "); copy it anew"):
        return saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs[0]


def _operations_text(exports: Mapping[pathlib.Path, Any], tag: str) -> str:
    """Returns a text about the exports' operations in the release with this tag; ValueError where it lacks some."""
    release = ".".join(tag.split("-")[0].split(".")[:2])
    if release == _WRITTEN_BY:
        return f"TensorFlow {release} has all operations of the exports: it has written them."
    if release != _RELEASE:
        return f"It is not known here whether TensorFlow {tag or 'of the image'} has all operations of the exports."
    for folder, export in exports.items():
        graph = export.graph_def
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        lacking = {node.op for node in nodes if node.op in _NEWER and _NEWER[node.op] in (None, *node.attr)}
        if lacking or graph.versions.min_consumer > _GRAPH_VERSION:
            needed = ", ".join(lacking) or f"version {graph.versions.min_consumer} of graphs"
            raise ValueError(f"{folder}: needs {needed}, which TensorFlow {release} has not")
    return f"TensorFlow {release} has all operations of the exports."


def write_explorer(folder: pathlib.Path, models: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the page into a folder, made if missing, for models by name, with the facts of `explorer_facts`.

    A model that runs in the browser also has its `file` and `step`.
    """
    # `<` as an escape of JSON: nothing in the file can be taken for HTML.
    text = json.dumps({"models": models}, separators=(",", ":")).replace("<", "\\u003c")
    folder.mkdir(parents=True, exist_ok=True)
    for file in pathlib.Path(__file__).with_name("explorer").iterdir():
        # Without the file's mode: an installed package may be read-only.
        shutil.copyfile(file, folder / file.name)
    atomic_write(folder / "explorer.json", text + "\n")


def model_facts(model: Mapping[str, Any], shapes: Sequence, shown: Sequence[int]) -> dict[str, Any]:
    """Returns what the page must know of a model with these settings; `shown` are its data's `display_channels`."""
    sizes, classes = [model[name] for name in _SIZES], list(map(str, range(model.get("num_classes", 0))))
    # The page's images have 8 bits at most.
    facts = {"image": sizes, "num_bits": min(8, model["num_bits"]), "shapes": shapes, "classes": classes}
    if shown or sizes[2] > 4:
        facts["shown"] = shown * 3 if len(shown) == 1 else shown or [0, 1, 2]
    return facts


def explorer_facts(export: pathlib.Path) -> dict[str, Any]:
    """Returns what the page must know of a version; ValueError where nvae-export has not made it, or it is damaged."""
    assets = export / ASSETS
    with errors.wrap_read_errors(f"{assets}: not written by nvae-export, or damaged (", "); copy the export anew"):
        config = schemas.parsed((assets / "config.json").read_bytes(), _CONFIG, "config.json: ")
        model, shown = config["model"], config.get("data", {}).get("display_channels", [])
        layout = schemas.parsed((assets / "latents.json").read_bytes(), _LAYOUT, "latents.json: ")
        facts = model_facts(model, layout["shapes"], shown)
        if (assets / EXAMPLES).is_file():
            images = schemas.EXAMPLES["images"]._replace(shape=("count", *facts["image"]))
            examples = schemas.read_arrays(assets / EXAMPLES, schemas.EXAMPLES | {"images": images})
            facts["examples"] = base64.b64encode(examples["images"].astype(np.uint8).tobytes()).decode()
            facts |= {name: examples[name].tolist() for name in ("labels", "classes") if name in examples}
    return facts
