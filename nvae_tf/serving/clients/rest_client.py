"""A client of TensorFlow Serving's REST interface; like `nvae_tf.serving.serving_client`, over HTTP and JSON.

    with RestClient("localhost:8501", "digits") as client:
        pictures = client.predict("sample", seed=[1, 2], temperature=[1.0, 1.0])["image"]

Numbers travel as text, so pictures are several times larger than with gRPC, less so those of the signatures
whose pictures are PNG. It needs NumPy and the packages requests and tensorflow-serving-api (for the words of the
metadata); TensorFlow is not started.
"""

import json
import time
import urllib.parse
from collections.abc import Collection
from typing import Any

import numpy as np
import requests
import urllib3
from google.protobuf import json_format

from nvae_tf.serving.clients import serving_errors
from nvae_tf.serving.clients.model_client import ModelClient, VersionStatus, is_this_machine
from nvae_tf.serving.clients.request_patience import Job, Patience
from nvae_tf.serving.clients.rest_values import array_of_json, json_of
from nvae_tf.serving.clients.serving_errors import ServerFailed, in_one_line
from nvae_tf.serving.clients.serving_messages import get_model_metadata_pb2
from nvae_tf.serving.clients.signature_specs import ModelMetadata, SignatureSpec, signature_specs

CONNECTIONS = 64
_PIECE = 2**20

# The kind of error and what to do about it, for each HTTP status that says something of its own.
_ERRORS = {
    400: (serving_errors.BadRequest, "correct the inputs"),
    404: (serving_errors.ModelNotFound, "look at the server's models and versions"),
    413: (serving_errors.TooLarge, "send fewer rows at once"),
    429: (serving_errors.TooLarge, "send fewer rows at once"),
    501: (serving_errors.NotSupported, "is it a TensorFlow Serving of this model?"),
    503: (serving_errors.ServerNotReady, "wait until it has loaded the model"),
    504: (serving_errors.DeadlineExceeded, "send fewer rows at once or allow more time"),
}


