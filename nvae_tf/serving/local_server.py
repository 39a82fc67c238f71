"""A small model server for trials and tests: TensorFlow Serving's protocols on its session loader, from Python.

Production is TensorFlow Serving's own binary, `tensorflow_model_server`, with the same folders and clients. The answers
of this server are like its answers: paths, JSON, codes. It serves the version of one folder that was the newest at the
start; it lacks labels, other and later versions, batching, classify and regress, TLS and metrics.

gRPC is grpcio's own server, HTTP is Starlette on uvicorn: a connection that waits costs no thread.
"""

import asyncio
import contextlib
import json
import pathlib
import re
import socket
import sys
import threading
import traceback
import urllib.parse
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2, prediction_log_pb2
from tensorflow_serving.apis import model_service_pb2_grpc as model_service
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_service

from nvae_tf.errors import reason_of_tensorflow, wrap_read_errors
from nvae_tf.serving import wire
from nvae_tf.serving.outputs import BATCH_ROWS, DEFAULT_SIGNATURE, newest_version
from nvae_tf.serving.transports import HTTP_STATUS
from nvae_tf.serving.wire import SIGNATURE_DEF, Arrays, SignatureSpec, array_from_message, message_as_json

MESSAGE_BYTES = 64 * 2**20
# Longer messages would not fit into the headers of an answer.
_LONGEST_MESSAGE = 1000
# Calls of gRPC that run at once, and that may wait for them; connections of HTTP.
_THREADS, _MOST_CALLS, _MOST_CONNECTIONS = 16, 1024, 8192
# A connection without a request, or with half of one, is closed after this time.
_IDLE_SECONDS = 120
# Requests that run have this time to finish when the server ends.
_SECONDS_TO_END = 5
# The field of a tensor's message that has the values of each type.
_FIELDS = {"float32": "float_val", "float64": "double_val", "int32": "int_val", "int64": "int64_val"}
_FIELDS |= {"uint8": "int_val", "bool": "bool_val", "object": "string_val"}
_CODE = grpc.StatusCode
_CODES_BY_NUMBER = {code.value[0]: code for code in _CODE}
_PATH = re.compile(
    r"/v1/models(?:/(?P<model>[^/:]+))?(?:/versions/(?P<version>\d{1,19})|/labels/(?P<label>[^/:]+))?"
    r"(?P<action>/metadata|:classify|:regress|:predict)?",
    re.IGNORECASE,
)


class RequestError(Exception):
    """A request that is answered with an error: one of gRPC's codes, and a message for the client's user."""

    def __init__(self, message: object, code: grpc.StatusCode = _CODE.INVALID_ARGUMENT):
        super().__init__(str(message)[:_LONGEST_MESSAGE])
        self.code = code


