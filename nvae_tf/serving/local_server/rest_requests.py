"""The bodies of TensorFlow Serving's REST interface: rows ("instances") and columns ("inputs")."""

import json
from typing import Any, NamedTuple

import numpy as np

from nvae_tf.serving.clients.rest_values import BYTES_SUFFIX, array_of_json, json_of
from nvae_tf.serving.clients.signature_specs import SignatureSpec
from nvae_tf.serving.local_server.loaded_version import DEFAULT_SIGNATURE, LoadedVersion
from nvae_tf.serving.local_server.request_errors import invalid

ROWS, COLUMNS = "instances", "inputs"
_PREDICTIONS, _OUTPUTS = "predictions", "outputs"


class RestRequest(NamedTuple):
    """The body of a prediction: its signature, and its inputs as JSON in rows or in columns."""

    signature: str
    inputs: Any
    in_rows: bool


def read_request(body: bytes) -> RestRequest:
    """The request of a body.

    Raises:
      RequestError: the body is none.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"JSON Parse error: {error}") from None
    if not isinstance(found, dict):
        raise invalid("Request must be a JSON object")
    signature = found.get("signature_name", DEFAULT_SIGNATURE)
    if not isinstance(signature, str):
        raise invalid("'signature_name' key must be a string value.")
    given = [key for key in (ROWS, COLUMNS) if key in found]
    if len(given) != 1:
        raise invalid(f"give one of {ROWS!r} and {COLUMNS!r}, the request has {given or 'neither'}")
    return RestRequest(signature or DEFAULT_SIGNATURE, found[given[0]], given[0] == ROWS)


def answer_to(request: RestRequest, version: LoadedVersion) -> dict[str, Any]:
    """Runs a request; the answer is in rows or in columns as the request is.

    Raises:
      RequestError: the inputs don't fit the signature.
      tf.errors.OpError: the graph refuses the values.
    """
    spec = version.spec(request.signature)
    columns = _columns_of_rows(request.inputs, spec) if request.in_rows else _columns(request.inputs, spec)
    arrays = {name: _array(name, value, spec) for name, value in columns.items()}
    found = version.run(request.signature, arrays)
    return {_PREDICTIONS: _rows_of(found)} if request.in_rows else {_OUTPUTS: _columns_of(found)}


def _columns(inputs: Any, spec: SignatureSpec) -> dict[str, Any]:
    """Inputs by name; the value of a single input may stand alone."""
    is_named = isinstance(inputs, dict) and set(inputs) != {"b64"}
    return inputs if is_named else {_only_input(spec): inputs}


def _columns_of_rows(rows: Any, spec: SignatureSpec) -> dict[str, list]:
    if not isinstance(rows, list) or not rows:
        raise invalid(f"{ROWS!r} must be a list of one row at least")
    if not all(isinstance(row, dict) and set(row) != {"b64"} for row in rows):
        return {_only_input(spec): rows}
    for number, row in enumerate(rows):
        if set(row) != set(rows[0]):
            raise invalid(f"instance {number} has inputs {sorted(row)}, instance 0 has {sorted(rows[0])}")
    return {name: [row[name] for row in rows] for name in rows[0]}


def _only_input(spec: SignatureSpec) -> str:
    if len(spec.inputs) != 1:
        raise invalid(f"inputs without names; the signature has {', '.join(spec.inputs)}")
    return next(iter(spec.inputs))


def _array(name: str, value: Any, spec: SignatureSpec) -> np.ndarray:
    if name not in spec.inputs:
        raise invalid(f"no input {name!r}; the signature has {', '.join(spec.inputs)}")
    try:
        return array_of_json(value, spec.inputs[name].dtype)
    except (ValueError, TypeError) as error:
        raise invalid(f"input {name!r}: {error}") from None


def _columns_of(found: dict[str, np.ndarray]) -> Any:
    columns = {name: json_of(array, name.endswith(BYTES_SUFFIX)) for name, array in found.items()}
    return next(iter(columns.values())) if len(columns) == 1 else columns


def _rows_of(found: dict[str, np.ndarray]) -> list:
    for name, array in found.items():
        if not array.ndim or len(array) != len(next(iter(found.values()))):
            raise invalid(f"output {name!r} has no row for each instance; ask with {COLUMNS!r}")
    columns = {name: json_of(array, name.endswith(BYTES_SUFFIX)) for name, array in found.items()}
    if len(columns) == 1:
        return next(iter(columns.values()))
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
