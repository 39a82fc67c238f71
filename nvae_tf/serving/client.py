"""A model on a server (TensorFlow Serving, or nvae-serve), with NumPy arrays and images in and out; what the server
refuses, or does not answer, is a `ServingError`.

    with ServedModel("localhost:8500", "digits") as model:  # gRPC; "http://localhost:8501" is REST
        images = model.sample(64, seed=1, temperature=0.7, as_pixels=True)
        latents = model.encode([Image.open("seven.png")])
"""

import base64
import contextlib
import json
import random
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Annotated, Any, NamedTuple

import numpy as np
from PIL import Image

from nvae_tf.config import whole_number
from nvae_tf.data.pictures import as_eight_bits
from nvae_tf.errors import first_line, require, start_tensorflow_quietly
from nvae_tf.generation.image_grid import pixels_of, pixels_of_files, png_files
from nvae_tf.serving.outputs import PNG_SUFFIX

# A request without answer is sent again after a random part of 0.2 s, 0.4 s, and so on.
ATTEMPTS, FIRST_WAIT = 5, 0.2
# No class, no guidance, the model's own prior: for models that have these inputs, and calls that name none.
_OPTIONAL = {"label": -1, "guidance": 1.0, "proposals": 1}
_ADVICE = {
    "INVALID_ARGUMENT": "correct the inputs",
    "NOT_FOUND": "look at the server's models and versions",
    "RESOURCE_EXHAUSTED": "send fewer rows at once",
    "UNAVAILABLE": "is it running, is this the protocol's port, and has it loaded the model?",
    "DEADLINE_EXCEEDED": "send fewer rows at once or allow more time",
}
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1", "[::1]")
STRING, BASE64, SIGNATURE_DEF = "string", "b64", "signature_def"
HTTP_STATUS = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "RESOURCE_EXHAUSTED": 429, "UNIMPLEMENTED": 501}
HTTP_STATUS |= {"UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504}
_CODES = {status: code for code, status in HTTP_STATUS.items()} | {413: "RESOURCE_EXHAUSTED"}

# Uint8 or float in [0, 1], [count, height, width, channels], or Pillow's.
Images = np.ndarray | Sequence[Image.Image]
Arrays = dict[str, np.ndarray]


class ServingError(OSError):
    """An error between a client and a server, one line; `code` is gRPC's, as `UNAVAILABLE` or `NOT_FOUND`."""

    def __init__(self, code: str, reason: str, advice: str = ""):
        self.code, self.reason, self.advice = code, reason, advice or _ADVICE.get(code, "look at the server's log")
        first = (reason.strip().splitlines() or ["no reason given"])[0]
        super().__init__(f"{first[:400]} [{code}]; {self.advice}")


class TensorSpec(NamedTuple):
    """One input or output: a NumPy dtype or `string`, and a shape whose unknown sizes are None (None: any shape)."""

    dtype: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        sizes = "..." if self.shape is None else ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.dtype}[{sizes}]"