def request_error(error: Exception) -> RequestError:
    """Returns the answer to an error of any kind; TensorFlow's errors have the codes of gRPC."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, MemoryError):
        return RequestError("out of memory", _CODE.RESOURCE_EXHAUSTED)
    code = _CODES_BY_NUMBER.get(getattr(error, "error_code", None), _CODE.INTERNAL)
    message = getattr(error, "message", None)
    return RequestError(reason_of_tensorflow(message) if message else f"{type(error).__name__}: {error}", code)


class LoadedVersion:
    """A version that runs from many threads at once, each request alone.

    With `warm_up` it first runs the export's own requests, as TensorFlow Serving does: the first run of a signature
    optimizes its graph. Raises ValueError, with the cause, for a damaged or foreign folder.
    """

    def __init__(self, folder: pathlib.Path, warm_up: bool = False):
        self.number = int(folder.name)
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        logger, level = tf.get_logger(), tf.get_logger().level
        # TensorFlow would warn that this loader, which TensorFlow Serving uses, is deprecated.
        logger.setLevel("ERROR")
        try:
            loaded = tf.compat.v1.saved_model.loader.load(self._session, [tf.saved_model.SERVING], str(folder))
            self.definitions = get_model_metadata_pb2.SignatureDefMap(signature_def=dict(loaded.signature_def))
            self.specs = wire.signature_specs(message_as_json(self.definitions)[SIGNATURE_DEF])
            file = folder / "assets.extra" / "tf_serving_warmup_requests"
            for record in tf.data.TFRecordDataset([str(file)] if warm_up and file.exists() else []).as_numpy_iterator():
                request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
                arrays = {name: array_from_message(tensor) for name, tensor in request.inputs.items()}
                self.run(request.model_spec.signature_name, arrays, request.output_filter)
        except Exception as error:  # TensorFlow and protobuf have many kinds for a damaged file
            self.close()
            reason = str(request_error(error)).splitlines()[0]
            raise ValueError(f"{folder}: can't be loaded ({reason}); is the export complete?") from error
        finally:
            logger.setLevel(level)

    def close(self) -> None:
        """Frees the memory."""
        self._session.close()

    def run(self, signature: str, arrays: Arrays, outputs: Collection[str] = ()) -> Arrays:
        """Returns the named outputs (all, if none is named) of a signature (`serving_default`, if it is empty).

        Raises RequestError where there is no such signature or the inputs don't fit it, tf.errors.OpError where the
        graph refuses their values.
        """
        signature = signature or DEFAULT_SIGNATURE
        if signature not in self.specs:
            message = f'Serving signature key "{signature}" not found; the model has {", ".join(self.specs)}'
            raise RequestError(message, _CODE.FAILED_PRECONDITION)
        spec, definition = self.specs[signature], self.definitions.signature_def[signature]
        with wrap_read_errors("", "", RequestError):
            wire.check_inputs(arrays, spec)
        if unknown := [name for name in outputs if name not in spec.outputs]:
            raise RequestError(f"output tensor alias not found in signature: {unknown[0]}")
        rows = max((len(array) for array in arrays.values() if array.ndim), default=0)
        # A message of a few bytes may claim millions of rows.
        if rows > BATCH_ROWS:
            raise RequestError(f"{rows:,} rows in a request; at most {BATCH_ROWS} are taken")
        feed = {definition.inputs[name].name: array for name, array in arrays.items()}
        return self._session.run({name: definition.outputs[name].name for name in outputs or spec.outputs}, feed)


@contextlib.contextmanager
def local_server(
    name: str,
    path: pathlib.Path,
    port: int = 0,
    rest_port: int = 0,
    host: str = "127.0.0.1",
    max_message_bytes: int = MESSAGE_BYTES,
    enable_cors: bool = False,
    files: Mapping[str, pathlib.Path] | None = None,
) -> Iterator[tuple[int, int]]:
    """Serves the newest version in `path` while the block runs; gives the ports of gRPC and REST, 0 picks a free one.

    No request or gRPC answer may be larger than `max_message_bytes`. `enable_cors` lets pages of other servers ask, as
    TensorFlow Serving's `--rest_api_enable_cors_support`. Static files, by their paths as `/explorer.html`, are served
    beside REST. Raises ValueError if the version can't be loaded, OSError if a port is taken.
    """
    limits = [(f"grpc.max_{way}_message_length", max_message_bytes) for way in ("receive", "send")]
    # Otherwise a second server on the same port would quietly get half of the requests.
    options, pool = [*limits, ("grpc.so_reuseport", 0)], ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc")
    calls = grpc.server(pool, options=options, maximum_concurrent_rpcs=_MOST_CALLS)
    is_ipv6 = ":" in host
    with contextlib.ExitStack() as stack:
        try:
            grpc_port = calls.add_insecure_port(f"[{host}]:{port}" if is_ipv6 else f"{host}:{port}")
            family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
            listening = stack.enter_context(socket.create_server((host, rest_port), family=family, backlog=1024))
        except (OSError, RuntimeError) as error:
            raise OSError(f"ports {port} and {rest_port} of {host} can't be had ({error}); is one taken?") from None
        newest = LoadedVersion(newest_version(path), warm_up=True)
        model = _Model(name, stack.enter_context(contextlib.closing(newest)))
        prediction_service.add_PredictionServiceServicer_to_server(model, calls)
        model_service.add_ModelServiceServicer_to_server(model, calls)
        calls.start()
        stack.callback(lambda: calls.stop(_SECONDS_TO_END).wait())
        application = _web_application(model, max_message_bytes, enable_cors, files or {})
        stack.enter_context(_serving(application, listening))
        yield grpc_port, listening.getsockname()[1]


def _answers(answer: Callable) -> Callable:
    """Returns a call of gRPC, from a method that returns the answer or raises."""

    def call(self, request, context):
        try:
            return answer(self, request)
        except Exception as error:
            refusal = _logged(error)
        context.abort(refusal.code, str(refusal))

    return call


def _logged(error: Exception) -> RequestError:
    refusal = request_error(error)
    if refusal.code == _CODE.INTERNAL:
        traceback.print_exception(error, file=sys.stderr)
    return refusal


class _Model(prediction_service.PredictionServiceServicer, model_service.ModelServiceServicer):
    """The model, and gRPC's services without the calls for models of examples and for configuration files."""

    def __init__(self, name: str, version: LoadedVersion):
        self._name, self._version = name, version

    def checked(self, name: str, number: int | None, label: str) -> LoadedVersion:
        """Returns the version that is served; raises RequestError if the request is for another one."""
        if label:
            raise RequestError(f"Unrecognized servable version label: {label}; this server for trials has no labels")
        if name != self._name or number not in (None, self._version.number):
            which = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            served = f"this server for trials has version {self._version.number} of {self._name} alone"
            raise RequestError(f"Servable not found for request: {which}; {served}", _CODE.NOT_FOUND)
        return self._version

    def status(self, *asked: Any) -> get_model_status_pb2.GetModelStatusResponse:
        state = {"version": self.checked(*asked).number, "state": "AVAILABLE", "status": {}}
        return get_model_status_pb2.GetModelStatusResponse(model_version_status=[state])

    def _spec(self, request) -> dict[str, Any]:
        """Returns the `model_spec` of an answer; raises RequestError for another model or version."""
        asked = request.model_spec
        number = asked.version.value if asked.HasField("version") else None
        version = self.checked(asked.name, number, asked.version_label)
        return {"name": asked.name, "signature_name": asked.signature_name, "version": {"value": version.number}}

    @_answers
    def Predict(self, request):  # noqa: N802
        spec = self._spec(request)
        try:
            arrays = {name: array_from_message(tensor, MESSAGE_BYTES) for name, tensor in request.inputs.items()}
        except ValueError as error:
            raise RequestError(f"inputs: {error}") from None
        outputs = self._version.run(request.model_spec.signature_name, arrays, request.output_filter)
        messages = {name: message_from_array(array) for name, array in outputs.items()}
        return predict_pb2.PredictResponse(model_spec=spec, outputs=messages)

    @_answers
    def GetModelMetadata(self, request):  # noqa: N802
        answer = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=self._spec(request))
        if list(request.metadata_field) != [SIGNATURE_DEF]:
            raise RequestError(f"metadata_field {list(request.metadata_field)}: only {SIGNATURE_DEF!r} is known")
        answer.metadata[SIGNATURE_DEF].Pack(self._version.definitions)
        return answer

    @_answers
    def GetModelStatus(self, request):  # noqa: N802
        self._spec(request)
        return self.status(self._name, None, "")

    @_answers
    def Classify(self, request):  # noqa: N802
        raise RequestError("not offered by this server for trials; tensorflow_model_server has it", _CODE.UNIMPLEMENTED)

    Regress = MultiInference = HandleReloadConfigRequest = Classify


