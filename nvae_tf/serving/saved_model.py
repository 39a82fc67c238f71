"""Writes a model as one version of a SavedModel, and checks it before anyone can see it."""

import contextlib
import importlib.metadata
import inspect
import json
import os
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from nvae_tf.config import check_choice, config_to_dict
from nvae_tf.errors import require
from nvae_tf.files import atomic_write
from nvae_tf.layers import FoldedPass, folded_weights
from nvae_tf.models import NVAE
from nvae_tf.progress import Report
from nvae_tf.serving.outputs import WEIGHTS, new_version, write_digests
from nvae_tf.serving.signatures import Signatures
from nvae_tf.serving.verification import Record, difference, recorded, verified
from nvae_tf.training.checkpoints import checkpoint_sha256
from nvae_tf.training.loading import TrainedRun
from nvae_tf.training.run_folder import RunFolder

# Half-precision weights that change an output by more of its largest value are not published.
LARGEST_DIFFERENCE = 0.2
_ASSETS = "assets.extra"
# The name that TensorFlow Serving looks for.
_WARM_UP = "tf_serving_warmup_requests"
# Settings that name a place on this machine.
_PLACES = (("data", "path"), ("data", "cache"), ("train", "initialise_from"))


class Exported(NamedTuple):
    """A published version, and how far its outputs are from the float32 model's, relative to the largest value."""

    folder: pathlib.Path
    largest_difference: float


class Origin(NamedTuple):
    """Where a model's weights come from: the checkpoint, its evaluation and the run's settings; see `origin_of`."""

    source: Mapping[str, Any] = {}
    scores: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] | None = None


def export_saved_model(
    model: NVAE,
    output: str | os.PathLike,
    version: int = 1,
    weights: str = "float32",
    origin: Origin | None = None,
    report: Report | None = None,
) -> Exported:
    """Writes `output/version`, a SavedModel with the signatures of `nvae_tf.serving.signatures`.

    It has the weights that the signatures use, with weight normalization and batch norm folded into kernels and
    biases: no optimizer state, no Python, no path of this machine. `assets.extra/` has the settings (`config.json`),
    the signatures (`signatures.json`), the layout of a flat latent (`latents.json`), where the weights come from
    (`source.json`), the model's scores (`evaluation.json`), a warm-up request for every signature, and inputs and
    outputs of the model for `nvae-verify`.

    Before the version appears it is run in a process that can't import this package. Its numbers must agree, up to
    rounding, with the model's for float32 weights, otherwise with those of the model with rounded weights, which may
    differ from the model's by at most `LARGEST_DIFFERENCE`.

    Args:
      model: the model, with its weights.
      output: the folder of all versions; made if it is missing.
      version: a whole number from 1.
      weights: the type of stored kernels, one of `WEIGHTS`; half precision halves the file and the memory, not the
        time.
      origin: where the weights come from.
      report: where the steps of the export are shown.

    Raises:
      ValueError: the version exists, `output` holds something else than versions, or the export gives other
        numbers than the model. Nothing is written then.
    """
    require("tensorflow_serving.apis", "serving")
    check_choice("weights", weights, WEIGHTS)
    report = report or Report()
    output = pathlib.Path(output)
    folded = folded_weights(model.stacks, weights)
    # Inline: TensorFlow does not rewrite functions that are called, and fuses bias and swish with what is before them.
    signatures = Signatures(model, lambda: FoldedPass(traced_inline=True, folded=folded))
    with new_version(output, version) as folder:
        report.progress("computing the model's numbers", 0.0)
        of_model = recorded(Signatures(model))
        report.progress("tracing the signatures", 0.3)
        of_export = recorded(signatures, of_model.inputs)
        differences = {name: difference(of_export.outputs[name], array) for name, array in of_model.outputs.items()}
        worst = max(differences, key=differences.get)
        if differences[worst] > LARGEST_DIFFERENCE:
            raise ValueError(
                f"weights={weights} change too much of what the model gives: {worst} is off by "
                f"{differences[worst]:.2g} of its largest value, {LARGEST_DIFFERENCE:g} is allowed; export float32. "
                "It was not published"
            )
        report.progress("writing", 0.6)
        # A server takes no gradients: those of custom operations would be traced and stored for nothing.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        signatures.archive().write_out(str(folder), options=options, verbose=False)
        record = of_model if weights == "float32" else of_export
        rounding = {"weights": weights, "difference_from_model": differences}
        _write_assets(folder, output.resolve().name, signatures, record, origin or Origin(), rounding)
        report.progress("running the export without this package", 0.75)
        try:
            verified(folder)
        except ValueError as error:
            raise ValueError(f"{error}. It was not published") from error
    return Exported(output / str(version), max(differences.values()))