class SignatureSpec(NamedTuple):
    """The inputs and outputs of one signature, by name."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


class Scores(NamedTuple):
    """The negative evidence lower bound of each image, at one draw of its latents."""

    nats: np.ndarray  # [count]
    bits_per_dim: np.ndarray  # [count]; NaN where the likelihood is a registered density
    kl_per_group: np.ndarray  # [count, groups], in nats, the top group first


class ServedModel(contextlib.AbstractContextManager):
    """A model on a server; a context manager that many threads may use.

    Pillow's images and uint8 arrays are quantized to the bits of the model's data where the model has signatures for
    PNG files; float images are used as they are. `labels`, for models with classes, are one class for all rows or one
    each, -1 for none; `guidance` and `proposals`, see `nvae_tf.serving.signatures`, likewise. Image i of a call is that
    of its seed, however the call is cut into requests. Methods raise ServingError, and ValueError for arguments.

    `server` is `HOST:PORT` for gRPC (usually 8500), or a URL as `http://HOST:PORT` for REST (usually 8501). `timeout`
    includes the repetitions of a request; over REST it is for each wait for a part of an answer. `total_timeout` is for
    a call. `progress` is called with the number of rows that are done.
    """

    def __init__(
        self,
        server: str,
        model: Annotated[str, "The model's name on the server."],
        version: Annotated[int | None, "A version; the newest that is served if not given.", 0] = None,
        label: Annotated[str | None, "The version with a label, e.g. stable."] = None,
        timeout: Annotated[float, "Seconds for a request.", 0.001] = 60.0,
        total_timeout: Annotated[float, "Seconds for everything.", 0.001] = 3600.0,
        batch_rows: Annotated[int, "Most rows of a request; servers usually take up to 64.", 1] = 32,
        in_flight: Annotated[int, "Requests at once.", 1] = 2,
        progress: Callable[[int], object] = lambda done: None,
    ):
        if version is not None and label is not None:
            raise ValueError(f"version {version} and label {label!r}: give one of them")
        given = {"version": version, "label": label}
        chosen = "".join(f" {name} {value}" for name, value in given.items() if value is not None)
        self._what = f"{server}, model {model!r}{chosen}"
        self._seconds, self._total_seconds, self._progress = timeout, total_timeout, progress
        self._batch_rows, self._in_flight = batch_rows, in_flight
        self._signatures: dict[str, SignatureSpec] | None = None
        self.transport = (RestTransport if "://" in server else GrpcTransport)(server, model, version, label)

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections; requests in flight end with an error."""
        self.transport.close()

    def sample(
        self, count: int, seed: int = 0, temperature: float = 1.0, labels=None, proposals=None, as_pixels: bool = False
    ) -> np.ndarray:
        """Returns images `[count, H, W, C]` from the prior: float32 in [0, 1], or uint8 with `as_pixels`."""
        inputs = {"seed": row_seeds(seed, count), "temperature": np.full(count, temperature, np.float32)}
        return self._run("sample", inputs, as_pixels, label=labels, proposals=proposals)["image"]

    def compose(
        self, latents: np.ndarray, keep: Any, seed: int = 0, temperature: Any = 1.0, labels=None, **optional: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns images and latents, of latents `[count, total]` whose groups are kept where `keep` is 1, else drawn.

        `keep` and `temperature` are `[count, groups]`, the top group first, or what broadcasts to it. A group that is
        drawn comes from the prior given the groups above. `optional`: `guidance`, `proposals`, `as_pixels`.
        """
        shape = len(latents), self._spec("compose").inputs["keep"].shape[1]
        inputs = {"latent": np.asarray(latents), "seed": row_seeds(seed, len(latents))}
        inputs |= {"keep": np.broadcast_to(keep, shape), "temperature": np.broadcast_to(temperature, shape)}
        outputs = self._run("compose", inputs, optional.pop("as_pixels", False), label=labels, **optional)
        return outputs["image"], outputs["latent"]

    def encode(self, images: Images, seed: int = 0, labels: Any = None) -> np.ndarray:
        """Returns latents `[count, total]` drawn from the posterior, group after group, the top one first."""
        return self._run("encode", self._pictures("encode", images, seed), label=labels)["latent"]

    def decode(self, latents: np.ndarray, labels: Any = None, as_pixels: bool = False) -> np.ndarray:
        """Returns images `[count, H, W, C]` of latents `[count, total]`."""
        return self._run("decode", {"latent": np.asarray(latents)}, as_pixels, label=labels)["image"]

    def reconstruct(self, images: Images, seed: int = 0, labels: Any = None, as_pixels: bool = False) -> np.ndarray:
        """Returns the model's reconstructions of images, `[count, H, W, C]`."""
        return self._run("reconstruct", self._pictures("reconstruct", images, seed), as_pixels, label=labels)["image"]

    def score(self, images: Images, seed: int = 0, labels: Any = None) -> Scores:
        """Returns the negative evidence lower bound of images: `model.score(images, per_group=True)` in Python."""
        outputs = self._run("score", self._pictures("score", images, seed), label=labels)
        outputs = {"bits_per_dim": np.full_like(outputs["nats"], np.nan)} | outputs
        return Scores(*(outputs[name] for name in Scores._fields))

    def predict(self, signature: str, /, **inputs: Any) -> Arrays:
        """Returns all outputs of any signature by name, from one request with the batch first; strings are bytes.

        Numbers get the signature's dtype, where that loses no more than decimals.
        """
        return self._ask(signature, inputs, time.monotonic() + self._total_seconds)

    def signatures(self) -> dict[str, SignatureSpec]:
        """Returns the signatures by name, asked once; another version may have others, `metadata` asks again."""
        return self._signatures or self.metadata()[1]  # another thread may forget them: read once

    def metadata(self) -> tuple[int, dict[str, SignatureSpec]]:
        """Returns the version that answers and its signatures by name, asked now."""
        answer = self._call("metadata", self.transport.describe, "metadata")
        self._signatures = signatures = signature_specs(answer["metadata"][SIGNATURE_DEF][SIGNATURE_DEF])
        return int(answer["model_spec"]["version"]), signatures

    def model_status(self) -> list[tuple[int, str, str]]:
        """Returns number, state and error (or '') of all versions that the server knows, newest first."""
        versions = self._call("status", self.transport.describe, "status")["model_version_status"]
        return sorted(((int(v["version"]), v["state"], v["status"]["error_message"]) for v in versions), reverse=True)

    def image_shape(self, signature: str = "score") -> tuple[int, int, int]:
        """Returns the height, width and channels of the images that a signature takes."""
        return self._spec(signature).inputs["image"].shape[1:]

    def _spec(self, signature: str) -> SignatureSpec:
        known = self.signatures()
        if signature not in known:
            raise ServingError("NOT_FOUND", f"{self._what}: no signature {signature!r}", f"it has {', '.join(known)}")
        return known[signature]

    def _pictures(self, signature: str, images: Images, seed: int) -> Arrays:
        arrays = image_arrays(images, self.image_shape(signature))
        return {"image": arrays, "seed": row_seeds(seed, len(arrays))}

    def _ask(self, signature: str, inputs: dict[str, Any], end: float, first: int = 0) -> Arrays:
        """Returns the outputs of one request, whose first row is row `first` of the call."""
        spec, what = self._spec(signature), f"{self._what}, signature {signature!r}"
        if unknown := sorted(inputs.keys() - spec.inputs.keys()):  # over REST a server would leave them out
            raise ServingError("INVALID_ARGUMENT", f"{what}: no input {unknown[0]!r}", f"it has {[*spec.inputs]}")
        arrays = {name: as_array(value, spec.inputs[name]) for name, value in inputs.items()}
        outputs = self._call(f"signature {signature!r}", self.transport.predict, signature, arrays, spec, end=end)
        # With TensorFlow Serving's batching a graph can't end with an error for one row without failing others.
        if "valid" in outputs:
            wrong = ~outputs["valid"]
        else:  # exports of 0.1 mark such rows by NaN alone
            floats = [each.reshape(len(each), -1) for each in outputs.values() if each.ndim and each.dtype.kind == "f"]
            wrong = np.any([np.isnan(each).any(axis=1) for each in floats], axis=0)
        if rows := (first + np.flatnonzero(wrong)).tolist():
            raise ServingError("INVALID_ARGUMENT", f"{what}: the model refuses rows {rows[:5]}: out of range")
        return outputs

    def _call(self, what: str, method: Callable[..., Any], *arguments: Any, end: float = float("inf")) -> Any:
        """Returns what a method of the transport returns; the request is sent again while no server is ready."""
        end = min(end, time.monotonic() + self._seconds)
        for attempt in range(1, ATTEMPTS + 1):
            wait = random.uniform(0.0, FIRST_WAIT * 2 ** (attempt - 1))
            try:
                if (seconds := end - time.monotonic()) <= 0.0:
                    raise ServingError("DEADLINE_EXCEEDED", f"{self._total_seconds:g} s for the whole call are over")
                return method(*arguments, seconds)
            except (KeyError, TypeError, ValueError) as error:
                raise ServingError("UNKNOWN", f"{self._what}, {what}: an answer of another form ({error!r})") from error
            except ServingError as error:
                if error.code != "UNAVAILABLE" or attempt == ATTEMPTS or time.monotonic() + wait > end:
                    # The server may have loaded a version with other signatures since.
                    self._signatures = None
                    raise ServingError(error.code, f"{self._what}, {what}: {error.reason}", error.advice) from None
            time.sleep(wait)

    def _run(self, signature: str, inputs: Arrays, as_pixels: bool = True, **optional: Any) -> Arrays:
        """Returns the outputs of all rows, cut into requests of which several run at once; images as uint8 or float."""
        # PNG files are far fewer bytes than numbers, as JSON above all; and the model quantizes their pixels itself.
        takes_pixels = "image" not in inputs or inputs["image"].dtype == np.uint8
        if as_pixels and takes_pixels and f"{signature}{PNG_SUFFIX}" in self.signatures():
            signature += PNG_SUFFIX
        count, wanted = len(next(iter(inputs.values()))), self._spec(signature).inputs
        if not count:
            raise ValueError("no rows: give one image or latent at least")
        for name, value in optional.items():
            if value is not None or name in wanted:
                inputs[name] = np.broadcast_to(_OPTIONAL[name] if value is None else value, [count])
        end = time.monotonic() + self._total_seconds

        def ask(first: int) -> Arrays:
            batch = {name: array[first : first + self._batch_rows] for name, array in inputs.items()}
            if "image" in batch and signature.endswith(PNG_SUFFIX):
                batch["image_bytes"] = png_files(batch.pop("image"))
            elif "image" in batch and batch["image"].dtype == np.uint8:
                batch["image"] = batch["image"] / np.float32(255.0)
            return self._ask(signature, batch, end, first)

        with ThreadPoolExecutor(self._in_flight) as pool, contextlib.ExitStack() as stack:
            stack.callback(pool.shutdown, cancel_futures=True)  # after an error no further request is sent
            asked = [pool.submit(ask, first) for first in range(0, count, self._batch_rows)]
            for done, future in enumerate(as_completed(asked), 1):
                future.result()
                self._progress(min(done * self._batch_rows, count))
        results = [future.result() for future in asked]
        outputs = {name: np.concatenate([result[name] for result in results]) for name in results[0]}
        if "image_bytes" in outputs:
            outputs["image"] = pixels_of_files(outputs["image_bytes"])
        elif "image" in outputs and as_pixels:
            outputs["image"] = pixels_of(outputs["image"])
        return outputs


def as_array(value: Any, wanted: TensorSpec) -> np.ndarray:
    """Returns an input as an array of the signature's dtype, if NumPy's rule `same_kind` allows; else as it is."""
    if wanted.dtype == STRING:
        # Objects: NumPy's own strings lose zero bytes at the end.
        encode = np.frompyfunc(lambda text: text.encode() if isinstance(text, str) else text, 1, 1)
        return encode(np.array(value, object))
    array = np.asarray(value)
    return array.astype(wanted.dtype) if np.can_cast(array.dtype, wanted.dtype, "same_kind") else array


def row_seeds(seed: int, count: int) -> np.ndarray:
    """Returns seeds int64 `[count]` of images 0, 1, ...: the low word is the series, the high word the image."""
    return np.int64(whole_number("seed", seed)) + (np.arange(count, dtype=np.int64) << 32)


def image_arrays(images: Images, shape: tuple[int | None, ...]) -> np.ndarray:
    """Returns images `[count, *shape]`, uint8 or float32 in [0, 1]; Pillow's are converted to the model's channels."""
    if isinstance(images, np.ndarray):
        if images.dtype.kind not in "fb" and images.dtype != np.uint8:
            raise ValueError(f"images are {images.dtype}: divide by their largest level, as images / 4095 of 12 bits")
        return images if images.dtype == np.uint8 else images.astype(np.float32)
    pixels = []
    for number, image in enumerate(images):
        if image.mode in ("I", "F"):
            raise ValueError(f"a picture of Pillow's mode {image.mode!r}: save it with 8 or 16 bits a channel")
        # The upper 8 of 16 bits, as a model's graph reads such files; Pillow would clip at 255.
        pixels.append(np.atleast_3d(np.asarray(as_eight_bits(image, shape[-1]))))
        if pixels[-1].shape != tuple(shape):
            name, size = getattr(image, "filename", "") or f"picture {number}", "x".join(map(str, pixels[-1].shape))
            wanted = f"{'x'.join(map(str, shape))} (height x width x channels)"
            raise ValueError(f"{name} is {size}, the model takes {wanted}; resize it")
    return np.stack(pixels) if pixels else np.zeros([0, *shape], np.uint8)


class RestTransport:
    """The requests to one model on `server`, a URL; errors are `ServingError`s without the server's name."""

    def __init__(self, server: str, model: str, version: int | None, label: str | None):
        import requests  # not at the top: it takes longer than all else of --help

        parts = ["models", model, *([] if version is None else ["versions", str(version)])]
        parts += [] if label is None else ["labels", label]
        self.url = "/".join([server.rstrip("/"), "v1", *(urllib.parse.quote(part, safe="") for part in parts)])
        self._requests, self._session = requests, requests.Session()
        # No proxy knows this machine's own ports.
        self._session.trust_env = urllib.parse.urlsplit(server).hostname not in _THIS_MACHINE
        self.close = self._session.close

    def predict(self, signature: str, arrays: Arrays, spec: SignatureSpec, seconds: float) -> Arrays:
        inputs = {name: json_value(array) for name, array in arrays.items()}
        body = json.dumps({"signature_name": signature, "inputs": inputs})
        outputs = self._ask("POST", ":predict", "outputs", seconds, body)["outputs"]
        if len(spec.outputs) == 1:  # its value stands without its name
            outputs = dict.fromkeys(spec.outputs, outputs)
        return {name: json_array(outputs[name], output.dtype) for name, output in spec.outputs.items()}

    def describe(self, what: str, seconds: float) -> dict[str, Any]:
        """Returns a GetModelMetadataResponse or a GetModelStatusResponse as JSON, for "metadata" or "status"."""
        place = ("/metadata", "metadata") if what == "metadata" else ("", "model_version_status")
        return self._ask("GET", *place, seconds)

    def _ask(self, method: str, path: str, key: str, seconds: float, body: str | None = None) -> dict[str, Any]:
        try:
            response = self._session.request(method, self.url + path, data=body, timeout=seconds)
            answer = response.json()
        except self._requests.Timeout:
            raise ServingError("DEADLINE_EXCEEDED", f"no answer within {seconds:.3g} s") from None
        except self._requests.JSONDecodeError:
            answer = {"error": response.text} if response.status_code in (413, 503) else None
        except self._requests.RequestException as error:  # a request changes nothing, so it may be sent again
            raise ServingError("UNAVAILABLE", f"no answer ({first_line(error)})") from None
        answer = answer if isinstance(answer, dict) else {}
        if response.ok and key in answer:
            return answer
        if "error" in answer:
            raise ServingError(_CODES.get(response.status_code, "UNKNOWN"), str(answer["error"]))
        raise ServingError(f"HTTP {response.status_code}", response.text[:200], "is this its REST port?")


class GrpcTransport:
    """The requests to one model on `server`, HOST:PORT, with the methods of `RestTransport`; it starts TensorFlow."""

    def __init__(self, server: str, model: str, version: int | None, label: str | None):
        start_tensorflow_quietly()
        self._grpc = require("grpc", "serving")
        require("tensorflow_serving", "serving")
        from tensorflow_serving.apis import model_pb2, model_service_pb2_grpc, prediction_service_pb2_grpc

        chosen = None if version is None else {"value": version}
        self._model = model_pb2.ModelSpec(name=model, version=chosen, version_label=label)
        # `ServedModel` sends again; a server that comes up is seen at once.
        options = {"max_receive_message_length": 2**28, "enable_retries": 0, "max_reconnect_backoff_ms": 100}
        options["enable_http_proxy"] = int(server.rpartition(":")[0] not in _THIS_MACHINE)
        channel = self._grpc.insecure_channel(server, [(f"grpc.{name}", value) for name, value in options.items()])
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(channel)
        self.close = channel.close

    def predict(self, signature: str, arrays: Arrays, spec: SignatureSpec | None, seconds: float) -> Arrays:
        import tensorflow as tf
        from tensorflow_serving.apis.predict_pb2 import PredictRequest

        # All outputs: a server has warmed up for all, and makes another graph for each selection.
        messages = {name: tf.make_tensor_proto(array) for name, array in arrays.items()}
        request = PredictRequest(model_spec=self._model, inputs=messages)
        request.model_spec.signature_name = signature
        answer = self._ask(self._predictions.Predict, request, seconds)
        return {name: tf.make_ndarray(message) for name, message in answer.outputs.items()}

    def describe(self, what: str, seconds: float) -> dict[str, Any]:
        from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

        call, request = self._models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest(model_spec=self._model)
        if what == "metadata":
            fields = {"model_spec": self._model, "metadata_field": [SIGNATURE_DEF]}
            call, request = self._predictions.GetModelMetadata, get_model_metadata_pb2.GetModelMetadataRequest(**fields)
        return message_as_json(self._ask(call, request, seconds))

    def _ask(self, call: Callable[..., Any], request: Any, seconds: float) -> Any:
        try:
            return call(request, timeout=seconds)
        except self._grpc.RpcError as error:
            raise ServingError(error.code().name, error.details() or "") from None


def signature_specs(definitions: Mapping[str, Any]) -> dict[str, SignatureSpec]:
    """Returns the signatures among SignatureDefs as JSON; names like `__saved_model_init_op` are left out."""

    def tensor_spec(info: Mapping[str, Any]) -> TensorSpec:
        shape, dtype = info.get("tensor_shape", {}), info.get("dtype", "DT_INVALID").removeprefix("DT_").lower()
        sizes = [int(dimension.get("size", 0)) for dimension in shape.get("dim", ())]
        sizes = None if shape.get("unknown_rank") else tuple(None if size < 0 else size for size in sizes)
        return TensorSpec({"float": "float32", "double": "float64"}.get(dtype, dtype), sizes)

    specs = {}
    for name in sorted(name for name in definitions if not name.startswith("__")):
        sides = [sorted(definitions[name].get(side, {}).items()) for side in SignatureSpec._fields]
        specs[name] = SignatureSpec(*({key: tensor_spec(info) for key, info in side} for side in sides))
    return specs


def json_value(array: np.ndarray, as_base64: bool = True) -> Any:
    """Returns an array as nested lists: bytes as `{"b64": ...}`, which inputs need, or as UTF-8 for text outputs."""

    def text(value: bytes) -> Any:
        return {BASE64: base64.b64encode(value).decode()} if as_base64 else value.decode("utf-8", "replace")

    if array.dtype == object:
        return np.frompyfunc(text, 1, 1)(array).tolist()
    # Of floats the fewest decimals that give the number back.
    return (array.astype(str).astype(float) if array.dtype.kind == "f" else array).tolist()


def json_array(value: Any, dtype: str) -> np.ndarray:
    """Returns the array of `json_value`: numbers, or strings and `{"b64": ...}`; ValueError for anything else."""
    # A string type of NumPy would take the size of the longest for every item.
    array = np.array(value, object)
    types = set(map(type, array.ravel()))
    if list in types:
        raise ValueError("lists of different lengths, or nested too deep")
    if dtype != STRING:
        allowed = {"f": {int, float}, "b": {bool}}.get(np.dtype(dtype).kind, {int})  # Python's types of JSON numbers
        if wrong := types - allowed:
            raise ValueError(f"a {', '.join(kind.__name__ for kind in wrong)} where {dtype} is wanted")
        return np.array(value, dtype)

    def decoded(item: Any) -> bytes:
        return item.encode() if isinstance(item, str) else base64.b64decode(item[BASE64], validate=True)

    return np.asarray(np.frompyfunc(decoded, 1, 1)(array), object)  # of a single string the function gives no array


def message_as_json(message: Any) -> dict[str, Any]:
    """Returns a message as TensorFlow Serving's REST interface writes it."""
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
