"""The requests of `nvae_tf.serving.client` to a model server, over REST and over gRPC, and their errors.

REST starts no TensorFlow; gRPC does, for the messages of `tensorflow_serving.apis`.
"""

import contextlib
import json
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import requests

from nvae_tf.errors import require, start_tensorflow_quietly, wrap_read_errors
from nvae_tf.serving import wire
from nvae_tf.serving.wire import Arrays, SignatureSpec

# gRPC's own limit of 4 MB is a batch of 85 float images of 64x64x3.
_LARGEST_MESSAGE_BYTES = 256 * 2**20
_PIECE_BYTES = 2**20
_SERVER_FIX = "look at the server's log"


class ServingError(OSError):
    """Base of the errors between a client and a server; one line: the server, model, signature, reason and fix."""


class ModelNotFound(ServingError):
    """The server has no such model, version or label."""


class ServerNotReady(ServingError):
    """Nothing answers. The only error after which a request is sent again."""


class BadRequest(ServingError):
    """The inputs don't fit the signature, or the model refuses their values."""


class TooLarge(ServingError):
    """A message or a number of rows over a limit of the server or of the client."""


class DeadlineExceeded(ServingError):
    """The answer did not come in time."""


class ServerFailed(ServingError):
    """Everything else: an error inside the server, a broken connection, an invalid answer."""


# The HTTP status, the error and the fix of gRPC's codes; a status is read as the first code that has it.
_ERRORS = {
    "INVALID_ARGUMENT": (400, BadRequest, "correct the inputs"),
    "FAILED_PRECONDITION": (400, BadRequest, "look at the model's signatures"),
    "OUT_OF_RANGE": (400, BadRequest, "correct the inputs"),
    "NOT_FOUND": (404, ModelNotFound, "look at the server's models and versions"),
    "RESOURCE_EXHAUSTED": (429, TooLarge, "send fewer rows at once"),
    "CANCELLED": (499, ServerFailed, _SERVER_FIX),
    "UNIMPLEMENTED": (501, ServerFailed, "is it a TensorFlow Serving of this model?"),
    "UNAVAILABLE": (503, ServerNotReady, "is it running, is this the protocol's port, and has it loaded the model?"),
    "DEADLINE_EXCEEDED": (504, DeadlineExceeded, "send fewer rows at once or allow more time"),
}
HTTP_STATUS = {code: status for code, (status, *_) in _ERRORS.items()}
_CODES = {status: code for code, status in reversed(HTTP_STATUS.items())} | {413: "RESOURCE_EXHAUSTED"}


def serving_error(code: str, reason: str, advice: str = "") -> ServingError:
    """Returns the error for one of gRPC's codes, with the first line of the server's reason, cut at 400 letters."""
    _, kind, usual_advice = _ERRORS.get(code, (500, ServerFailed, _SERVER_FIX))
    first = (reason.strip().splitlines() or ["no reason given"])[0].strip()
    first = first if len(first) <= 400 else first[:400] + " ..."
    return kind(f"{first} [{code}]; {advice or usual_advice}")


def _is_this_machine(server: str) -> bool:
    host = urllib.parse.urlsplit(server if "://" in server else f"//{server}").hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


class RestTransport:
    """The requests to one model on `server`, a URL; errors are `ServingError`s without the server's name."""

    def __init__(self, server: str, model: str, version: int | None = None, label: str | None = None):
        chosen = "" if version is None else f"/versions/{version}"
        chosen = f"/labels/{urllib.parse.quote(label, safe='')}" if label is not None else chosen
        self.url = f"{server.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}{chosen}"
        self._session = requests.Session()
        # A proxy must not be asked for this machine.
        self._session.trust_env = not _is_this_machine(server)

    def close(self) -> None:
        self._session.close()

    def predict(self, signature: str, arrays: Arrays, spec: SignatureSpec, seconds: float) -> Arrays:
        """Returns all outputs."""
        inputs = {name: wire.json_value(array) for name, array in arrays.items()}
        body = json.dumps({"signature_name": signature, "inputs": inputs}).encode()
        answer = self._ask("POST", ":predict", seconds, body)
        with wrap_read_errors("no answer of this signature (", ")", ServerFailed):
            outputs = answer["outputs"]
            if len(spec.outputs) == 1:  # its value stands without its name
                outputs = dict.fromkeys(spec.outputs, outputs)
            return {name: wire.array_from_json(outputs[name], output.dtype) for name, output in spec.outputs.items()}

    def metadata(self, seconds: float) -> dict[str, Any]:
        """Returns a GetModelMetadataResponse as JSON."""
        return self._ask("GET", "/metadata", seconds)

    def status(self, seconds: float) -> dict[str, Any]:
        """Returns a GetModelStatusResponse as JSON."""
        return self._ask("GET", "", seconds)

    def _ask(self, method: str, path: str, seconds: float, body: bytes | None = None) -> dict[str, Any]:
        """Returns the JSON object of an answer."""
        end, content = time.monotonic() + seconds, bytearray()
        options = {"timeout": seconds, "stream": True, "allow_redirects": False}
        try:
            with self._session.request(method, self.url + path, data=body, **options) as response:
                # In pieces: the timeout of `requests` is for each wait, not for the whole.
                with wrap_read_errors("", "", requests.ConnectionError):
                    while piece := response.raw.read1(_PIECE_BYTES, decode_content=True):
                        content += piece
                        if time.monotonic() > end:
                            raise requests.Timeout()
        except requests.RequestException as error:
            if isinstance(error, requests.Timeout) or time.monotonic() >= end:
                raise serving_error("DEADLINE_EXCEEDED", f"no answer within {seconds:.3g} s") from None
            raise _connection_error(error) from None
        return _json_object(response.status_code, bytes(content))


