"""A small model server for trials and tests: TensorFlow Serving's protocols on its session loader, from Python.

Production is TensorFlow Serving's own binary, `tensorflow_model_server`, with the same folders and clients. Paths and
JSON are the same, messages and some codes of errors are this server's own. It serves one version of one model.
"""

import asyncio
import contextlib
import json
import math
import pathlib
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2, prediction_log_pb2
from tensorflow_serving.apis import model_service_pb2_grpc as model_service
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_service

from nvae_tf.config import check
from nvae_tf.errors import reason_of_tensorflow, wrap_read_errors
from nvae_tf.serving import client as forms
from nvae_tf.serving.client import BASE64, HTTP_STATUS, SIGNATURE_DEF, STRING, Arrays, SignatureSpec, message_as_json
from nvae_tf.serving.outputs import BATCH_ROWS, DEFAULT_SIGNATURE, newest_version

MESSAGE_BYTES = 64 * 2**20
_LONGEST_REASON = 1000  # longer messages would not fit into the headers of an answer
# Calls of gRPC that run at once, and that may wait for them; connections of HTTP.
_THREADS, _MOST_CALLS, _MOST_CONNECTIONS = 16, 1024, 8192
_IDLE_SECONDS, _SECONDS_TO_END = 120, 5  # of a connection without a request; of requests that run at the end
# The field of a tensor's message that has the values of each type.
_FIELDS = {"float32": "float_val", "float64": "double_val", "int32": "int_val", "int64": "int64_val"}
_FIELDS |= {"uint8": "int_val", "bool": "bool_val", "object": "string_val"}
_CODE = grpc.StatusCode
_CODES_BY_NUMBER = {code.value[0]: code for code in _CODE}
_KINDS = {ValueError: _CODE.INVALID_ARGUMENT, FileNotFoundError: _CODE.NOT_FOUND, MemoryError: _CODE.RESOURCE_EXHAUSTED}


