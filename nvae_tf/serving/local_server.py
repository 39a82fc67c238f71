"""A small model server for trials and tests: TensorFlow Serving's protocols on TensorFlow's own session loader.

Production is TensorFlow Serving's own binary, `tensorflow_model_server`, with the same folders and clients.
"""

import contextlib
import json
import re
import socket
import sys
import threading
import traceback
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from nvae_tf.serving.client import BASE64, SignatureSpec, array_of_json, json_of
from nvae_tf.serving.grpc_client import SIGNATURE_DEF, array_of, message_as_json
from nvae_tf.serving.served_versions import (
    DEFAULT_SIGNATURE,
    LoadedVersion,
    RequestError,
    ServedVersions,
    invalid,
    request_error,
)

_MESSAGE_BYTES = 64 * 2**20
_THREADS = 32  # gRPC requests that run or wait for others at once
# Those in flight have so many seconds to finish when the server ends.
_SECONDS_TO_END = 5.0
# The field of a message that has the values of each type.
_FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int32": "int_val",
    "int64": "int64_val",
    "uint8": "int_val",
    "bool": "bool_val",
    "object": "string_val",
}
# Seconds after which a connection without a request is closed.
_IDLE_SECONDS = 120
_MOST_DISCARDED, _PIECE = 2**30, 2**16
_CODE = grpc.StatusCode
_HTTP = {
    _CODE.INVALID_ARGUMENT: 400,
    _CODE.FAILED_PRECONDITION: 400,
    _CODE.OUT_OF_RANGE: 400,
    _CODE.NOT_FOUND: 404,
    _CODE.RESOURCE_EXHAUSTED: 429,
    _CODE.CANCELLED: 499,
    _CODE.UNIMPLEMENTED: 501,
    _CODE.UNAVAILABLE: 503,
    _CODE.DEADLINE_EXCEEDED: 504,
}
_PATH = re.compile(
    r"/v1/models/(?P<model>[^/:]+)(?:/versions/(?P<version>\d{1,18})|/labels/(?P<label>[^/:]+))?"
    r"(?P<action>/metadata|:\w+)?"
)
# The bodies of REST: rows ("instances") or columns ("inputs"). Outputs with this ending are base64, others text.
_ROWS, _COLUMNS = "instances", "inputs"
_BYTES_SUFFIX = "_bytes"

Models = Mapping[str, ServedVersions]


