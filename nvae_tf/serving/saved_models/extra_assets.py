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

from nvae_tf.config import config_to_dict
from nvae_tf.files import atomic_write
from nvae_tf.serving.latent_layout import latent_layout
from nvae_tf.serving.saved_models.file_digests import write_digests
from nvae_tf.serving.saved_models.run_source import Origin
from nvae_tf.serving.saved_models.verification import Record
from nvae_tf.serving.signatures import Signatures

FOLDER = "assets.extra"
# The name that TensorFlow Serving looks for.
_WARM_UP = "tf_serving_warmup_requests"


def write_all(
    export: pathlib.Path,
    model_name: str,
    signatures: Signatures,
    record: Record,
    origin: Origin,
    rounding: Mapping[str, Any],
) -> None:
    """Makes the folder of an export, and all that is in it.

    Args:
      export: the version's folder.
      model_name: the model's name on a server.
      signatures: of the model.
      record: what it gives.
      origin: where the weights come from.
      rounding: what storing them has changed.
    """
    folder = export / FOLDER
    folder.mkdir()
    settings = origin.settings or {"model": config_to_dict(signatures.model.config)}
    _write_json(folder / "config.json", settings)
    _write_json(folder / "latents.json", latent_layout(signatures.latent_shapes))
    _write_json(folder / "source.json", {**origin.source, **rounding, **_versions()})
    if origin.scores is not None:
        _write_json(folder / "evaluation.json", origin.scores)
    _write_signatures(folder, signatures, record)
    _write_warm_up(folder, model_name, record)
    record.write(export)
    write_digests(export)


def _versions() -> dict[str, str | None]:
    return {
        "nvae_tf": importlib.metadata.version("nvae_tf") if _is_installed() else None,
        "git_revision": git_revision(),
        "tensorflow": tf.__version__,
    }


def _write_signatures(folder: pathlib.Path, signatures: Signatures, record: Record) -> None:
    """`signatures.json`: what each of them does, takes and gives."""
    described = {}
    for name in signatures.names:
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


def _write_warm_up(folder: pathlib.Path, model_name: str, record: Record) -> None:
    """One request of one row for every signature: a server runs them before it serves the version."""
    with tf.io.TFRecordWriter(str(folder / _WARM_UP)) as writer:
        for signature in dict.fromkeys(name.partition("/")[0] for name in record.inputs):
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


def git_revision() -> str | None:
    """That of this code, with "-dirty" where files have been changed; None where it is no checkout."""
    place = pathlib.Path(__file__).resolve().parents[3]
    if not (place / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(place), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _dtype(dtype: Any) -> str:
    return "string" if dtype.kind == "S" else dtype.name


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(dict(content), indent=2, allow_nan=False) + "\n")