def refusal(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Returns gRPC's code and the message of an error of any kind; an error of the server's own is printed too."""
    code = _CODES_BY_NUMBER.get(getattr(error, "error_code", None)) or _KINDS.get(type(error), _CODE.INTERNAL)
    if code == _CODE.INTERNAL:
        traceback.print_exception(error, file=sys.stderr)
    return code, reason_of_tensorflow(str(getattr(error, "message", error)))[:_LONGEST_REASON]


def _answers(answer: Callable) -> Callable:
    """Returns a call of gRPC, from a method that returns the answer or raises."""

    def call(self, request, context):
        try:
            return answer(self, request)
        except Exception as error:
            context.abort(*refusal(error))

    return call


class LoadedModel(prediction_service.PredictionServiceServicer, model_service.ModelServiceServicer):
    """One version of a model, which runs from many threads at once, each request alone; and gRPC's services for it.

    It first runs the export's own requests, as TensorFlow Serving does: the first run of a signature optimizes its
    graph. Raises ValueError, with the cause, for a damaged or foreign folder.
    """

    def __init__(self, name: str, folder: pathlib.Path):
        self.name, self.number = name, int(folder.name)
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        self.close = self._session.close
        # It would warn that this loader, TensorFlow Serving's, is deprecated.
        tf.get_logger().setLevel("ERROR")
        try:
            loaded = tf.compat.v1.saved_model.loader.load(self._session, [tf.saved_model.SERVING], str(folder))
            self.definitions = get_model_metadata_pb2.SignatureDefMap(signature_def=dict(loaded.signature_def))
            self.specs = forms.signature_specs(message_as_json(self.definitions)[SIGNATURE_DEF])
            file = folder / "assets.extra" / "tf_serving_warmup_requests"
            for record in tf.data.TFRecordDataset([str(file)] if file.exists() else []).as_numpy_iterator():
                request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
                self.run(request.model_spec.signature_name, _input_arrays(request))
        except Exception as error:  # TensorFlow and protobuf have many kinds for a damaged file
            self.close()
            reason = reason_of_tensorflow(str(getattr(error, "message", error))).splitlines()[0]
            raise ValueError(f"{folder}: can't be loaded ({reason}); is the export complete?") from error

    def run(self, signature: str, arrays: Arrays) -> Arrays:
        """Returns all outputs of a signature; ValueError where the inputs don't fit, OpError by the graph."""
        spec, definition = self.spec(signature), self.definitions.signature_def[signature or DEFAULT_SIGNATURE]
        given = {name: array.dtype.name.replace("object", STRING) for name, array in sorted(arrays.items())}
        wanted = {name: tensor.dtype for name, tensor in spec.inputs.items()}
        check(given == wanted, f"inputs {given}: the signature takes {wanted}")
        # A message of a few bytes may claim millions of rows.
        rows = max((len(array) for array in arrays.values() if array.ndim), default=0)
        check(rows <= BATCH_ROWS, f"{rows:,} rows in a request; at most {BATCH_ROWS} are taken")
        feed = {definition.inputs[name].name: array for name, array in arrays.items()}
        return self._session.run({name: output.name for name, output in definition.outputs.items()}, feed)

    def spec(self, signature: str) -> SignatureSpec:
        """Returns the inputs and outputs of a signature; ValueError where there is none of this name."""
        name = signature or DEFAULT_SIGNATURE
        check(name in self.specs, f"no signature {name!r}; the model has {', '.join(self.specs)}")
        return self.specs[name]

    def check_is_served(self, name: str, number: int | None = None, label: str = "") -> None:
        """Raises FileNotFoundError if a request is for another model or version."""
        if label or name != self.name or number not in (None, self.number):
            served = f"this server for trials has version {self.number} of {self.name} alone"
            raise FileNotFoundError(f"model {name}, version {number}, label {label!r}: {served}")

    def status(self) -> get_model_status_pb2.GetModelStatusResponse:
        """Returns the status of the version."""
        state = {"version": self.number, "state": "AVAILABLE", "status": {}}
        return get_model_status_pb2.GetModelStatusResponse(model_version_status=[state])

    def _answer_spec(self, request) -> dict[str, Any]:
        asked = request.model_spec
        number = asked.version.value if asked.HasField("version") else None
        self.check_is_served(asked.name, number, asked.version_label)
        return {"name": asked.name, "signature_name": asked.signature_name, "version": {"value": self.number}}

    @_answers
    def Predict(self, request):  # noqa: N802
        """The outputs of a signature."""
        spec, outputs = self._answer_spec(request), self.run(request.model_spec.signature_name, _input_arrays(request))
        messages = {name: message_from_array(array) for name, array in outputs.items()}
        return predict_pb2.PredictResponse(model_spec=spec, outputs=messages)

    @_answers
    def GetModelMetadata(self, request):  # noqa: N802
        """The signatures."""
        answer = get_model_metadata_pb2.GetModelMetadataResponse(model_spec=self._answer_spec(request))
        answer.metadata[SIGNATURE_DEF].Pack(self.definitions)
        return answer

    @_answers
    def GetModelStatus(self, request):  # noqa: N802
        """The status of the version."""
        self._answer_spec(request)
        return self.status()


@contextlib.contextmanager
def local_server(
    name: str,
    path: pathlib.Path,
    port: int = 0,
    rest_port: int = 0,
    host: str = "127.0.0.1",
    enable_cors: bool = False,
    pages: pathlib.Path | None = None,
) -> Iterator[tuple[int, int]]:
    """Serves the newest version in `path` while the block runs; gives the ports of gRPC and REST, 0 picks a free one.

    `enable_cors` lets pages of other servers ask. The files of a folder `pages` are served beside REST. Raises
    ValueError if the version can't be loaded, OSError if a port is taken.
    """
    options = [(f"grpc.max_{way}_message_length", MESSAGE_BYTES) for way in ("receive", "send")]
    options.append(("grpc.so_reuseport", 0))  # otherwise a second server on a port would quietly get half the requests
    calls = grpc.server(ThreadPoolExecutor(_THREADS), options=options, maximum_concurrent_rpcs=_MOST_CALLS)
    family, place = (socket.AF_INET6, f"[{host}]") if ":" in host else (socket.AF_INET, host)
    with contextlib.ExitStack() as stack:
        try:
            grpc_port = calls.add_insecure_port(f"{place}:{port}")
            listening = stack.enter_context(socket.create_server((host, rest_port), family=family, backlog=1024))
        except (OSError, RuntimeError) as error:
            raise OSError(f"ports {port} and {rest_port} of {host} can't be had ({error}); is one taken?") from None
        model = LoadedModel(name, newest_version(path))
        stack.callback(model.close)
        prediction_service.add_PredictionServiceServicer_to_server(model, calls)
        model_service.add_ModelServiceServicer_to_server(model, calls)
        calls.start()
        stack.callback(lambda: calls.stop(_SECONDS_TO_END).wait())
        limits = {"limit_concurrency": _MOST_CONNECTIONS, "timeout_keep_alive": _IDLE_SECONDS}
        limits |= {"timeout_graceful_shutdown": _SECONDS_TO_END, "log_level": "error", "lifespan": "off"}
        limits["log_config"] = None  # Uvicorn's own would close the log handlers of this process, and their files
        web = uvicorn.Server(uvicorn.Config(_web_application(model, enable_cors, pages), **limits))
        thread = threading.Thread(target=web.run, kwargs={"sockets": [listening]})
        thread.start()
        stack.callback(thread.join)
        stack.callback(setattr, web, "should_exit", True)
        yield grpc_port, listening.getsockname()[1]


def _input_arrays(request: predict_pb2.PredictRequest) -> Arrays:
    """Returns the inputs of a request, strings as object arrays of bytes; ValueError for a damaged message."""
    arrays = {}
    for name, message in request.inputs.items():
        shape = [dimension.size for dimension in message.tensor_shape.dim]
        with wrap_read_errors(f"input {name}: a tensor of shape {shape} can't be read (", ")"):
            dtype = np.dtype(tf.as_dtype(message.dtype).as_numpy_dtype)
            # A message of a few bytes may claim any shape.
            if message.tensor_shape.unknown_rank or not 0 <= math.prod(shape) * dtype.itemsize <= MESSAGE_BYTES:
                raise ValueError(f"no shape, or over {MESSAGE_BYTES:,} bytes")
            arrays[name] = tf.make_ndarray(message)
    return arrays


def message_from_array(array: np.ndarray) -> tensor_pb2.TensorProto:
    """Returns an array as a message, value by value, as TensorFlow Serving answers and as many clients read it."""
    if array.dtype.name not in _FIELDS:
        return tf.make_tensor_proto(array)
    dtype = tf.string if array.dtype.kind == "O" else tf.as_dtype(array.dtype)
    message = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, tensor_shape=tf.TensorShape(array.shape).as_proto())
    getattr(message, _FIELDS[array.dtype.name]).extend(array.ravel().tolist())
    return message