def origin_of(run: TrainedRun, workdir: pathlib.Path) -> Origin:
    """The origin of a run's model."""
    source = source_of(run)
    settings = config_to_dict(run.config)
    for group, name in _PLACES:
        settings[group][name] = None
    return Origin(source, scores_of(workdir, source), settings)


def source_of(run: TrainedRun) -> dict[str, Any]:
    """The checkpoint: its step, its kind and the SHA-256 of its files."""
    return {
        "checkpoint": "best" if pathlib.Path(run.checkpoint).parent.name == "best" else "latest",
        "step": run.step,
        "checkpoint_sha256": checkpoint_sha256(run.checkpoint),
        "running_means_of_weights": run.has_running_means,
    }


def scores_of(workdir: pathlib.Path, source: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `nvae-evaluate` has measured of this very checkpoint, or None."""
    try:
        scores = json.loads(RunFolder(workdir).evaluation_file("test").read_text())
        if scores["checkpoint_sha256"] != source["checkpoint_sha256"]:
            return None
        # The place of the data is a folder of this machine.
        return {name: value for name, value in scores.items() if name != "data"}
    except (AttributeError, OSError, ValueError, KeyError, TypeError):
        # Not measured, or edited by hand.
        return None


def _write_assets(
    export: pathlib.Path,
    model_name: str,
    signatures: Signatures,
    record: Record,
    origin: Origin,
    rounding: Mapping[str, Any],
) -> None:
    """Makes `assets.extra/` of an export; a server reads the warm-up requests alone."""
    folder = export / _ASSETS
    folder.mkdir()
    versions = {"nvae_tf": None, "git_revision": _git_revision(), "tensorflow": tf.__version__}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["nvae_tf"] = importlib.metadata.version("nvae_tf")
    contents = {
        "config": origin.settings or {"model": config_to_dict(signatures.model.config)},
        "latents": signatures.latent_layout(),
        "source": {**origin.source, **rounding, **versions},
        "signatures": _described(signatures, record),
    }
    if origin.scores is not None:
        contents["evaluation"] = origin.scores
    for name, content in contents.items():
        atomic_write(folder / f"{name}.json", json.dumps(dict(content), indent=2, allow_nan=False) + "\n")
    _write_warm_up(folder / _WARM_UP, model_name, record)
    record.write(export)
    write_digests(export)


def _described(signatures: Signatures, record: Record) -> dict[str, Any]:
    """What each signature does, takes and gives."""
    described = {}
    for name in signatures.names:
        described[name] = {
            "documentation": inspect.getdoc(getattr(signatures, name.removesuffix("_png"))),
            "pictures": "bytes of files (image_bytes)" if name.endswith("_png") else "float32 in [0, 1]",
            "inputs": {
                spec.name: {"dtype": spec.dtype.name, "shape": ["batch", *spec.shape[1:]]}
                for spec in signatures.input_specs(name)
            },
            "outputs": {},
        }
    for key, array in record.outputs.items():
        name, _, output = key.partition("/")
        dtype = "string" if array.dtype.kind == "S" else array.dtype.name
        described[name]["outputs"][output] = {"dtype": dtype, "shape": ["batch", *array.shape[1:]]}
    return described


def _write_warm_up(file: pathlib.Path, model_name: str, record: Record) -> None:
    """One request of one row for every signature: a server runs them before it serves the version."""
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    requests = {}
    for key, array in record.inputs.items():
        signature, _, argument = key.partition("/")
        request = requests.setdefault(signature, predict_pb2.PredictRequest())
        request.model_spec.name, request.model_spec.signature_name = model_name, signature
        request.inputs[argument].CopyFrom(tf.make_tensor_proto(array[:1]))
    with tf.io.TFRecordWriter(str(file)) as writer:
        for request in requests.values():
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())


def _git_revision() -> str | None:
    """The revision of this code, with "-dirty" where files have been changed; None where it is no checkout."""
    place = pathlib.Path(__file__).resolve().parents[2]
    if not (place / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(place), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
