"""TensorFlow Serving's gRPC services, the parts that concern models with named tensors."""

import sys
import traceback
from collections.abc import Callable, Mapping

import grpc

from nvae_tf.serving.clients.serving_messages import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from nvae_tf.serving.clients.tensor_messages import array_of, tensor_message_in_fields
from nvae_tf.serving.local_server.request_errors import RequestError, invalid, request_error
from nvae_tf.serving.local_server.served_versions import ServedVersions

Models = Mapping[str, ServedVersions]
SIGNATURE_DEF = "signature_def"
_NOT_HERE = "{} is not offered by this server for trials; tensorflow_model_server has it"


def model_named(models: Models, name: str) -> ServedVersions:
    """The model of a request.

    Raises:
      RequestError: there is none.
    """
    if name not in models:
        told = f"Servable not found for request: Latest({name}); served here: {', '.join(models)}"
        raise RequestError(grpc.StatusCode.NOT_FOUND, told)
    return models[name]


def status_message(versions: ServedVersions, number: int | None, label: str | None):
    """The states of versions as Serving's `GetModelStatusResponse`.

    Raises:
      RequestError: there is no such version.
    """
    answer = get_model_status_pb2.GetModelStatusResponse()
    for version, status in sorted(versions.statuses(number, label).items(), reverse=True):
        found = answer.model_version_status.add(version=version, state=status.state)
        found.status.error_code, found.status.error_message = status.error_code, status.error_message
    return answer


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Predict and GetModelMetadata.

    Args:
      models: the models by name.
      largest_bytes: the largest tensor that is made of a request.
    """

    def __init__(self, models: Models, largest_bytes: int):
        self._models, self._largest_bytes = models, largest_bytes

    def Predict(self, request, context):  # noqa: N802
        """Runs a signature."""
        return _answered(context, lambda: self._predict(request, context))

    def GetModelMetadata(self, request, context):  # noqa: N802
        """Tells the signatures of a version."""
        return _answered(context, lambda: self._metadata(request))

    def Classify(self, request, context):  # noqa: N802
        """Is for models of examples."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, _NOT_HERE.format("Classify"))

    def Regress(self, request, context):  # noqa: N802
        """Is for models of examples."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, _NOT_HERE.format("Regress"))

    def MultiInference(self, request, context):  # noqa: N802
        """Is for models of examples."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, _NOT_HERE.format("MultiInference"))

    def _predict(self, request, context) -> predict_pb2.PredictResponse:
        spec = request.model_spec
        with model_named(self._models, spec.name).using(*_version_and_label(spec)) as version:
            if not context.is_active():
                raise RequestError(grpc.StatusCode.CANCELLED, "the client has gone")
            try:
                arrays = {name: array_of(message, self._largest_bytes) for name, message in request.inputs.items()}
            except ValueError as error:
                raise invalid(f"inputs: {error}") from None
            found = version.run(spec.signature_name, arrays, request.output_filter)
            answer = predict_pb2.PredictResponse()
            _tell_version(answer.model_spec, spec, version.number)
        for name, array in found.items():
            answer.outputs[name].CopyFrom(tensor_message_in_fields(array))
        return answer

    def _metadata(self, request) -> get_model_metadata_pb2.GetModelMetadataResponse:
        if list(request.metadata_field) != [SIGNATURE_DEF]:
            raise invalid(f"metadata_field {list(request.metadata_field)}: only {SIGNATURE_DEF!r} is known")
        spec = request.model_spec
        answer = get_model_metadata_pb2.GetModelMetadataResponse()
        with model_named(self._models, spec.name).using(*_version_and_label(spec)) as version:
            _tell_version(answer.model_spec, spec, version.number)
            answer.metadata[SIGNATURE_DEF].Pack(
                get_model_metadata_pb2.SignatureDefMap(signature_def=version.definitions)
            )
        return answer


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """GetModelStatus.

    Args:
      models: the models by name.
    """

    def __init__(self, models: Models):
        self._models = models

    def GetModelStatus(self, request, context):  # noqa: N802
        """Tells the states of versions."""
        spec = request.model_spec
        return _answered(
            context, lambda: status_message(model_named(self._models, spec.name), *_version_and_label(spec))
        )

    def HandleReloadConfigRequest(self, request, context):  # noqa: N802
        """Is for a server with a configuration file."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, _NOT_HERE.format("HandleReloadConfigRequest"))


def _version_and_label(spec: model_pb2.ModelSpec) -> tuple[int | None, str | None]:
    return spec.version.value if spec.HasField("version") else None, spec.version_label or None


def _tell_version(answered: model_pb2.ModelSpec, asked: model_pb2.ModelSpec, number: int) -> None:
    answered.name, answered.signature_name = asked.name, asked.signature_name
    answered.version.value = number


def _answered(context, answer: Callable):
    """The answer, or the call ended with its error."""
    try:
        return answer()
    except Exception as error:
        told = request_error(error)
        if told.code == grpc.StatusCode.INTERNAL:
            traceback.print_exc(file=sys.stderr)
    context.abort(told.code, str(told))
