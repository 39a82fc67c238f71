"""Clients of a model server (TensorFlow Serving, or nvae-serve): what gRPC and REST have in common, and REST.

    with RestClient("localhost:8501", "digits") as client:
        images = client.predict("sample", seed=[1, 2], temperature=[1.0, 1.0])["image"]

`nvae_tf.serving.grpc_client` has the same over gRPC, `nvae_tf.serving.served_model` draws, encodes and scores with
either. Over REST numbers travel as text, so images are several times larger than with gRPC, less so those of the
signatures with PNG files. This module does not start TensorFlow.
"""

import abc
import base64
import contextlib
import difflib
import json
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import requests
import urllib3

from nvae_tf.config import check

AVAILABLE = "AVAILABLE"
STRING = "string"
BASE64 = "b64"
CONNECTIONS = 64
_PIECE = 2**20
_DTYPES = {"DT_FLOAT": "float32", "DT_DOUBLE": "float64", "DT_STRING": STRING, "DT_BOOL": "bool"} | {
    f"DT_{kind}{bits}": f"{kind.lower()}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)
}
# What JSON numbers must be to become an array of a kind; whole numbers for the others.
_NUMBERS = {"f": (int, float), "b": (bool,)}
# NumPy's iterators end there.
_DEEPEST = 32

Result = TypeVar("Result")


class ServingError(OSError):
    """Base of the errors between a client and a server; one line: the server, model, signature, reason and fix."""


class ModelNotFound(ServingError):
    """The server has no such model, version or label."""


class ServerNotReady(ServingError):
    """Nothing answers, or the model is still being loaded. The only error after which a client tries again."""


class BadRequest(ServingError):
    """The inputs don't fit the signature, or the model refuses their values."""


class TooLarge(ServingError):
    """A message over the limit of the server or of the client."""


class DeadlineExceeded(ServingError):
    """The answer did not come in time."""


class NotSupported(ServingError):
    """The server does not offer the call."""


class Cancelled(ServingError):
    """The caller gave the request up."""


class ServerFailed(ServingError):
    """Everything else: an error inside the server, a broken connection, an invalid answer."""


def in_one_line(text: str, longest: int = 400) -> str:
    """The first line of a server's or a library's message, shortened if it is long."""
    first = (text.strip().splitlines() or ["no reason given"])[0].strip()
    return first if len(first) <= longest else first[:longest] + " ..."


@dataclass(frozen=True)
class Patience:
    """How long a client waits, in seconds, and how often it asks again.

    A wait is drawn between half of its length and all of it, so that many clients don't come back at once.
    """

    request: float = 60.0  # for one answer
    total: float = 3600.0  # for one call of the client, with all its requests, tries and waits
    tries: int = 6  # how often a request is sent while the server is not ready
    first_wait: float = 0.2  # before the second try; each next one is twice as long, up to `longest_wait`
    longest_wait: float = 5.0

    def __post_init__(self):
        seconds = self.request, self.total, self.first_wait, self.longest_wait
        check(min(seconds) > 0, f"{self}: seconds must be above 0")
        check(self.tries >= 1, f"{self}: tries must be 1 or more")

    def wait_after(self, tries: int) -> float:
        """Seconds to wait after so many tries, drawn at random."""
        # The power is bounded first: a float has no 2.0**2000.
        longest = min(self.longest_wait, self.first_wait * 2.0 ** min(tries - 1, 64))
        return random.uniform(longest / 2, longest)