def _endpoint(model: LoadedModel, answer: Callable[[bytes], dict[str, Any]]) -> Callable:
    """Returns an endpoint of the web application that gives JSON, made from the body of a request."""

    def result(parts: Mapping[str, Any], body: bytes) -> tuple[int, bytes]:
        try:
            if len(body) > MESSAGE_BYTES:
                raise MemoryError(f"a body of over {MESSAGE_BYTES:,} bytes")
            model.check_is_served(parts["model"], parts.get("version"), parts.get("label", ""))
            return 200, json.dumps(answer(body), separators=(",", ":")).encode()
        except Exception as error:
            code, message = refusal(error)
            return HTTP_STATUS.get(code.name, 500), json.dumps({"error": message}).encode()

    async def endpoint(request: Request) -> Response:
        body = bytearray()
        try:
            # A body over the limit is read to its end: a client reads no answer before it has sent all.
            async with asyncio.timeout(_IDLE_SECONDS):
                async for piece in request.stream():
                    body += piece if len(body) <= MESSAGE_BYTES else b""
        except (ClientDisconnect, TimeoutError):
            return Response(status_code=408)  # nobody sees it
        status, content = await run_in_threadpool(result, request.path_params, bytes(body))
        return Response(content, status, media_type="application/json")

    return endpoint