class LocalServer:
    """Serves models over gRPC and REST while the block runs; those still being loaded are answered with UNAVAILABLE.

    The ports are of gRPC and of REST, 0 picks a free one, see the attributes; OSError if one is taken. The address
    `0.0.0.0` is for all of the machine's. No request or gRPC answer may be over `max_message_bytes`.
    """

    def __init__(
        self,
        models: Sequence[ServedVersions],
        port: int = 0,
        rest_port: int = 0,
        host: str = "127.0.0.1",
        max_message_bytes: int = _MESSAGE_BYTES,
    ):
        self._models = {versions.name: versions for versions in models}
        options = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            # Otherwise a second server on the same port would quietly get half of the requests.
            ("grpc.so_reuseport", 0),
        ]
        self._grpc = grpc.server(ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc"), options=options)
        services = _Services(self._models, max_message_bytes)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(services, self._grpc)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(services, self._grpc)
        try:
            self.port = self._grpc.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError:
            raise OSError(f"port {port} of {host} can't be had; is it taken?") from None
        try:
            self._rest = _RestServer((host, rest_port), self._models, max_message_bytes)
        except OSError as error:
            self._grpc.stop(None)
            raise OSError(f"port {rest_port} of {host} can't be had ({error})") from None
        self.rest_port = self._rest.server_address[1]
        self._running = contextlib.ExitStack()

    def __enter__(self) -> "LocalServer":
        for versions in self._models.values():
            self._running.enter_context(versions)
        self._grpc.start()
        threading.Thread(target=self._rest.serve_forever, args=(0.1,), name="rest", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        ended = self._grpc.stop(_SECONDS_TO_END)
        self._rest.shutdown()
        self._rest.server_close()
        ended.wait()
        self._running.close()

    def wait_until_ready(self, ended: threading.Event) -> None:
        """Waits until every model has loaded what it can, or `ended` is set.

        Raises:
          ValueError: a model has no version that can be served, or a label names a version that is not there.
        """
        for versions in self._models.values():
            while not versions.wait_until_looked(0.1):
                if ended.is_set():
                    return
            if not versions.serves():
                raise ValueError(f"--path={versions.path}: none of its versions can be served, see above")
            for label, number in versions.labels.items():
                if number not in versions.statuses():
                    raise ValueError(f"--label={label}={number}: {versions.path} has no version {number}")


def _model_named(models: Models, name: str) -> ServedVersions:
    if name not in models:
        message = f"Servable not found for request: Latest({name}); served here: {', '.join(models)}"
        raise RequestError(_CODE.NOT_FOUND, message)
    return models[name]


def _status_message(versions: ServedVersions, number: int | None, label: str):
    statuses = versions.statuses(number, label).values()
    return get_model_status_pb2.GetModelStatusResponse(model_version_status=statuses)


def _not_offered(service, request, context) -> None:
    context.abort(_CODE.UNIMPLEMENTED, "not offered by this server for trials; tensorflow_model_server has it")


class _Services(prediction_service_pb2_grpc.PredictionServiceServicer, model_service_pb2_grpc.ModelServiceServicer):
    """Both services of gRPC, without the calls for models of examples and for a server with a configuration file."""

    def __init__(self, models: Models, largest_bytes: int):
        self._models, self._largest_bytes = models, largest_bytes

    def Predict(self, request, context):  # noqa: N802
        return _answered(context, lambda: self._predict(request, context))

    def GetModelMetadata(self, request, context):  # noqa: N802
        return _answered(context, lambda: self._metadata(request))

    def GetModelStatus(self, request, context):  # noqa: N802
        spec = request.model_spec
        return _answered(
            context, lambda: _status_message(_model_named(self._models, spec.name), *_version_and_label(spec))
        )

    Classify = Regress = MultiInference = HandleReloadConfigRequest = _not_offered

    def _predict(self, request, context) -> predict_pb2.PredictResponse:
        spec = request.model_spec
        with _model_named(self._models, spec.name).using(*_version_and_label(spec)) as version:
            if not context.is_active():
                raise RequestError(_CODE.CANCELLED, "the client has gone")
            try:
                arrays = {name: array_of(message, self._largest_bytes) for name, message in request.inputs.items()}
            except ValueError as error:
                raise invalid(f"inputs: {error}") from None
            found = version.run(spec.signature_name, arrays, request.output_filter)
            answer = predict_pb2.PredictResponse()
            _set_version(answer.model_spec, spec, version.number)
        for name, array in found.items():
            answer.outputs[name].CopyFrom(_tensor_in_fields(array))
        return answer

    def _metadata(self, request) -> get_model_metadata_pb2.GetModelMetadataResponse:
        if list(request.metadata_field) != [SIGNATURE_DEF]:
            raise invalid(f"metadata_field {list(request.metadata_field)}: only {SIGNATURE_DEF!r} is known")
        spec = request.model_spec
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        with _model_named(self._models, spec.name).using(*_version_and_label(spec)) as version:
            _set_version(answer.model_spec, spec, version.number)
            answer.metadata[SIGNATURE_DEF].Pack(version.definitions)
        return answer


def _version_and_label(spec: model_pb2.ModelSpec) -> tuple[int | None, str]:
    return spec.version.value if spec.HasField("version") else None, spec.version_label


def _set_version(answered: model_pb2.ModelSpec, asked: model_pb2.ModelSpec, number: int) -> None:
    answered.name, answered.signature_name = asked.name, asked.signature_name
    answered.version.value = number


def _tensor_in_fields(array: np.ndarray) -> tensor_pb2.TensorProto:
    """The array value by value, as TensorFlow Serving answers by default and as many clients read it."""
    if array.dtype.name not in _FIELDS:
        return tf.make_tensor_proto(array)
    dtype = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
    message = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, tensor_shape=tf.TensorShape(array.shape).as_proto())
    getattr(message, _FIELDS[array.dtype.name]).extend(array.ravel().tolist())
    return message


def _answered(context, answer: Callable):
    try:
        return answer()
    except Exception as error:
        refusal = _logged_error(error)
    context.abort(refusal.code, str(refusal))


def _logged_error(error: Exception) -> RequestError:
    refusal = request_error(error)
    if refusal.code == _CODE.INTERNAL:
        traceback.print_exc(file=sys.stderr)
    return refusal


class _RestServer(ThreadingHTTPServer):
    """TensorFlow Serving's REST interface; a thread for each connection."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], models: Models, largest_bytes: int):
        self.models, self.largest_bytes = models, largest_bytes
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # else the client has gone
            traceback.print_exc(file=sys.stderr)


class _Handler(BaseHTTPRequestHandler):
    server: _RestServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = _IDLE_SECONDS

    def log_message(self, *arguments) -> None:
        pass  # a line for each request would hide what matters

    def _result(self) -> dict[str, Any]:
        """What the path asks for: a status, metadata, or a prediction."""
        is_post = self.command == "POST"
        body = self._body() if is_post else b""
        matched = _PATH.fullmatch(self.path.partition("?")[0])
        action = matched["action"] if matched else None
        if is_post and action in (":classify", ":regress"):
            raise RequestError(_CODE.UNIMPLEMENTED, f"{action[1:]} is not offered by this server for trials")
        if not matched or action not in ((":predict",) if is_post else (None, "/metadata")):
            raise invalid(f"Malformed request: {self.command} {self.path}")
        name, label = (urllib.parse.unquote(matched[group] or "") for group in ("model", "label"))
        number = int(matched["version"]) if matched["version"] else None
        versions = _model_named(self.server.models, name)
        if action is None:
            return message_as_json(_status_message(versions, number, label))
        with versions.using(number, label) as version:
            if is_post:
                return _prediction(body, version)
            spec = {"name": name, "signature_name": "", "version": str(version.number)}
            return {"model_spec": spec, "metadata": {SIGNATURE_DEF: message_as_json(version.definitions)}}

    def _body(self) -> bytes:
        """Reads the body; where that is not done, the connection can't be used again."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdecimal()) or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise invalid("Malformed request: a body needs its Content-Length")
        if int(length) > self.server.largest_bytes:
            # A client reads no answer before it has sent everything.
            self.close_connection = True
            left = min(int(length), _MOST_DISCARDED)
            while left and (piece := self.rfile.read(min(left, _PIECE))):
                left -= len(piece)
            message = f"a body of {int(length):,} bytes is over the limit of {self.server.largest_bytes:,}"
            raise RequestError(_CODE.RESOURCE_EXHAUSTED, message)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            raise invalid("Malformed request: the body ends early")
        return body

    def do_GET(self) -> None:  # noqa: N802
        try:
            code, content = 200, json.dumps(self._result()).encode()
        except (ConnectionError, TimeoutError):
            raise  # nobody is there to be answered
        except Exception as error:
            refusal = _logged_error(error)
            code, content = _HTTP.get(refusal.code, 500), json.dumps({"error": str(refusal)}).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815


def _prediction(body: bytes, version: LoadedVersion) -> dict[str, Any]:
    """Runs the signature of a REST request; the answer is in rows or in columns as the request is."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise invalid(f"JSON Parse error: {error}") from None
    if not isinstance(request, dict):
        raise invalid("Request must be a JSON object")
    signature = request.get("signature_name", "")
    if not isinstance(signature, str):
        raise invalid("'signature_name' key must be a string value.")
    given = [key for key in (_ROWS, _COLUMNS) if key in request]
    if len(given) != 1:
        raise invalid(f"give one of {_ROWS!r} and {_COLUMNS!r}, the request has {given or 'neither'}")
    signature = signature or DEFAULT_SIGNATURE
    spec, in_rows, inputs = version.spec(signature), given == [_ROWS], request[given[0]]
    if in_rows:
        columns = _columns_of_rows(inputs, spec)
    else:
        # The value of a single input may stand alone.
        columns = inputs if _is_named(inputs) else {_only_input(spec): inputs}
    found = version.run(signature, {name: _array(name, value, spec) for name, value in columns.items()})
    outputs = {name: json_of(array, name.endswith(_BYTES_SUFFIX)) for name, array in found.items()}
    is_single = len(outputs) == 1
    if not in_rows:
        return {"outputs": next(iter(outputs.values())) if is_single else outputs}
    for name, array in found.items():
        if not array.ndim or len(array) != len(next(iter(found.values()))):
            raise invalid(f"output {name!r} has no row for each instance; ask with {_COLUMNS!r}")
    rows = [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
    return {"predictions": next(iter(outputs.values())) if is_single else rows}


def _is_named(inputs: Any) -> bool:
    return isinstance(inputs, dict) and set(inputs) != {BASE64}


def _columns_of_rows(rows: Any, spec: SignatureSpec) -> dict[str, list]:
    if not isinstance(rows, list) or not rows:
        raise invalid(f"{_ROWS!r} must be a list of one row at least")
    if not all(map(_is_named, rows)):
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