def _web_application(model: _Model, most_bytes: int, enable_cors: bool, files: Mapping[str, pathlib.Path]) -> Starlette:
    """Returns TensorFlow Serving's REST interface with static files by their paths."""

    async def answer(request: Request) -> Response:
        body = bytearray()
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                # A body over the limit is read to its end: a client reads no answer before it has sent all.
                async for piece in request.stream():
                    body += piece if len(body) <= most_bytes else b""
        except (ClientDisconnect, TimeoutError):
            return Response(status_code=408)  # a client that has gone sees nothing of it
        path = request.scope["raw_path"].decode("ascii", "replace")
        status, content = await run_in_threadpool(_answer, request.method, path, bytes(body))
        return Response(content, status, media_type="application/json")

    def _answer(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        try:
            if not path.lower().startswith("/v1/"):
                raise RequestError(f"Not found: {path}", _CODE.NOT_FOUND)
            if len(body) > most_bytes:
                raise RequestError(f"a body of over {most_bytes:,} bytes", _CODE.RESOURCE_EXHAUSTED)
            return 200, json.dumps(_result(model, method, path, body), separators=(",", ":")).encode()
        except Exception as error:
            refusal = _logged(error)
            return HTTP_STATUS.get(refusal.code.name, 500), json.dumps({"error": str(refusal)}).encode()

    def static_file(file: pathlib.Path) -> Callable:
        return lambda request: FileResponse(file)

    routes = [Route(path, static_file(file)) for path, file in files.items()]
    routes.append(Route("/{path:path}", answer, methods=["GET", "POST", "PUT", "DELETE", "OPTIONS"]))
    cors = {"allow_origins": ["*"], "allow_methods": ["GET", "POST"], "allow_headers": ["Content-Type"]}
    middleware = [Middleware(CORSMiddleware, **cors)]
    return Starlette(routes=routes, middleware=middleware if enable_cors else [])


def _result(model: _Model, method: str, path: str, body: bytes) -> dict[str, Any]:
    """Returns the status, the metadata or the prediction that a path of the REST interface stands for."""
    matched = _PATH.fullmatch(path)
    action = (matched["action"] or "").lower() if matched else ""
    if not matched or not matched["model"] or method != ("POST" if action.startswith(":") else "GET"):
        raise RequestError(f"Malformed request: {method} {path}")
    if action in (":classify", ":regress"):
        raise RequestError(f"{action[1:]} is not offered by this server for trials", _CODE.UNIMPLEMENTED)
    name, label = (urllib.parse.unquote(matched[group] or "") for group in ("model", "label"))
    asked = name, int(matched["version"]) if matched["version"] else None, label
    if not action:
        return message_as_json(model.status(*asked))
    version = model.checked(*asked)
    if action == ":predict":
        try:
            signature, arrays, in_rows = json_request(body, version.specs)
            return json_answer(version.run(signature, arrays), in_rows)
        except ValueError as error:
            raise RequestError(error) from None
    spec = {"name": name, "signature_name": "", "version": str(version.number)}
    return {"model_spec": spec, "metadata": {SIGNATURE_DEF: message_as_json(version.definitions)}}


def message_from_array(array: np.ndarray) -> tensor_pb2.TensorProto:
    """Returns an array as a message, value by value, as TensorFlow Serving answers and as many clients read it."""
    if array.dtype.name not in _FIELDS:
        return tf.make_tensor_proto(array)
    dtype = tf.string if array.dtype.kind == "O" else tf.as_dtype(array.dtype)
    message = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, tensor_shape=tf.TensorShape(array.shape).as_proto())
    getattr(message, _FIELDS[array.dtype.name]).extend(array.ravel().tolist())
    return message


