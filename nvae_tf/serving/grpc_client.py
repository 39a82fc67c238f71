"""The client's side of TensorFlow Serving's gRPC interface; it starts TensorFlow for the messages."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from google.protobuf.message import Message

from nvae_tf.config import check
from nvae_tf.errors import require
from nvae_tf.serving import client
from nvae_tf.serving.client import Arrays, ModelMetadata, SignatureSpec, VersionStatus
from nvae_tf.serving.rest import is_this_machine

grpc = require("grpc", "serving")
require("tensorflow_serving", "serving")

from tensorflow.core.framework import tensor_pb2, types_pb2  # noqa: E402
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, model_pb2, predict_pb2  # noqa: E402
from tensorflow_serving.apis import model_service_pb2_grpc as model_service  # noqa: E402
from tensorflow_serving.apis import prediction_service_pb2_grpc as prediction_service  # noqa: E402

# gRPC's own limit of 4 MB is a batch of 85 float images of 64x64x3.
LARGEST_MESSAGE_BYTES = 256 * 2**20
_LARGEST_TENSOR_BYTES = 2**31 - 1  # of a protocol buffer message
SIGNATURE_DEF = "signature_def"
# The field of a message that has the values of each type.
_FIELDS = {"float32": "float_val", "float64": "double_val", "int32": "int_val", "int64": "int64_val"}
_FIELDS |= {"uint8": "int_val", "bool": "bool_val", "object": "string_val"}
_RETRIES = {
    "maxAttempts": client.ATTEMPTS,
    "initialBackoff": f"{client.FIRST_WAIT}s",
    "maxBackoff": f"{client.LONGEST_WAIT}s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


class GrpcTransport:
    """The calls of a model on `server`, HOST:PORT; errors are `ServingError`s without the server's name."""

    def __init__(self, server: str, model: str, version: int | None, label: str | None):
        self._model, self._version, self._label = model, version, label
        options = [
            ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
            ("grpc.service_config", json.dumps({"methodConfig": [{"name": [{}], "retryPolicy": _RETRIES}]})),
            # A request over gRPC's own limit of 256 KB would not be sent again.
            ("grpc.per_rpc_retry_buffer_size", LARGEST_MESSAGE_BYTES),
            # A server that comes up is seen at once.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_http_proxy", int(not is_this_machine(server))),
        ]
        self._channel = grpc.insecure_channel(server, options)
        self._predictions = prediction_service.PredictionServiceStub(self._channel)
        self._models = model_service.ModelServiceStub(self._channel)

    def close(self) -> None:
        """Closes the channel; requests in flight end with an error."""
        self._channel.close()

    def predict(self, signature: str, arrays: Arrays, spec: SignatureSpec, seconds: float) -> Arrays:
        """All outputs: a server has run the signature so to warm up, and makes another graph for each selection."""
        request = predict_pb2.PredictRequest(model_spec=self._model_spec(signature))
        for name, array in arrays.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
        with _converted_errors():
            answer = self._predictions.Predict(request, timeout=seconds)
            return {name: array_of(message) for name, message in answer.outputs.items()}

    def metadata(self, seconds: float) -> ModelMetadata:
        """The version that answers, and its signatures."""
        asked = {"model_spec": self._model_spec(), "metadata_field": [SIGNATURE_DEF]}
        request = get_model_metadata_pb2.GetModelMetadataRequest(**asked)
        with _converted_errors():
            answer = self._predictions.GetModelMetadata(request, timeout=seconds)
            signatures = get_model_metadata_pb2.SignatureDefMap()
            answer.metadata[SIGNATURE_DEF].Unpack(signatures)
        specs = client.signature_specs(message_as_json(signatures)[SIGNATURE_DEF])
        return ModelMetadata(answer.model_spec.version.value, specs)

    def status(self, seconds: float) -> list[VersionStatus]:
        """All versions, newest first."""
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._model_spec())
        with _converted_errors():
            return client.version_statuses(message_as_json(self._models.GetModelStatus(request, timeout=seconds)))

    def _model_spec(self, signature: str = "") -> model_pb2.ModelSpec:
        version = None if self._version is None else {"value": self._version}
        chosen = {"version": version, "version_label": self._label}
        return model_pb2.ModelSpec(name=self._model, signature_name=signature, **chosen)


@contextmanager
def _converted_errors() -> Iterator[None]:
    """Turns gRPC's errors, and those of messages that can't be read, into `ServingError`s."""
    try:
        yield
    except grpc.RpcError as error:
        reason = error.details() or ""
        if "Failed parsing HTTP/2" in reason:
            advice = "for REST give http://HOST:PORT (nvae-client --rest), for gRPC the other port"
            raise client.error_of("UNKNOWN", "this port does not speak gRPC", advice) from None
        raise client.error_of(error.code().name, reason) from None
    except ValueError as error:  # a channel that was closed, too
        raise client.ServerFailed(str(error)) from None


def array_of(message: tensor_pb2.TensorProto, largest_bytes: int = _LARGEST_TENSOR_BYTES) -> np.ndarray:
    """The array of a message, strings as object arrays of bytes; ValueError if it is none, or over `largest_bytes`.

    A message of a few bytes may claim any shape.
    """
    shape = [dimension.size for dimension in message.tensor_shape.dim]
    check(not message.tensor_shape.unknown_rank and min(shape, default=0) >= 0, "a tensor without a shape")
    try:
        dtype = np.dtype(tf.as_dtype(message.dtype).as_numpy_dtype)
    except TypeError:
        raise ValueError(f"a tensor of type {message.dtype} can't be read") from None
    size = math.prod(shape) * dtype.itemsize
    check(size <= largest_bytes, f"a tensor of shape {shape} is over {largest_bytes:,} bytes")
    try:
        array = tf.make_ndarray(message)
    except (TypeError, ValueError) as error:
        raise ValueError(f"no {dtype.name} tensor of shape {shape} ({error})") from None
    if message.dtype == types_pb2.DT_STRING and not message.string_val:
        array.fill(b"")  # where TensorFlow has text
    return array


def tensor_of(array: np.ndarray) -> tensor_pb2.TensorProto:
    """The array value by value, as TensorFlow Serving answers by default and as many clients read it."""
    if array.dtype.name not in _FIELDS:
        return tf.make_tensor_proto(array)
    dtype = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
    message = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum, tensor_shape=tf.TensorShape(array.shape).as_proto())
    getattr(message, _FIELDS[array.dtype.name]).extend(array.ravel().tolist())
    return message


def message_as_json(message: Message) -> dict[str, Any]:
    """A message as TensorFlow Serving's REST interface writes it."""
    options = {"preserving_proto_field_name": True, "always_print_fields_with_no_presence": True}
    return json_format.MessageToDict(message, **options)
