"""A client of TensorFlow Serving's gRPC interface.

    with ServingClient("localhost:8500", "digits") as client:
        pictures = client.predict("sample", seed=[1, 2], temperature=[1.0, 1.0])["image"]

It needs NumPy and the packages grpcio and tensorflow-serving-api; TensorFlow is not started
(`clients.serving_messages`), and nothing of the model's own code is needed. `clients.rest_client` is the same over
HTTP, `clients.served_model` draws, encodes and scores with either.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import grpc
import numpy as np

from nvae_tf.serving.clients import serving_errors
from nvae_tf.serving.clients.model_client import ModelClient, VersionStatus, is_this_machine
from nvae_tf.serving.clients.request_patience import Job, Patience
from nvae_tf.serving.clients.serving_errors import ServerFailed, in_one_line
from nvae_tf.serving.clients.serving_messages import (
    error_codes_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from nvae_tf.serving.clients.signature_specs import ModelMetadata, signature_specs
from nvae_tf.serving.clients.tensor_messages import array_of, tensor_message

# gRPC's own limit of 4 MB is a batch of 85 float pictures of 64x64x3.
LARGEST_MESSAGE_BYTES = 256 * 2**20

_CODE = grpc.StatusCode
# The kind of error and what to do about it, for each of gRPC's codes that says something of its own.
_ERRORS = {
    _CODE.NOT_FOUND: (serving_errors.ModelNotFound, "look at the server's models and versions"),
    _CODE.UNAVAILABLE: (serving_errors.ServerNotReady, "is it running, and is this its gRPC port?"),
    _CODE.INVALID_ARGUMENT: (serving_errors.BadRequest, "correct the inputs"),
    _CODE.FAILED_PRECONDITION: (serving_errors.BadRequest, "look at the model's signatures"),
    _CODE.OUT_OF_RANGE: (serving_errors.BadRequest, "correct the inputs"),
    _CODE.RESOURCE_EXHAUSTED: (serving_errors.TooLarge, "send fewer rows at once"),
    _CODE.DEADLINE_EXCEEDED: (serving_errors.DeadlineExceeded, "send fewer rows at once or allow more time"),
    _CODE.UNIMPLEMENTED: (serving_errors.NotSupported, "is it a TensorFlow Serving of this model?"),
    _CODE.CANCELLED: (serving_errors.Cancelled, "the request was given up"),
}


class ServingClient(ModelClient):
    """See `ModelClient`; `server` is `HOST:PORT`, of TensorFlow Serving's `--port` (8500)."""

    def __init__(
        self,
        server: str,
        model: str,
        version: int | None = None,
        label: str | None = None,
        patience: Patience | None = None,
    ):
        super().__init__(server, model, version, label, patience)
        if "://" in server:
            raise ValueError(f"server {server!r}: give HOST:PORT for gRPC; http:// is for the REST client")
        options = [
            ("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", LARGEST_MESSAGE_BYTES),
            # Asking again is this client's business, with its own waits; a server that comes up is seen at once.
            ("grpc.enable_retries", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_http_proxy", int(not is_this_machine(server))),
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
                request.inputs[name].CopyFrom(tensor_message(array))
        except ValueError as error:  # told here only if the server does not tell its signatures
            raise serving_errors.BadRequest(f"{self._told(signature)}: {in_one_line(str(error))}") from None
        with self._errors_told(signature):
            answer = self._call(self._predictions.Predict, request, job, seconds)
            return {name: array_of(message) for name, message in answer.outputs.items()}

    def _metadata(self, job: Job, seconds: float) -> ModelMetadata:
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._model_spec(), metadata_field=["signature_def"]
        )
        with self._errors_told():
            answer = self._call(self._predictions.GetModelMetadata, request, job, seconds)
            signatures = get_model_metadata_pb2.SignatureDefMap()
            answer.metadata["signature_def"].Unpack(signatures)
        version = answer.model_spec.version.value
        return ModelMetadata(self.model, version, signature_specs(signatures.signature_def))

    def _status(self, job: Job, seconds: float) -> list[VersionStatus]:
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._model_spec())
        with self._errors_told():
            answer = self._call(self._models.GetModelStatus, request, job, seconds)
        states = get_model_status_pb2.ModelVersionStatus.State
        return [
            VersionStatus(found.version, states.Name(found.state), _error_text(found.status))
            for found in answer.model_version_status
        ]

    def _model_spec(self, signature: str = "") -> model_pb2.ModelSpec:
        spec = model_pb2.ModelSpec(name=self.model, signature_name=signature)
        if self.version is not None:
            spec.version.value = self.version
        if self.label is not None:
            spec.version_label = self.label
        return spec

    @staticmethod
    def _call(method: grpc.UnaryUnaryMultiCallable, request, job: Job, seconds: float):
        call = method.future(request, timeout=seconds)
        with job.in_flight(call.cancel):
            return call.result()

    @contextmanager
    def _errors_told(self, signature: str | None = None) -> Iterator[None]:
        """Turns gRPC's errors, and those of messages that can't be read, into `ServingError`s."""
        what = self._told(signature)
        try:
            yield
        except grpc.FutureCancelledError:
            raise serving_errors.Cancelled(f"{what}: the request was given up") from None
        except grpc.RpcError as error:
            code = error.code()
            kind, advice = _ERRORS.get(code, (ServerFailed, "look at the server's log"))
            raise kind(f"{what}: {in_one_line(error.details() or '')} [{code.name}]; {advice}") from None
        except ValueError as error:
            raise ServerFailed(f"{what}: {in_one_line(str(error))}") from None


def _error_text(status) -> str:
    if status.error_code == error_codes_pb2.OK:
        return ""
    return f"{error_codes_pb2.Code.Name(status.error_code)}: {in_one_line(status.error_message)}"
