"""One version of an export in memory, in a session of TensorFlow, as TensorFlow Serving loads and runs it."""

import pathlib
import re
from collections.abc import Collection, Mapping

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import get_model_metadata_pb2, prediction_log_pb2

from nvae_tf.config import check
from nvae_tf.serving.client import Arrays, check_inputs, signature_specs
from nvae_tf.serving.grpc_client import SIGNATURE_DEF, array_of, message_as_json
from nvae_tf.serving.outputs import DEFAULT_SIGNATURE

# Of a request: a message of a few bytes may claim millions of them.
LARGEST_ROWS = 1024
# Longer messages would not fit into the headers of an answer.
_LONGEST_MESSAGE = 1000
_CODES_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
# What stands before the reason in TensorFlow's messages: a heading, where operations were defined, lines of Python.
_HEADINGS = re.compile(r"Graph execution error|Detected at node|<stack traces unavailable>|Node: |File |\s")


class RequestError(Exception):
    """A request that is answered with an error: one of gRPC's codes, and a message for the client's user."""

    def __init__(self, message: object, code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT):
        super().__init__(str(message)[:_LONGEST_MESSAGE])
        self.code = code


def request_error(error: Exception) -> RequestError:
    """The answer to an error of any kind; TensorFlow's have the same codes as gRPC."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, MemoryError):
        return RequestError("out of memory", grpc.StatusCode.RESOURCE_EXHAUSTED)
    code = _CODES_BY_NUMBER.get(getattr(error, "error_code", None), grpc.StatusCode.INTERNAL)
    message = getattr(error, "message", None)
    return RequestError(reason_of(message) if message else f"{type(error).__name__}: {error}", code)


def reason_of(message: str) -> str:
    """TensorFlow's message from the first line that has a cause."""
    lines = [line for line in message.splitlines() if line.strip()]
    nodes = [number for number, line in enumerate(lines) if line.startswith("Node: ")]
    lines = lines[nodes[-1] + 1 :] if nodes else lines
    first = next((number for number, line in enumerate(lines) if not _HEADINGS.match(line)), 0)
    return "\n".join(lines[first:]) or message


class LoadedVersion:
    """A version that runs from many threads at once, each request alone.

    With `warm_up` it has answered the export's own requests, as under TensorFlow Serving: the first run of a signature
    optimizes its graph. Raises ValueError, with the cause, for a damaged or foreign folder.
    """

    def __init__(self, folder: pathlib.Path, warm_up: bool = False):
        self.number = int(folder.name)
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        logger, level = tf.get_logger(), tf.get_logger().level
        # It would warn that this loader, which is TensorFlow Serving's, is an old one.
        logger.setLevel("ERROR")
        try:
            loaded = tf.compat.v1.saved_model.loader.load(self._session, [tf.saved_model.SERVING], str(folder))
            self.definitions = get_model_metadata_pb2.SignatureDefMap(signature_def=dict(loaded.signature_def))
            self.specs = signature_specs(message_as_json(self.definitions)[SIGNATURE_DEF])
            if warm_up:
                self._warm_up(folder / "assets.extra" / "tf_serving_warmup_requests")
        except Exception as error:  # TensorFlow and protobuf have many kinds for a damaged file
            self.close()
            reason = str(request_error(error)).splitlines()[0]
            raise ValueError(f"{folder}: can't be loaded ({reason}); is the export complete?") from error
        finally:
            logger.setLevel(level)

    def close(self) -> None:
        """Frees the memory."""
        self._session.close()

    def run(self, signature: str, arrays: Mapping[str, np.ndarray], outputs: Collection[str] = ()) -> Arrays:
        """Runs a signature (empty for `serving_default`), for the outputs that are named (all, if none is).

        Raises RequestError where there is no such signature or the inputs don't fit it, tf.errors.OpError where the
        graph refuses their values.
        """
        signature = signature or DEFAULT_SIGNATURE
        if signature not in self.specs:
            message = f'Serving signature key "{signature}" not found; the model has {", ".join(self.specs)}'
            raise RequestError(message, grpc.StatusCode.FAILED_PRECONDITION)
        spec, definition = self.specs[signature], self.definitions.signature_def[signature]
        try:
            check_inputs(arrays, spec)
            for name in outputs:
                check(name in spec.outputs, f"output tensor alias not found in signature: {name}")
            rows = max((len(array) for array in arrays.values() if array.ndim), default=0)
            check(rows <= LARGEST_ROWS, f"{rows:,} rows in a request; at most {LARGEST_ROWS:,} are taken")
        except ValueError as error:
            raise RequestError(error) from None
        feed = {definition.inputs[name].name: array for name, array in arrays.items()}
        return self._session.run({name: definition.outputs[name].name for name in outputs or spec.outputs}, feed)

    def _warm_up(self, file: pathlib.Path) -> None:
        for record in tf.data.TFRecordDataset([str(file)] if file.exists() else []).as_numpy_iterator():
            request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
            arrays = {name: array_of(tensor) for name, tensor in request.inputs.items()}
            self.run(request.model_spec.signature_name, arrays, request.output_filter)