def json_request(body: bytes, specs: Mapping[str, SignatureSpec]) -> tuple[str, Arrays, bool]:
    """Returns the signature and inputs of a predict request, and whether they are rows (`instances`, not `inputs`).

    Raises ValueError for another body, as TensorFlow Serving refuses it.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"JSON Parse error: {error}") from None
    if not isinstance(request, dict):
        raise ValueError("JSON Value: Is not object")
    signature = request.get("signature_name", "")
    if not isinstance(signature, str):
        raise ValueError("'signature_name' key must be a string value.")
    signature = signature or DEFAULT_SIGNATURE
    if signature not in specs:
        raise ValueError(f'Serving signature name: "{signature}" not found in signature def')
    keys = [key for key in ("instances", "inputs") if key in request]
    if len(keys) != 1:
        raise ValueError(f"give one of 'instances' and 'inputs', there is {' and '.join(keys) or 'none'}")
    in_rows, inputs = keys == ["instances"], specs[signature].inputs
    columns = _columns(request[keys[0]], in_rows, list(inputs))
    arrays = {}
    for name, tensor in inputs.items():
        if name not in columns:
            raise ValueError(f"Missing named input: {name} in 'inputs' object.")
        try:
            arrays[name] = wire.array_from_json(columns[name], tensor.dtype)
        except (ValueError, TypeError) as error:
            raise ValueError(f"input {name!r}: {error}") from None
    return signature, arrays, in_rows


def _columns(given: Any, in_rows: bool, names: list[str]) -> dict[str, Any]:
    """Returns the values of a predict request by input."""

    def by_name(value: Any) -> dict[str, Any]:
        # The value of a single input may stand without its name.
        return value if isinstance(value, dict) and set(value) != {wire.BASE64} else {"".join(names[:1]): value}

    if not in_rows:
        return by_name(given)
    if not isinstance(given, list) or not given:
        raise ValueError("'instances' must be a list/array with values")
    rows = [by_name(row) for row in given]
    for number, row in enumerate(rows):
        if set(row) != set(names):
            keys = ", ".join(names)
            raise ValueError(f"Failed to process element: {number} of 'instances' list; keys must be equal to: {keys}")
    return {name: [row[name] for row in rows] for name in names}


def json_answer(arrays: Arrays, in_rows: bool) -> dict[str, Any]:
    """Returns the answer to a predict request; ValueError where an output has no row for each row of the others."""
    # Outputs whose name ends so are base64, other strings are text.
    outputs = {name: wire.json_value(array, name.endswith("_bytes")) for name, array in arrays.items()}
    only = next(iter(outputs.values())) if len(outputs) == 1 else None
    if not in_rows:
        return {"outputs": outputs if only is None else only}
    lengths = {len(array) if array.ndim else None for array in arrays.values()}
    if len(lengths) > 1 or None in lengths:
        raise ValueError("an output has an inconsistent batch size; ask with 'inputs'")
    rows = [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
    return {"predictions": rows if only is None else only}


@contextlib.contextmanager
def _serving(application: Starlette, listening: socket.socket) -> Iterator[None]:
    """Answers on a socket, from a thread, while the block runs."""
    limits = {"limit_concurrency": _MOST_CONNECTIONS, "timeout_keep_alive": _IDLE_SECONDS}
    limits["timeout_graceful_shutdown"] = _SECONDS_TO_END
    server = uvicorn.Server(uvicorn.Config(application, log_level="error", lifespan="off", **limits))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="rest")
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