def _web_application(model: LoadedModel, enable_cors: bool, pages: pathlib.Path | None) -> Starlette:
    """Returns TensorFlow Serving's REST interface, and the files of a folder."""

    def predict(body: bytes) -> dict[str, Any]:
        signature, arrays, in_rows = json_request(body, model)
        return json_answer(model.run(signature, arrays), in_rows)

    def metadata(body: bytes) -> dict[str, Any]:
        spec = {"name": model.name, "signature_name": "", "version": str(model.number)}
        return {"model_spec": spec, "metadata": {SIGNATURE_DEF: message_as_json(model.definitions)}}

    def not_found(request: Request, error: HTTPException) -> Response:
        return JSONResponse({"error": f"{request.method} {request.url.path}: {error.detail}"}, error.status_code)

    routes: list[Any] = []
    for chosen in ("", "/versions/{version:int}", "/labels/{label}"):
        place = f"/v1/models/{{model}}{chosen}"
        routes.append(Route(f"{place}:predict", _endpoint(model, predict), methods=["POST"]))
        routes.append(Route(f"{place}/metadata", _endpoint(model, metadata)))
        routes.append(Route(place, _endpoint(model, lambda body: message_as_json(model.status()))))
    if pages is not None:
        routes.append(Mount("/", StaticFiles(directory=pages)))
    cors = {"allow_origins": ["*"], "allow_methods": ["GET", "POST"], "allow_headers": ["Content-Type"]}
    middleware = [Middleware(CORSMiddleware, **cors)] if enable_cors else []
    return Starlette(routes=routes, middleware=middleware, exception_handlers={HTTPException: not_found})


def json_request(body: bytes, model: LoadedModel) -> tuple[str, Arrays, bool]:
    """Returns the signature and inputs of a predict request, and whether they are rows; ValueError for other bodies."""
    with wrap_read_errors("the body is no JSON (", ")"):
        request = json.loads(body)
    keys = {"instances", "inputs"} & request.keys() if isinstance(request, dict) else set()
    check(len(keys) == 1, "the body must be an object with one of 'instances' and 'inputs'")
    signature, in_rows = str(request.get("signature_name", "")), keys == {"instances"}
    specs, given = model.spec(signature).inputs, request[keys.pop()]

    def by_name(value: Any) -> dict[str, Any]:
        # The value of a single input may stand without its name.
        return value if isinstance(value, dict) and set(value) != {BASE64} else {"".join([*specs][:1]): value}

    if in_rows:
        rows = [by_name(row) for row in given] if isinstance(given, list) else []
        if not rows or any(row.keys() != specs.keys() for row in rows):
            raise ValueError(f"'instances' must be a list of rows, each with {', '.join(specs)}")
        columns = {name: [row[name] for row in rows] for name in specs}
    else:
        columns = by_name(given)
    arrays = {}
    for name in specs.keys() & columns.keys():
        with wrap_read_errors(f"input {name!r}: ", ""):
            arrays[name] = forms.json_array(columns[name], specs[name].dtype)
    return signature, arrays, in_rows


def json_answer(arrays: Arrays, in_rows: bool) -> dict[str, Any]:
    """Returns the answer to a predict request; ValueError where an output has no row for each row of the others."""
    # Outputs whose name ends so are base64, other strings are text.
    outputs = {name: forms.json_value(array, name.endswith("_bytes")) for name, array in arrays.items()}
    only = next(iter(outputs.values())) if len(outputs) == 1 else None
    if not in_rows:
        return {"outputs": outputs if only is None else only}
    if len({array.shape[:1] or None for array in arrays.values()} | {None}) != 2:
        raise ValueError("an output has no row for each row of the others; ask with 'inputs'")
    rows = [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
    return {"predictions": rows if only is None else only}