class Job:
    """One call of a client, with its deadline; may be canceled, and used from several threads."""

    def __init__(self, patience: Patience):
        self.patience = patience
        self._end = time.monotonic() + patience.total
        self._given_up = threading.Event()
        self._lock = threading.Lock()
        self._running: set[Callable[[], object]] = set()

    def cancel(self) -> None:
        """Gives the job up: waits end, requests in flight are canceled where the protocol can."""
        with self._lock:
            self._given_up.set()
            running = list(self._running)
        for cancel_request in running:
            cancel_request()

    @contextlib.contextmanager
    def in_flight(self, cancel_request: Callable[[], object]) -> Iterator[None]:
        """While the block runs, `cancel` calls `cancel_request`."""
        with self._lock:
            self._running.add(cancel_request)
            given_up = self._given_up.is_set()
        try:
            if given_up:
                cancel_request()
            yield
        finally:
            with self._lock:
                self._running.discard(cancel_request)

    def seconds_for_a_request(self, what: str) -> float:
        """How long the next request may take; Cancelled or DeadlineExceeded, beginning with `what`, if it must not."""
        if self._given_up.is_set():
            raise Cancelled(f"{what}: given up, as another request of the same job failed")
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"{what}: the {self.patience.total:g} s for the whole call are over; allow more")
        return min(left, self.patience.request)

    def until_ready(self, what: str, ask: Callable[[float], Result]) -> Result:
        """Calls `ask(seconds)`, again and again while it raises `ServerNotReady`.

        gRPC's own retry policy stops after 5 attempts, and has no deadline for several requests together.
        """
        began, tries = time.monotonic(), 0
        while True:
            try:
                return ask(self.seconds_for_a_request(what))
            except ServerNotReady as error:
                tries += 1
                wait = self.patience.wait_after(tries)
                if tries == self.patience.tries or time.monotonic() + wait >= self._end:
                    tried = f" (tried {tries} times in {time.monotonic() - began:.1f} s)" if tries > 1 else ""
                    raise ServerNotReady(f"{error}{tried}") from error
            self._given_up.wait(wait)


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


class ModelMetadata(NamedTuple):
    """A served model: its name, the version that answered, and its signatures."""

    name: str
    version: int
    signatures: dict[str, SignatureSpec]


class VersionStatus(NamedTuple):
    """One version on a server: its state (`LOADING`, `AVAILABLE`, ...), and the error of one that failed, or ''."""

    version: int
    state: str
    error: str


def signature_specs(definitions: Mapping[str, Any]) -> dict[str, SignatureSpec]:
    """The signatures of a server's metadata, SignatureDefs as JSON, without `__saved_model_init_op` and the like."""

    def tensor_spec(info: Mapping[str, Any]) -> TensorSpec:
        shape = info.get("tensor_shape", {})
        sizes = [int(dimension.get("size", 0)) for dimension in shape.get("dim", ())]
        sizes = None if shape.get("unknown_rank") else tuple(None if size < 0 else size for size in sizes)
        # Types that models here don't use keep TensorFlow's name.
        return TensorSpec(_DTYPES.get(info.get("dtype"), info.get("dtype", "DT_INVALID")), sizes)

    specs = {}
    for name, definition in sorted(definitions.items()):
        if not name.startswith("__"):
            sides = (sorted(definition.get(side, {}).items()) for side in ("inputs", "outputs"))
            specs[name] = SignatureSpec(*({key: tensor_spec(info) for key, info in side} for side in sides))
    return specs


def version_statuses(answer: Mapping[str, Any]) -> list[VersionStatus]:
    """The versions of a GetModelStatusResponse as JSON."""
    statuses = []
    for found in answer["model_version_status"]:
        status = found.get("status", {})
        code = status.get("error_code", "OK")
        error = "" if code == "OK" else f"{code}: {in_one_line(status.get('error_message', ''))}"
        statuses.append(VersionStatus(int(found["version"]), found["state"], error))
    return statuses