def _connection_error(error: requests.RequestException) -> ServingError:
    if isinstance(error, requests.exceptions.SSLError | requests.exceptions.ProxyError):
        return serving_error("UNKNOWN", str(error), "look at its certificate, or the proxy")
    if not isinstance(error, requests.ConnectionError):
        return serving_error("UNKNOWN", str(error), "is this its REST port?")
    # A request changes nothing, so it may be sent again; gRPC calls this UNAVAILABLE too.
    texts = {"refused": "nobody answers there", "resolve": "there is no host of this name"}
    broken = "the connection broke before there was an answer"
    return serving_error("UNAVAILABLE", next((text for word, text in texts.items() if word in str(error)), broken))


def _json_object(status: int, content: bytes) -> dict[str, Any]:
    """Returns the JSON object of an answer; raises the ServingError of an HTTP status that is not 200."""
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if status == requests.codes.ok and isinstance(answer, dict):
        return answer
    reason = answer.get("error") if isinstance(answer, dict) else None
    if reason is None and status not in (413, 503):  # some other web server
        raise serving_error(f"HTTP {status}", str(content[:200]), "is this its REST port?")
    raise serving_error(_CODES.get(status, f"HTTP {status}"), str(reason or content[:200]))


class GrpcTransport:
    """The requests to one model on `server`, HOST:PORT, with the methods of `RestTransport`; it starts TensorFlow."""

    def __init__(self, server: str, model: str, version: int | None = None, label: str | None = None):
        start_tensorflow_quietly()
        grpc = require("grpc", "serving")
        require("tensorflow_serving", "serving")
        from tensorflow_serving.apis import model_service_pb2_grpc, prediction_service_pb2_grpc

        chosen = None if version is None else {"value": version}
        self._spec = {"name": model, "version": chosen, "version_label": label}
        options = {
            "max_send_message_length": _LARGEST_MESSAGE_BYTES,
            "max_receive_message_length": _LARGEST_MESSAGE_BYTES,
            "enable_retries": 0,  # `ServedModel` sends again
            # A server that comes up is seen at once.
            "initial_reconnect_backoff_ms": 100,
            "min_reconnect_backoff_ms": 100,
            "max_reconnect_backoff_ms": 1000,
            "enable_http_proxy": int(not _is_this_machine(server)),
        }
        self._channel = grpc.insecure_channel(server, [(f"grpc.{name}", value) for name, value in options.items()])
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def predict(self, signature: str, arrays: Arrays, spec: SignatureSpec | None, seconds: float) -> Arrays:
        """Returns all outputs: a server has warmed up for all, and makes another graph for each selection."""
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2

        request = predict_pb2.PredictRequest(model_spec=self._spec | {"signature_name": signature})
        for name, array in arrays.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
        with _grpc_errors():
            answer = self._predictions.Predict(request, timeout=seconds)
            return {name: wire.array_from_message(message) for name, message in answer.outputs.items()}

    def metadata(self, seconds: float) -> dict[str, Any]:
        from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest

        request = GetModelMetadataRequest(model_spec=self._spec, metadata_field=[wire.SIGNATURE_DEF])
        with _grpc_errors():
            return wire.message_as_json(self._predictions.GetModelMetadata(request, timeout=seconds))

    def status(self, seconds: float) -> dict[str, Any]:
        from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest

        with _grpc_errors():
            request = GetModelStatusRequest(model_spec=self._spec)
            return wire.message_as_json(self._models.GetModelStatus(request, timeout=seconds))


@contextlib.contextmanager
def _grpc_errors() -> Iterator[None]:
    """Turns gRPC's errors, and those of messages that can't be read, into `ServingError`s."""
    import grpc

    try:
        yield
    except grpc.RpcError as error:
        reason = error.details() or ""
        if "Failed parsing HTTP/2" in reason:
            advice = "for REST give http://HOST:PORT (nvae-client --rest), for gRPC the other port"
            raise serving_error("UNKNOWN", "this port does not speak gRPC", advice) from None
        raise serving_error(error.code().name, reason) from None
    except ValueError as error:  # a channel that was closed, too
        raise ServerFailed(str(error)) from None
