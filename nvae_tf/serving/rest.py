"""REST as TensorFlow Serving speaks it: the client's side, and its JSON, which the server for trials reads too.

This module does not start TensorFlow.
"""

import base64
import json
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import numpy as np
import requests
import urllib3

from nvae_tf.config import check
from nvae_tf.errors import require, wrap_read_errors
from nvae_tf.serving import client
from nvae_tf.serving.client import STRING, Arrays, ModelMetadata, SignatureSpec, VersionStatus
from nvae_tf.serving.outputs import DEFAULT_SIGNATURE

orjson, tenacity = require("orjson", "serving"), require("tenacity", "serving")

BASE64 = "b64"
# The HTTP status of each of gRPC's codes; what comes first is how a client reads a status.
HTTP_STATUS = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "OUT_OF_RANGE": 400,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "UNIMPLEMENTED": 501,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
_CODES = {status: code for code, status in reversed(HTTP_STATUS.items())} | {413: "RESOURCE_EXHAUSTED"}
_PIECE = 2**20
# What JSON numbers must be to become an array of a kind; whole numbers for the others.
_NUMBERS = {"f": (int, float), "b": (bool,)}
# NumPy's iterators end there.
_DEEPEST = 32


class RestTransport:
    """The calls of a model on `server`, a URL; errors are `ServingError`s without the server's name."""

    def __init__(self, server: str, model: str, version: int | None, label: str | None):
        chosen = "" if version is None else f"/versions/{version}"
        chosen = f"/labels/{urllib.parse.quote(label, safe='')}" if label is not None else chosen
        self.url = f"{server.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}{chosen}"
        self._session = requests.Session()
        # A proxy must not be asked for this machine.
        self._session.trust_env = not is_this_machine(urllib.parse.urlsplit(server).netloc)

    def close(self) -> None:
        """Closes the connections that are kept."""
        self._session.close()

    def predict(self, signature: str, arrays: Arrays, spec: SignatureSpec, seconds: float) -> Arrays:
        """All outputs."""
        inputs = {name: json_of(array) for name, array in arrays.items()}
        body = json_text({"signature_name": signature, "inputs": inputs})
        answer = self._ask("POST", ":predict", seconds, body)
        with wrap_read_errors("no answer of this signature (", ")", client.ServerFailed):
            # The value of a single output stands without its name.
            only = next(iter(spec.outputs))
            found = {only: answer["outputs"]} if len(spec.outputs) == 1 else answer["outputs"]
            return {name: array_of_json(found[name], output.dtype) for name, output in spec.outputs.items()}

    def metadata(self, seconds: float) -> ModelMetadata:
        """The version that answers, and its signatures."""
        answer = self._ask("GET", "/metadata", seconds)
        with wrap_read_errors("no metadata of a model (", ")", client.ServerFailed):
            definitions = answer["metadata"]["signature_def"]["signature_def"]
            return ModelMetadata(int(answer["model_spec"]["version"]), client.signature_specs(definitions))

    def status(self, seconds: float) -> list[VersionStatus]:
        """All versions, newest first."""
        answer = self._ask("GET", "", seconds)
        with wrap_read_errors("no status of a model (", ")", client.ServerFailed):
            return client.version_statuses(answer)

    def _ask(self, method: str, path: str, seconds: float, body: bytes | None = None) -> dict[str, Any]:
        """The JSON object of an answer; a request that finds no server is sent again, see `ATTEMPTS`."""
        end = time.monotonic() + seconds
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(client.ServerNotReady),
            # With jitter, so that many clients don't come back at once.
            wait=tenacity.wait_random_exponential(client.FIRST_WAIT, client.LONGEST_WAIT),
            stop=tenacity.stop_after_attempt(client.ATTEMPTS) | tenacity.stop_before_delay(seconds),
            reraise=True,
        )
        return retrying(self._ask_once, method, path, body, end, seconds)

    def _ask_once(self, method: str, path: str, body: bytes | None, end: float, seconds: float) -> dict[str, Any]:
        try:
            left = max(end - time.monotonic(), 1e-3)
            options = {"timeout": left, "stream": True, "allow_redirects": False}
            with self._session.request(method, self.url + path, data=body, **options) as response:
                content = bytearray()
                # Piece by piece: the session's own timeout is for each wait, not for the whole.
                while piece := response.raw.read1(_PIECE, decode_content=True):
                    content += piece
                    if time.monotonic() > end:
                        raise requests.Timeout()
        except (requests.exceptions.SSLError, requests.exceptions.ProxyError) as error:
            raise client.error_of("UNKNOWN", str(error), "look at its certificate, or the proxy") from None
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            raise client.error_of("DEADLINE_EXCEEDED", f"no answer within {seconds:.3g} s") from None
        # What requests does not wrap comes of reading the content.
        except (requests.ConnectionError, urllib3.exceptions.ProtocolError) as error:
            # A request changes nothing, so that it may be sent again; gRPC calls this UNAVAILABLE too.
            texts = {"refused": "nobody answers there", "resolve": "there is no host of this name"}
            broken = "the connection broke before there was an answer"
            reason = next((text for word, text in texts.items() if word in str(error)), broken)
            raise client.error_of("UNAVAILABLE", reason) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise client.error_of("UNKNOWN", str(error), "is this its REST port?") from None
        return _object_of(response.status_code, bytes(content))


def is_this_machine(server: str) -> bool:
    """Whether `HOST:PORT` is on this machine."""
    host = server.rpartition("@")[2].rpartition(":")[0].strip("[]") or server
    return host in ("localhost", "::1") or host.startswith("127.")