def nearest(name: str, known: Iterable[str]) -> str:
    """The name that was probably meant; any, if none is near."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def as_arrays(inputs: Mapping[str, Any], spec: SignatureSpec | None) -> dict[str, np.ndarray]:
    """The inputs as arrays; plain Python numbers and lists, which have no dtype, get the one of the signature.

    Strings become object arrays of bytes: NumPy's own fixed-width strings lose zero bytes at the end.
    """
    arrays = {}
    for name, value in inputs.items():
        wanted = spec.inputs.get(name) if spec else None
        try:
            # Text by its first item: as an array of NumPy's own, each item would take the size of the largest.
            first = value
            while isinstance(first, list | tuple) and first:
                first = first[0]
            array = np.array(value, object) if isinstance(first, str | bytes) else np.asarray(value)
            if array.dtype.kind in "SUO":
                array = array.astype(object)
                for place, text in np.ndenumerate(array):
                    if not isinstance(text, str | bytes):
                        raise TypeError(f"a {type(text).__name__} where a string is wanted")
                    array[place] = text.encode() if isinstance(text, str) else text
            elif wanted and wanted.dtype != STRING and not isinstance(value, np.ndarray | np.generic):
                if np.can_cast(array.dtype, wanted.dtype, "same_kind"):
                    array = array.astype(wanted.dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise ValueError(f"input {name!r} is no array ({error})") from None
        # TensorFlow wants the machine's own order of bytes; IDX files have the other.
        arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    return arrays


def fits(shape: tuple[int, ...], wanted: tuple[int | None, ...] | None) -> bool:
    """Whether a shape is one that a signature takes."""
    return wanted is None or (
        len(shape) == len(wanted) and all(size in (None, given) for given, size in zip(shape, wanted, strict=True))
    )


def check_inputs(arrays: Mapping[str, np.ndarray], spec: SignatureSpec) -> None:
    """Raises ValueError for wrong names, dtypes or shapes, and for inputs of different numbers of rows."""
    for name in arrays:
        if name not in spec.inputs:
            raise ValueError(f"no input {name!r}, did you mean {nearest(name, spec.inputs)!r}?")
    for name, wanted in spec.inputs.items():
        if name not in arrays:
            raise ValueError(f"input {name!r} is missing; give {wanted}")
        array = arrays[name]
        given = TensorSpec(STRING if array.dtype == object else array.dtype.name, array.shape)
        if given.dtype != wanted.dtype:
            raise ValueError(f"input {name!r} is {given}; give {wanted}, e.g. array.astype({wanted.dtype!r})")
        if not fits(array.shape, wanted.shape):
            raise ValueError(f"input {name!r} is {given}; give {wanted}")
    if all(wanted.shape and wanted.shape[0] is None for wanted in spec.inputs.values()):
        rows = {name: len(array) for name, array in arrays.items()}
        if len(set(rows.values())) > 1:
            counts = ", ".join(f"{name} {count}" for name, count in rows.items())
            raise ValueError(f"inputs of different numbers of rows: {counts}")


class ModelClient(abc.ABC):
    """A client of one model on one server; may be used from many threads at once, and as a context manager.

    Args:
      server: its address, as the protocol writes it.
      version: one version's number; the newest one that is served, if neither this nor a label is given.
      label: the label of a version instead, e.g. `stable`.
      patience: how long to wait, how often to ask again.

    All errors between client and server are a `ServingError`.
    """

    # Whether numbers are sent as text, which makes them many times longer.
    numbers_are_text = False

    def __init__(
        self,
        server: str,
        model: str,
        version: int | None = None,
        label: str | None = None,
        patience: Patience | None = None,
    ):
        check(bool(server and model), "name a server and a model")
        check(version is None or label is None, f"version {version} and label {label!r}: give one of them")
        check(version is None or version >= 0, f"version {version}: versions are whole numbers from 0")
        self.server, self.model, self.version, self.label = server, model, version, label
        self.patience = patience or Patience()
        self._known: ModelMetadata | None = None
        self._unknowable = False

    def predict(self, signature: str, /, **arrays: Any) -> dict[str, np.ndarray]:
        """Runs one signature; gives all outputs by name, strings as object arrays of bytes.

        The inputs have the batch first. Lists of numbers get the signature's dtype; strings are bytes, in lists or
        object arrays. Inputs that don't fit are a BadRequest, found before they are sent.
        """
        return self.predict_in(self.new_job(), signature, arrays)

    def predict_in(
        self, job: Job, signature: str, inputs: Mapping[str, Any], outputs: Collection[str] = ()
    ) -> dict[str, np.ndarray]:
        """`predict` as a part of a job, for the outputs that are named (all, if none is)."""
        arrays = self._checked(job, signature, inputs)
        what = self._what(signature)
        return job.until_ready(what, lambda seconds: self._predict(job, signature, arrays, outputs, seconds))

    def metadata(self) -> ModelMetadata:
        """The model's version and signatures, asked now."""
        return self._metadata_in(self.new_job())

    def signatures(self) -> dict[str, SignatureSpec]:
        """The signatures by name, asked once; another version may have others, `metadata` asks again."""
        return (self._known or self.metadata()).signatures

    def model_status(self) -> list[VersionStatus]:
        """All versions that the server knows, newest first."""
        job = self.new_job()
        statuses = job.until_ready(self._what(), lambda seconds: self._status(job, seconds))
        return sorted(statuses, key=lambda status: -status.version)

    def new_job(self) -> Job:
        """A job for `predict_in`; its time runs from now."""
        return Job(self.patience)

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the connections."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @abc.abstractmethod
    def _predict(
        self, job: Job, signature: str, arrays: dict[str, np.ndarray], outputs: Collection[str], seconds: float
    ) -> dict[str, np.ndarray]:
        """Asks once."""

    @abc.abstractmethod
    def _metadata(self, job: Job, seconds: float) -> ModelMetadata:
        """Asks once."""

    @abc.abstractmethod
    def _status(self, job: Job, seconds: float) -> list[VersionStatus]:
        """Asks once."""

    def _what(self, signature: str | None = None) -> str:
        """The beginning of every message."""
        chosen = f" version {self.version}" if self.version is not None else ""
        chosen = f" label {self.label!r}" if self.label is not None else chosen
        return f"{self.server}, model {self.model!r}{chosen}" + (f", signature {signature!r}" if signature else "")

    def _metadata_in(self, job: Job) -> ModelMetadata:
        self._known = found = job.until_ready(self._what(), lambda seconds: self._metadata(job, seconds))
        return found

    def _checked(self, job: Job, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The inputs as arrays that fit the signature, as far as the server describes it."""
        known, may_be_old = self._known, self._known is not None
        if known is None and not self._unknowable:
            try:
                known = self._metadata_in(job)
            except NotSupported:
                self._unknowable = True
        while True:
            try:
                return _fitting(known, signature, inputs)
            except ValueError as error:
                if not may_be_old:
                    raise BadRequest(f"{self._what(signature)}: {in_one_line(str(error))}") from None
            # Since it was asked the server may have loaded a version with other signatures.
            known, may_be_old = self._metadata_in(job), False


def _fitting(known: ModelMetadata | None, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if known is None:
        return as_arrays(inputs, None)
    if signature not in known.signatures:
        hint = f"did you mean {nearest(signature, known.signatures)!r}?" if known.signatures else "it has none"
        raise ValueError(f"version {known.version} has no such signature; {hint}")
    spec = known.signatures[signature]
    arrays = as_arrays(inputs, spec)
    check_inputs(arrays, spec)
    return arrays


def is_this_machine(server: str) -> bool:
    """Whether `HOST:PORT` is on this machine, so that no proxy must be used."""
    host = server.rpartition("@")[2].rpartition(":")[0].strip("[]") or server
    return host in ("localhost", "::1") or host.startswith("127.")


def json_of(array: np.ndarray, as_base64: bool = True) -> Any:
    """The nested lists of an array; bytes as `{"b64": ...}`, which inputs need, or as UTF-8 for text outputs."""
    if array.dtype != object:
        return array.tolist()
    encoded = np.empty(array.shape, object)
    for place, value in np.ndenumerate(array):
        encoded[place] = (
            {BASE64: base64.b64encode(value).decode("ascii")} if as_base64 else value.decode("utf-8", "replace")
        )
    return encoded.tolist()


def array_of_json(value: Any, dtype: str) -> np.ndarray:
    """The array of nested lists of numbers, or of strings and `{"b64": ...}`; ValueError for anything else."""
    uneven = "lists of different lengths, or nested too deep"
    try:
        # Objects: a type of NumPy's own would take the size of the largest for every item.
        array = np.array(value, object)
    except ValueError:
        raise ValueError(uneven) from None
    items = array.ravel().tolist()
    if array.ndim > _DEEPEST or any(isinstance(item, list) for item in items):
        raise ValueError(uneven)
    if dtype == STRING:
        return _decoded_strings(array)
    wanted = np.dtype(dtype)
    for item in items:
        if type(item) not in _NUMBERS.get(wanted.kind, (int,)):
            raise ValueError(f"a {type(item).__name__} where {dtype} is wanted")
    try:
        return np.array(items, wanted).reshape(array.shape)
    except OverflowError:
        raise ValueError(f"a number that {dtype} can't hold") from None


def _decoded_strings(array: np.ndarray) -> np.ndarray:
    decoded = np.empty(array.shape, object)
    for place, item in np.ndenumerate(array):
        if isinstance(item, str):
            decoded[place] = item.encode("utf-8", errors="surrogatepass")
        elif isinstance(item, dict) and list(item) == [BASE64] and isinstance(item[BASE64], str):
            try:
                decoded[place] = base64.b64decode(item[BASE64], validate=True)
            except ValueError as error:
                raise ValueError(f"no base64 ({error})") from None
        else:
            raise ValueError(f'a {type(item).__name__} where a string or {{"{BASE64}": "..."}} is wanted')
    return decoded


# The kind of error and the fix for each HTTP status with a meaning of its own.
_ERRORS = {
    400: (BadRequest, "correct the inputs"),
    404: (ModelNotFound, "look at the server's models and versions"),
    413: (TooLarge, "send fewer rows at once"),
    429: (TooLarge, "send fewer rows at once"),
    501: (NotSupported, "is it a TensorFlow Serving of this model?"),
    503: (ServerNotReady, "wait until it has loaded the model"),
    504: (DeadlineExceeded, "send fewer rows at once or allow more time"),
}


class RestClient(ModelClient):
    """See `ModelClient`; `server` is `HOST:PORT`, of TensorFlow Serving's `--rest_api_port` (8501), or a URL.

    HTTP can't cancel a request: one that is given up ends by itself.
    """

    numbers_are_text = True

    def __init__(self, server: str, model: str, **choices: Any):
        super().__init__(server, model, **choices)
        version, label = self.version, self.label
        base = server.rstrip("/") if "://" in server else f"http://{server}"
        chosen = "" if version is None else f"/versions/{version}"
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
                raise ServerFailed(f"{self._what(signature)}: no answer of this signature ({error!r})") from None
        return {name: array for name, array in found.items() if not outputs or name in outputs}

    def _metadata(self, job: Job, seconds: float) -> ModelMetadata:
        answer = self._ask("GET", "/metadata", seconds)
        try:
            specs = signature_specs(answer["metadata"]["signature_def"]["signature_def"])
            return ModelMetadata(self.model, int(answer["model_spec"]["version"]), specs)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ServerFailed(f"{self._what()}: no metadata of a model ({in_one_line(repr(error))})") from None

    def _status(self, job: Job, seconds: float) -> list[VersionStatus]:
        answer = self._ask("GET", "", seconds)
        try:
            return version_statuses(answer)
        except (KeyError, TypeError, ValueError) as error:
            raise ServerFailed(f"{self._what()}: no status of a model ({error!r})") from None

    def _ask(self, method: str, path: str, seconds: float, signature: str | None = None, body: str | None = None):
        """The JSON object of an answer."""
        what = self._what(signature)
        end = time.monotonic() + seconds
        try:
            with self._session.request(
                method, self._url + path, data=body, timeout=seconds, stream=True, allow_redirects=False
            ) as response:
                content = bytearray()
                # Piece by piece: the session's own timeout is for each wait, not for the whole.
                while piece := response.raw.read1(_PIECE, decode_content=True):
                    content += piece
                    if time.monotonic() > end:
                        raise requests.Timeout()
        except (requests.Timeout, urllib3.exceptions.TimeoutError):
            message = f"{what}: no answer within {seconds:.3g} s; send fewer rows at once or allow more time"
            raise DeadlineExceeded(message) from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if _comes_of(error, ConnectionRefusedError):
                message = f"{what}: nobody answers there; is it running, and is this its REST port?"
                raise ServerNotReady(message) from None
            # A request changes nothing, so that it may be sent again; gRPC calls this UNAVAILABLE too.
            if _comes_of(error, ConnectionResetError, BrokenPipeError, urllib3.exceptions.IncompleteRead):
                message = f"{what}: the connection broke before there was an answer; has the server ended? See its log"
                raise ServerNotReady(message) from None
            raise ServerFailed(f"{what}: {in_one_line(str(error))}; is this its REST port?") from None
        return _object_of(what, response.status_code, bytes(content))


def _object_of(what: str, code: int, content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if code == requests.codes.ok and isinstance(answer, dict):
        return answer
    reason = answer.get("error") if isinstance(answer, dict) else None
    kind, advice = _ERRORS.get(code, (ServerFailed, "look at the server's log"))
    if reason is None and code not in (413, 503):  # some other web server
        kind, advice = ServerFailed, "is this its REST port?"
    raise kind(f"{what}: {in_one_line(str(reason or content[:200]))} [HTTP {code}]; {advice}")


def _outputs(outputs: Any, spec: SignatureSpec) -> dict[str, np.ndarray]:
    """The arrays of an answer, in which the value of a single output stands without its name."""
    if len(spec.outputs) == 1:
        outputs = {next(iter(spec.outputs)): outputs}
    arrays = {}
    for name, (dtype, shape) in spec.outputs.items():
        array = array_of_json(outputs[name], dtype)
        # Lists of no rows lack the rest of the shape.
        arrays[name] = array.reshape([0, *(size or 0 for size in shape[1:])]) if shape and not array.size else array
    return arrays


def _comes_of(error: BaseException | None, *kinds: type[BaseException]) -> bool:
    """Whether an error of such a kind is behind it; the libraries wrap them several times."""
    while error is not None:
        if isinstance(error, kinds):
            return True
        inner = [argument for argument in error.args if isinstance(argument, BaseException)]
        error = getattr(error, "reason", None) or error.__cause__ or error.__context__ or next(iter(inner), None)
    return False
