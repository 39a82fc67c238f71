"""The requests of `benchmarks.serving_load`: one row of every signature, and malformed ones."""

from collections.abc import Callable

import grpc
import numpy as np
from tensorflow import make_tensor_proto as tensor_message
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from nvae_tf.serving.grpc_client import LARGEST_MESSAGE_BYTES, ServingClient

# What a request is asked for with, and how a malformed one differs.
MALFORMED = ("wrong type", "NaN", "negative temperature", "blob", "wrong size")
_SECONDS = 60.0
_BLOB = b"\xff" * 10 * 2**20

Ask = Callable[[], None]


class Requests:
    """Makes requests of one model on one server; may be used from many threads."""

    def __init__(self, address: str, model: str):
        self._model = model
        options = [("grpc.max_send_message_length", LARGEST_MESSAGE_BYTES)]
        self._channel = grpc.insecure_channel(address, options)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        with ServingClient(address, model) as client:
            shapes = {name: spec.inputs for name, spec in client.signatures().items()}
        generator = np.random.default_rng(0)
        image = generator.integers(0, 2, [1, *shapes["encode"]["image"].shape[1:]]).astype(np.float32)
        latent = generator.normal(size=[1, *shapes["decode"]["latent"].shape[1:]]).astype(np.float32)
        self._inputs = {
            "seed": np.array([7], np.int64),
            "temperature": np.ones(1, np.float32),
            "image": image,
            "latent": latent,
        }
        self._names = {name: list(inputs) for name, inputs in shapes.items()}

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def one_row(self, signature: str) -> Ask:
        """Asks a signature for one row.

        Raises:
          grpc.RpcError: the request is refused.
        """
        request = self._request(signature, {name: self._inputs[name] for name in self._names[signature]})
        return lambda: self._predict(request)

    def malformed(self, kind: str) -> Ask:
        """Asks for what makes no sense, see `MALFORMED`."""
        inputs = self._inputs
        signature, given = {
            "wrong type": ("sample", {"seed": inputs["temperature"], "temperature": inputs["temperature"]}),
            "NaN": ("encode", {"image": inputs["image"] * np.float32(np.nan), "seed": inputs["seed"]}),
            "negative temperature": ("sample", {"seed": inputs["seed"], "temperature": -inputs["temperature"]}),
            "blob": ("encode_png", {"image_bytes": np.array([_BLOB], object), "seed": inputs["seed"]}),
            "wrong size": ("decode", {"latent": inputs["latent"][:, 1:]}),
        }[kind]
        request = self._request(signature, given)
        return lambda: self._predict(request)

    def _predict(self, request: predict_pb2.PredictRequest) -> None:
        self._predictions.Predict(request, timeout=_SECONDS)

    def _request(self, signature: str, inputs: dict[str, np.ndarray]) -> predict_pb2.PredictRequest:
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self._model, signature
        for name, array in inputs.items():
            request.inputs[name].CopyFrom(tensor_message(array))
        return request