def _object_of(status: int, content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if status == requests.codes.ok and isinstance(answer, dict):
        return answer
    reason = answer.get("error") if isinstance(answer, dict) else None
    if reason is None and status not in (413, 503):
        # Some other web server.
        raise client.error_of(f"HTTP {status}", str(content[:200]), "is this its REST port?")
    raise client.error_of(_CODES.get(status, f"HTTP {status}"), str(reason or content[:200]))


def json_of(array: np.ndarray, as_base64: bool = True) -> Any:
    """An array for `json_text`; bytes as `{"b64": ...}`, which inputs need, or as UTF-8 for text outputs."""
    if array.dtype != object:
        return np.asarray(array, order="C")

    def text(value: bytes) -> Any:
        return {BASE64: base64.b64encode(value).decode()} if as_base64 else value.decode("utf-8", "replace")

    return np.frompyfunc(text, 1, 1)(array).tolist() if array.size else array.tolist()


def json_text(value: Any) -> bytes:
    """JSON of dictionaries, lists and arrays: floats in the fewest decimals, NaN bare, as TensorFlow Serving writes."""
    options = {"default": lambda array: array.tolist()}
    text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY, **options)
    # What is not finite, where something is.
    return json.dumps(value, **options).encode() if b"null" in text else text


def array_of_json(value: Any, dtype: str) -> np.ndarray:
    """The array of nested lists of numbers, or of strings and `{"b64": ...}`; ValueError for anything else."""
    uneven = "lists of different lengths, or nested too deep"
    try:
        # Objects: a type of NumPy's own would take the size of the largest for every item.
        array = np.array(value, object)
    except ValueError:
        raise ValueError(uneven) from None
    items = array.ravel().tolist()
    types = set(map(type, items))
    check(array.ndim <= _DEEPEST and list not in types, uneven)
    if dtype == STRING:
        decoded = np.empty(len(items), object)
        decoded[:] = [_bytes_of(item) for item in items]
        return decoded.reshape(array.shape)
    wanted = np.dtype(dtype)
    wrong = types.difference(_NUMBERS.get(wanted.kind, (int,)))
    check(not wrong, f"a {', '.join(sorted(kind.__name__ for kind in wrong))} where {dtype} is wanted")
    try:
        return np.array(items, wanted).reshape(array.shape)
    except OverflowError:
        raise ValueError(f"a number that {dtype} can't hold") from None


def _bytes_of(item: Any) -> bytes:
    if isinstance(item, str):
        return item.encode("utf-8", errors="surrogatepass")
    text = item.get(BASE64) if isinstance(item, Mapping) and list(item) == [BASE64] else None
    check(isinstance(text, str), f'a {type(item).__name__} where a string or {{"{BASE64}": "..."}} is wanted')
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise ValueError(f"no base64 ({error})") from None


def json_request(body: bytes, specs: Mapping[str, SignatureSpec]) -> tuple[str, Arrays, bool]:
    """Signature and inputs of a predict request, and whether they are in rows (`instances`) or columns (`inputs`).

    Raises ValueError for another body, as it is refused by TensorFlow Serving.
    """
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"JSON Parse error: {error}") from None
    check(isinstance(request, dict), "JSON Value: Is not object")
    signature = request.get("signature_name", "")
    check(isinstance(signature, str), "'signature_name' key must be a string value.")
    signature = signature or DEFAULT_SIGNATURE
    check(signature in specs, f'Serving signature name: "{signature}" not found in signature def')
    keys = [key for key in ("instances", "inputs") if key in request]
    check(len(keys) == 1, f"give one of 'instances' and 'inputs', there is {' and '.join(keys) or 'none'}")
    given, in_rows, inputs = request[keys[0]], keys == ["instances"], specs[signature].inputs

    def named(value: Any) -> dict[str, Any]:
        # Where there is one input alone, its value may stand without the name.
        return value if isinstance(value, dict) and set(value) != {BASE64} else {next(iter(inputs), ""): value}

    columns = {} if in_rows else named(given)
    if in_rows:
        check(isinstance(given, list) and bool(given), "'instances' must be a list/array with values")
        rows, names = [named(row) for row in given], ", ".join(inputs)
        wrong = next((number for number, row in enumerate(rows) if set(row) != set(inputs)), None)
        check(wrong is None, f"Failed to process element: {wrong} of 'instances' list; keys must be equal to: {names}")
        columns = {name: [row[name] for row in rows] for name in inputs}
    arrays = {}
    for name, tensor in inputs.items():
        check(name in columns, f"Missing named input: {name} in 'inputs' object.")
        try:
            arrays[name] = array_of_json(columns[name], tensor.dtype)
        except (ValueError, TypeError) as error:
            raise ValueError(f"input {name!r}: {error}") from None
    return signature, arrays, in_rows


def json_answer(found: Arrays, in_rows: bool) -> dict[str, Any]:
    """The answer to a predict request; ValueError where an output has no row for each row of the others."""
    # Outputs whose name ends so are base64, other strings are text.
    outputs = {name: json_of(array, name.endswith("_bytes")) for name, array in found.items()}
    if not in_rows:
        return {"outputs": outputs if len(outputs) > 1 else next(iter(outputs.values()))}
    even = len({len(array) if array.ndim else None for array in found.values()}) == 1
    check(even, "an output has an inconsistent batch size; ask with 'inputs'")
    rows = [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]
    return {"predictions": rows if len(outputs) > 1 else next(iter(outputs.values()))}