class RestClient(ModelClient):
    """See `ModelClient`; `server` is `HOST:PORT`, of TensorFlow Serving's `--rest_api_port` (8501), or a URL.

    A request that is given up is not canceled at once, as HTTP has no word for it: it ends by itself.
    """

    numbers_are_text = True

    def __init__(
        self,
        server: str,
        model: str,
        version: int | None = None,
        label: str | None = None,
        patience: Patience | None = None,
    ):
        super().__init__(server, model, version, label, patience)
        base = server.rstrip("/") if "://" in server else f"http://{server}"
        chosen = f"/versions/{version}" if version is not None else ""
        chosen = f"/labels/{urllib.parse.quote(label, safe='')}" if label is not None else chosen
        self._url = f"{base}/v1/models/{urllib.parse.quote(model, safe='')}{chosen}"
        self._session = requests.Session()
        self._session.trust_env = not is_this_machine(urllib.parse.urlsplit(base).netloc)
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=CONNECTIONS, max_retries=0)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)

    def close(self) -> None:
        """Closes the connections that are kept."""
        self._session.close()

    def _predict(
        self, job: Job, signature: str, arrays: dict[str, np.ndarray], outputs: Collection[str], seconds: float
    ) -> dict[str, np.ndarray]:
        inputs = {name: json_of(array) for name, array in arrays.items()}
        body = json.dumps({"signature_name": signature, "inputs": inputs})
        answer = self._ask("POST", ":predict", seconds, signature, body)
        try:
            found = _outputs(answer["outputs"], self.signatures()[signature])
        except (KeyError, TypeError, ValueError):
            # The JSON alone has no types, and a new version may have other outputs than the one that was asked.
            spec = self._metadata_in(job).signatures.get(signature)
            try:
                found = _outputs(answer["outputs"], spec)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ServerFailed(f"{self._told(signature)}: no answer of this signature ({error!r})") from None
        return {name: array for name, array in found.items() if not outputs or name in outputs}

    def _metadata(self, job: Job, seconds: float) -> ModelMetadata:
        answer = self._ask("GET", "/metadata", seconds)
        try:
            definitions = get_model_metadata_pb2.SignatureDefMap()
            json_format.ParseDict(answer["metadata"]["signature_def"], definitions, ignore_unknown_fields=True)
            version = int(answer["model_spec"]["version"])
        except (KeyError, TypeError, ValueError, json_format.ParseError) as error:
            raise ServerFailed(f"{self._told()}: no metadata of a model ({in_one_line(repr(error))})") from None
        return ModelMetadata(self.model, version, signature_specs(definitions.signature_def))

    def _status(self, job: Job, seconds: float) -> list[VersionStatus]:
        answer = self._ask("GET", "", seconds)
        try:
            return [_version_status(found) for found in answer["model_version_status"]]
        except (KeyError, TypeError, ValueError) as error:
            raise ServerFailed(f"{self._told()}: no status of a model ({error!r})") from None

    def _ask(self, method: str, path: str, seconds: float, signature: str | None = None, body: str | None = None):
        """The JSON object of an answer.

        Raises:
          ServingError: there is none.
        """
        what = self._told(signature)
        end = time.monotonic() + seconds
        try:
            with self._session.request(
                method, self._url + path, data=body, timeout=seconds, stream=True, allow_redirects=False
            ) as response:
                content = bytearray()
                # As the pieces come: the session's own timeout is for each wait, not for the whole.
                while piece := response.raw.read1(_PIECE, decode_content=True):
                    content += piece
                    if time.monotonic() > end:
                        raise requests.Timeout()
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            told = f"{what}: no answer within {seconds:.3g} s"
            raise serving_errors.DeadlineExceeded(f"{told}; send fewer rows at once or allow more time") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if _comes_of(error, ConnectionRefusedError):
                told = f"{what}: nobody answers there; is it running, and is this its REST port?"
                raise serving_errors.ServerNotReady(told) from None
            # A request changes nothing, so that it may be sent again; gRPC calls this UNAVAILABLE too.
            if _comes_of(error, ConnectionResetError, BrokenPipeError, urllib3.exceptions.IncompleteRead):
                told = f"{what}: the connection broke before there was an answer; has the server ended? See its log"
                raise serving_errors.ServerNotReady(told) from None
            raise ServerFailed(f"{what}: {in_one_line(str(error))}; is this its REST port?") from None
        return self._object_of(what, response.status_code, bytes(content))

    @staticmethod
    def _object_of(what: str, code: int, content: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if code == requests.codes.ok and isinstance(answer, dict):
            return answer
        told = answer.get("error") if isinstance(answer, dict) else None
        kind, advice = _ERRORS.get(code, (ServerFailed, "look at the server's log"))
        if told is None and code not in (413, 503):  # some other web server
            kind, advice = ServerFailed, "is this its REST port?"
        raise kind(f"{what}: {in_one_line(str(told or content[:200]))} [HTTP {code}]; {advice}")


def _outputs(outputs: Any, spec: SignatureSpec) -> dict[str, np.ndarray]:
    """The arrays of an answer: of a signature with one output its value stands alone."""
    if len(spec.outputs) == 1:
        outputs = {next(iter(spec.outputs)): outputs}
    return {name: _output(outputs[name], wanted.dtype, wanted.shape) for name, wanted in spec.outputs.items()}


def _output(value: Any, dtype: str, shape: tuple[int | None, ...] | None) -> np.ndarray:
    array = array_of_json(value, dtype)
    # Of no rows the lists don't tell the rest of the shape.
    return array.reshape([0, *(size or 0 for size in shape[1:])]) if shape and not array.size else array


def _version_status(found: dict[str, Any]) -> VersionStatus:
    status = found.get("status", {})
    code = status.get("error_code", "OK")
    error = "" if code == "OK" else f"{code}: {in_one_line(status.get('error_message', ''))}"
    return VersionStatus(int(found["version"]), found["state"], error)


def _comes_of(error: BaseException | None, *kinds: type[BaseException]) -> bool:
    """Whether an error of such a kind is behind it; the libraries wrap them several times."""
    while error is not None:
        if isinstance(error, kinds):
            return True
        error = (
            getattr(error, "reason", None)
            or error.__cause__
            or error.__context__
            or next((argument for argument in error.args if isinstance(argument, BaseException)), None)
        )
    return False
