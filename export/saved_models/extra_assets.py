"""What travels with an export for people and clients, in `assets.extra/`; a server reads the warm-up requests alone."""

import importlib.metadata
import inspect
import json
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from export.latent_layout import latent_layout
from export.saved_models.verification import Record
from export.signatures import SIGNATURES, Signatures
from nvae_tf.config import config_to_dict
from nvae_tf.whole_files import write_whole

FOLDER = "assets.extra"
# The name that TensorFlow Serving looks for.
_WARM_UP = "tf_serving_warmup_requests"


def write_all(
    export: pathlib.Path,
    model_name: str,
    signatures: Signatures,
    record: Record,
    source: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None,
) -> None:
    """Makes the folder of an export, and all that is in it.

    Args:
      export: the version's folder.
      model_name: the model's name on a server.
      signatures: of the model.
      record: what it gives.
      source: where the weights come from.
      evaluation: the model's scores, if they are known.
    """
    folder = export / FOLDER
    folder.mkdir()
    _write_settings(folder, signatures)
    _write_signatures(folder, signatures, record)
    _write_source(folder, source, evaluation)
    _write_warm_up(folder, model_name, record)
    record.write(export)


def _write_settings(folder: pathlib.Path, signatures: Signatures) -> None:
    """`config.json`, the model's settings, and `latents.json`, the layout of a flat latent."""
    # The model's settings alone: those of a run may name a folder of this machine.
    _write_json(folder / "config.json", {"model": config_to_dict(signatures.model.config)})
    _write_json(folder / "latents.json", latent_layout(signatures.latent_shapes))


def _write_signatures(folder: pathlib.Path, signatures: Signatures, record: Record) -> None:
    """`signatures.json`: what each of them does, takes and gives."""
    described = {}
    for name in SIGNATURES:
        documented = getattr(signatures, name.removesuffix("_png"))
        outputs = {
            key.partition("/")[2]: {"dtype": _dtype(array.dtype), "shape": ["batch", *array.shape[1:]]}
            for key, array in record.outputs.items()
            if key.partition("/")[0] == name
        }
        described[name] = {
            "documentation": inspect.getdoc(documented),
            "pictures": "bytes of files (image_bytes)" if name.endswith("_png") else "float32 in [0, 1]",
            "inputs": {
                spec.name: {"dtype": spec.dtype.name, "shape": ["batch", *spec.shape[1:]]}
                for spec in signatures.input_specs(name)
            },
            "outputs": outputs,
        }
    _write_json(folder / "signatures.json", described)


def _write_source(folder: pathlib.Path, source: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> None:
    """`source.json`, where the export comes from, and `evaluation.json`, how good the model is, if that is known."""
    versions = {
        "nvae_tf": importlib.metadata.version("nvae_tf") if _is_installed() else None,
        "git_revision": _git_revision(),
        "tensorflow": tf.__version__,
    }
    _write_json(folder / "source.json", dict(source) | versions)
    if evaluation is not None:
        # Where the data lay is a folder of this machine.
        _write_json(folder / "evaluation.json", {name: value for name, value in evaluation.items() if name != "data"})


def _write_warm_up(folder: pathlib.Path, model_name: str, record: Record) -> None:
    """One request of one row for every signature: a server runs them before it serves the version."""
    with tf.io.TFRecordWriter(str(folder / _WARM_UP)) as writer:
        for signature in SIGNATURES:
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model_name
            request.model_spec.signature_name = signature
            for key, array in record.inputs.items():
                name, _, argument = key.partition("/")
                if name == signature:
                    request.inputs[argument].CopyFrom(tf.make_tensor_proto(array[:1]))
            log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
            writer.write(log.SerializeToString())


def _is_installed() -> bool:
    try:
        importlib.metadata.distribution("nvae_tf")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _git_revision() -> str | None:
    """That of this code, with "-dirty" where files have been changed; None where it is no checkout."""
    place = pathlib.Path(__file__).resolve().parents[1]
    if not (place / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(place), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _dtype(dtype: Any) -> str:
    return "string" if dtype.kind == "S" else dtype.name


def _write_json(path: pathlib.Path, content: dict) -> None:
    write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
