"""A client of TensorFlow Serving's gRPC interface; it starts TensorFlow for the messages.

with ServingClient("localhost:8500", "digits") as client:
    images = client.predict("sample", seed=[1, 2], temperature=[1.0, 1.0])["image"]
"""

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from google.protobuf.message import Message

from nvae_tf.errors import require
from nvae_tf.serving import client
from nvae_tf.serving.client import Job, ModelClient, ModelMetadata, VersionStatus, in_one_line

grpc = require("grpc", "serving")
require("tensorflow_serving", "serving")

from tensorflow.core.framework import tensor_pb2, types_pb2  # noqa: E402
from tensorflow_serving.apis import (  # noqa: E402
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

# gRPC's own limit of 4 MB is a batch of 85 float images of 64x64x3.
LARGEST_MESSAGE_BYTES = 256 * 2**20
_LARGEST_TENSOR_BYTES = 2**31 - 1  # of a protocol buffer message
SIGNATURE_DEF = "signature_def"

_CODE = grpc.StatusCode
# The kind of error and the fix for each of gRPC's codes with a meaning of its own.
_ERRORS = {
    _CODE.NOT_FOUND: (client.ModelNotFound, "look at the server's models and versions"),
    _CODE.UNAVAILABLE: (client.ServerNotReady, "is it running, and is this its gRPC port?"),
    _CODE.INVALID_ARGUMENT: (client.BadRequest, "correct the inputs"),
    _CODE.FAILED_PRECONDITION: (client.BadRequest, "look at the model's signatures"),
    _CODE.OUT_OF_RANGE: (client.BadRequest, "correct the inputs"),
    _CODE.RESOURCE_EXHAUSTED: (client.TooLarge, "send fewer rows at once"),
    _CODE.DEADLINE_EXCEEDED: (client.DeadlineExceeded, "send fewer rows at once or allow more time"),
    _CODE.UNIMPLEMENTED: (client.NotSupported, "is it a TensorFlow Serving of this model?"),
    _CODE.CANCELLED: (client.Cancelled, "the request was given up"),
}


class ServingClient(ModelClient):
    """See `ModelClient`; `server` is `HOST:PORT`, of TensorFlow Serving's `--port` (8500)."""

    def __init__(self, server: str, model: str, **choices: Any):
        super().__init__(server, model, **choices)
        if "://" in server:
            raise ValueError(f"server {server!r}: give HOST:PORT for gRPC; http:// is for the REST client")
        options = [
            ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
            # `Job.until_ready` asks again, with its own waits; a server that comes up is seen at once.
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_http_proxy", int(not client.is_this_machine(server))),
        ]
        self._channel = grpc.insecure_channel(server, options)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def close(self) -> None:
        """Closes the channel; requests in flight end with an error."""
        self._channel.close()

    def _predict(
        self, job: Job, signature: str, arrays: dict[str, np.ndarray], outputs: Collection[str], seconds: float
    ) -> dict[str, np.ndarray]:
        request = predict_pb2.PredictRequest(model_spec=self._model_spec(signature), output_filter=outputs)
        try:
            for name, array in arrays.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
        except (TypeError, ValueError) as error:  # seen here only if the server does not describe its signatures
            raise client.BadRequest(f"{self._what(signature)}: {in_one_line(str(error))}") from None
        with self._converted_errors(signature):
            answer = self._call(self._predictions.Predict, request, job, seconds)
            return {name: array_of(message) for name, message in answer.outputs.items()}

    def _metadata(self, job: Job, seconds: float) -> ModelMetadata:
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._model_spec(), metadata_field=[SIGNATURE_DEF]
        )
        with self._converted_errors():
            answer = self._call(self._predictions.GetModelMetadata, request, job, seconds)
            signatures = get_model_metadata_pb2.SignatureDefMap()
            answer.metadata[SIGNATURE_DEF].Unpack(signatures)
        specs = client.signature_specs(message_as_json(signatures)[SIGNATURE_DEF])
        return ModelMetadata(self.model, answer.model_spec.version.value, specs)

    def _status(self, job: Job, seconds: float) -> list[VersionStatus]:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._model_spec())
        with self._converted_errors():
            answer = self._call(self._models.GetModelStatus, request, job, seconds)
        return client.version_statuses(message_as_json(answer))

    def _model_spec(self, signature: str = "") -> model_pb2.ModelSpec:
        spec = model_pb2.ModelSpec(name=self.model, signature_name=signature)
        if self.version is not None:
            spec.version.value = self.version
        if self.label is not None:
            spec.version_label = self.label
        return spec

    @staticmethod
    def _call(method, request, job: Job, seconds: float):
        call = method.future(request, timeout=seconds)
        with job.in_flight(call.cancel):
            return call.result()

    @contextmanager
    def _converted_errors(self, signature: str | None = None) -> Iterator[None]:
        """Turns gRPC's errors, and those of messages that can't be read, into `ServingError`s."""
        what = self._what(signature)
        try:
            yield
        except grpc.FutureCancelledError:
            raise client.Cancelled(f"{what}: the request was given up") from None
        except grpc.RpcError as error:
            code = error.code()
            kind, advice = _ERRORS.get(code, (client.ServerFailed, "look at the server's log"))
            raise kind(f"{what}: {in_one_line(error.details() or '')} [{code.name}]; {advice}") from None
        except ValueError as error:
            raise client.ServerFailed(f"{what}: {in_one_line(str(error))}") from None


def array_of(message: tensor_pb2.TensorProto, largest_bytes: int = _LARGEST_TENSOR_BYTES) -> np.ndarray:
    """The array of a message, strings as object arrays of bytes; ValueError if it is none, or over `largest_bytes`.

    A message of a few bytes may claim any shape.
    """
    shape = [dimension.size for dimension in message.tensor_shape.dim]
    if message.tensor_shape.unknown_rank or min(shape, default=0) < 0:
        raise ValueError("a tensor without a shape")
    try:
        dtype = np.dtype(tf.as_dtype(message.dtype).as_numpy_dtype)
    except TypeError:
        raise ValueError(f"a tensor of type {message.dtype} can't be read") from None
    if math.prod(shape) * dtype.itemsize > largest_bytes:
        raise ValueError(f"a tensor of shape {shape} is over {largest_bytes:,} bytes")
    try:
        array = tf.make_ndarray(message)
    except (TypeError, ValueError) as error:
        raise ValueError(f"no {dtype.name} tensor of shape {shape} ({error})") from None
    if message.dtype == types_pb2.DT_STRING and not message.string_val:
        array.fill(b"")  # where TensorFlow has text
    return array


def message_as_json(message: Message) -> dict[str, Any]:
    """A message as TensorFlow Serving's REST interface writes it."""
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
