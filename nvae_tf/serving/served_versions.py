"""The versions of one model on the server for trials: which are on disk, which are loaded, which one a request gets.

The folder is polled, as TensorFlow Serving does: new versions are loaded, and only then older ones dropped, so that
there is always one that answers; versions whose folder is gone are dropped.
"""

import contextlib
import pathlib
import sys
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import error_codes_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

from nvae_tf.serving.client import SignatureSpec, check_inputs, in_one_line, signature_specs
from nvae_tf.serving.grpc_client import SIGNATURE_DEF, message_as_json

DEFAULT_SIGNATURE = "serving_default"
# Of a request: a message of a few bytes may claim millions of them.
LARGEST_ROWS = 1024
# Longer messages would not fit into the headers of an answer.
_LONGEST_MESSAGE = 1000
# How long requests may take that still use a version which is being dropped.
_SECONDS_TO_DRAIN = 30.0
_CODES_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}

State = get_model_status_pb2.ModelVersionStatus.State
Arrays = dict[str, np.ndarray]
# `run(signature, arrays, outputs)`.
Run = Callable[[str, Mapping[str, np.ndarray], tuple[str, ...]], Arrays]


class RequestError(Exception):
    """A request that is answered with an error: one of gRPC's codes, and a message for the client's user."""

    def __init__(self, code: grpc.StatusCode, message: str):
        super().__init__(message[:_LONGEST_MESSAGE])
        self.code = code


def invalid(message: str) -> RequestError:
    """An error of the inputs."""
    return RequestError(grpc.StatusCode.INVALID_ARGUMENT, message)


def request_error(error: Exception) -> RequestError:
    """The answer to an error of any kind; TensorFlow's have the same codes as gRPC."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, MemoryError):
        return RequestError(grpc.StatusCode.RESOURCE_EXHAUSTED, "out of memory")
    code = _CODES_BY_NUMBER.get(getattr(error, "error_code", None), grpc.StatusCode.INTERNAL)
    message = getattr(error, "message", None)
    return RequestError(code, _reason(message) if message else f"{type(error).__name__}: {error}")


def _reason(message: str) -> str:
    """TensorFlow's reason, without the heading and the lines of Python that a session's error begins with."""
    lines = [line for line in message.splitlines() if line.strip()]
    first = 1 if lines[0].startswith("Graph execution error") else 0
    nodes = [number for number, line in enumerate(lines) if line.startswith("Node: ")]
    return "\n".join(lines[max([first, *(number + 1 for number in nodes)]) :] or lines)


class Batching(NamedTuple):
    """How requests are put together."""

    max_batch_size: int = 32  # the most rows that run together; a request with more runs alone
    timeout: float = 0.005  # the most seconds that the first request waits for others


class _Request(NamedTuple):
    arrays: Arrays
    rows: int
    result: Future


@dataclass
class _Batch:
    requests: list[_Request] = field(default_factory=list)
    rows: int = 0
    full: threading.Event = field(default_factory=threading.Event)


class Batcher:
    """Runs rows of concurrent requests together, as TensorFlow Serving's batching does.

    The first request of a batch waits a moment for others of the same signature, runs all their rows at once in its
    own thread, and hands each its rows. So there are no threads and no queue besides those of the requests.
    """

    def __init__(self, run: Run, batching: Batching):
        self._run, self._batching = run, batching
        self._lock = threading.Lock()
        self._open: dict[Hashable, _Batch] = {}

    def run(self, signature: str, arrays: Arrays, outputs: tuple[str, ...]) -> Arrays:
        """Runs one request, whose arrays have the same number of rows; raises what running these alone raises."""
        rows = len(next(iter(arrays.values())))
        if not 0 < rows < self._batching.max_batch_size:
            return self._run(signature, arrays, outputs)
        request = _Request(arrays, rows, Future())
        shapes = tuple((name, array.shape[1:]) for name, array in sorted(arrays.items()))
        key = (signature, outputs, shapes)
        batch, leads = self._joined(key, request)
        if leads:
            batch.full.wait(self._batching.timeout)
            with self._lock:
                self._close(key, batch)
            self._run_batch(signature, batch.requests, outputs)
        return request.result.result()

    def _joined(self, key: Hashable, request: _Request) -> tuple[_Batch, bool]:
        """The batch that the request is in now, and whether it is its first."""
        with self._lock:
            batch = self._open.get(key)
            if batch is not None and batch.rows + request.rows > self._batching.max_batch_size:
                self._close(key, batch)
                batch = None
            leads = batch is None
            if leads:
                batch = self._open[key] = _Batch()
            batch.requests.append(request)
            batch.rows += request.rows
            if batch.rows == self._batching.max_batch_size:
                self._close(key, batch)
            return batch, leads

    def _close(self, key: Hashable, batch: _Batch) -> None:
        """Lets no request join any more; needs the lock."""
        if self._open.get(key) is batch:
            del self._open[key]
        batch.full.set()

    def _run_batch(self, signature: str, requests: list[_Request], outputs: tuple[str, ...]) -> None:
        def answer(together: list[_Request]) -> None:
            merged = {name: np.concatenate([r.arrays[name] for r in together]) for name in together[0].arrays}
            results = self._run(signature, merged, outputs)
            ends = np.cumsum([request.rows for request in together])
            if any(len(array) != ends[-1] for array in results.values()):
                raise ValueError("an output has other rows than the inputs, so it can't be split")
            for request, end in zip(together, ends, strict=True):
                request.result.set_result({name: a[end - request.rows : end] for name, a in results.items()})

        try:
            answer(requests)
        except BaseException as error:
            if len(requests) == 1:
                requests[0].result.set_exception(error)
                return
            # One row makes the batch fail, and it is unknown which: each request is run by itself.
            for request in requests:
                self._run_batch(signature, [request], outputs)


class LoadedVersion:
    """A version in memory, in a session of TensorFlow, as TensorFlow Serving loads it; runs from many threads at once.

    Without `batching` each request runs alone. `users` are the requests that it must not be closed under.

    Raises:
      Exception: TensorFlow and protobuf raise many kinds for a damaged or foreign folder.
    """

    def __init__(self, folder: pathlib.Path, batching: Batching | None = None):
        self.number, self.users = int(folder.name), 0
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        logger = tf.get_logger()
        level = logger.level
        # It would warn that this loader, which is TensorFlow Serving's, is an old one.
        logger.setLevel("ERROR")
        try:
            loaded = tf.compat.v1.saved_model.loader.load(self._session, [tf.saved_model.SERVING], str(folder))
        except BaseException:
            self.close()
            raise
        finally:
            logger.setLevel(level)
        self.definitions = get_model_metadata_pb2.SignatureDefMap(signature_def=dict(loaded.signature_def))
        self.specs = signature_specs(message_as_json(self.definitions)[SIGNATURE_DEF])
        self._batcher = Batcher(self._run, batching) if batching else None

    def close(self) -> None:
        """Frees the memory."""
        self._session.close()

    def run(self, signature: str, arrays: Mapping[str, np.ndarray], outputs: Collection[str] = ()) -> Arrays:
        """Runs a signature (empty for `serving_default`), for the outputs that are named (all, if none is).

        Raises:
          RequestError: there is no such signature, or the inputs don't fit it.
          tf.errors.OpError: the graph refuses the values.
        """
        signature = signature or DEFAULT_SIGNATURE
        spec = self.spec(signature)
        try:
            check_inputs(arrays, spec)
        except ValueError as error:
            raise invalid(str(error)) from None
        for name in outputs:
            if name not in spec.outputs:
                raise invalid(f"output tensor alias not found in signature: {name}")
        rows = max((len(array) for array in arrays.values() if array.ndim), default=0)
        if rows > LARGEST_ROWS:
            raise invalid(f"{rows:,} rows in a request; at most {LARGEST_ROWS:,} are taken")
        wanted = tuple(sorted(set(outputs) or spec.outputs))
        shapes = [found.shape for side in spec for found in side.values()]
        is_batch_first = bool(spec.inputs) and all(shape and shape[0] is None for shape in shapes)
        run = self._batcher.run if self._batcher and is_batch_first else self._run
        return run(signature, dict(arrays), wanted)

    def spec(self, signature: str) -> SignatureSpec:
        """The inputs and outputs of a signature; raises RequestError if there is none."""
        if signature not in self.specs:
            message = f'Serving signature key "{signature}" not found; the model has {", ".join(self.specs)}'
            raise RequestError(grpc.StatusCode.FAILED_PRECONDITION, message)
        return self.specs[signature]

    def _run(self, signature: str, arrays: Mapping[str, np.ndarray], outputs: tuple[str, ...]) -> Arrays:
        definition = self.definitions.signature_def[signature]
        feed = {definition.inputs[name].name: array for name, array in arrays.items()}
        return self._session.run({name: definition.outputs[name].name for name in outputs}, feed)


class ServedVersions:
    """The versions of one model; a context manager, within which they are loaded and dropped.

    Args:
      name: the model's name for clients.
      path: the folder of numbered versions.
      labels: numbers of versions by their labels; these are served beside the newest.
      batching: how rows of several requests are run together, if they are.
      poll_seconds: the time between two looks at the folder.
    """

    def __init__(
        self,
        name: str,
        path: pathlib.Path,
        labels: Mapping[str, int] | None = None,
        batching: Batching | None = None,
        poll_seconds: float = 1.0,
    ):
        self.name, self.path, self.labels = name, path, dict(labels or {})
        self._batching, self._poll_seconds = batching, poll_seconds
        # Guards the following, and is notified when a request has done with a version.
        self._lock = threading.Condition()
        self._loaded: dict[int, LoadedVersion] = {}
        self._statuses: dict[int, get_model_status_pb2.ModelVersionStatus] = {}
        # The files of versions that can't be loaded; such a version is tried again once they change.
        self._failed: dict[int, tuple] = {}
        self._looked, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"versions of {name}", daemon=True)

    def __enter__(self) -> "ServedVersions":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._thread.join()
        for number in list(self._loaded):
            self._unload(number)

    def wait_until_looked(self, seconds: float) -> bool:
        """Waits until what was there at the start is loaded, or has failed; False if that takes longer."""
        return self._looked.wait(seconds)

    def serves(self) -> bool:
        """Whether any version is loaded."""
        with self._lock:
            return bool(self._loaded)

    def statuses(
        self, number: int | None = None, label: str = ""
    ) -> dict[int, get_model_status_pb2.ModelVersionStatus]:
        """The state of every version that was seen, newest first, or of one; raises RequestError if there is none."""
        number = self._number(number, label)
        with self._lock:
            found = {key: self._statuses[key] for key in sorted(self._statuses, reverse=True) if number in (None, key)}
        if not found:
            which = "any versions" if number is None else f"version {number}"
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Could not find {which} of model {self.name}")
        return found

    @contextlib.contextmanager
    def using(self, number: int | None = None, label: str = "") -> Iterator[LoadedVersion]:
        """The newest version, or a certain one, which stays loaded while the block runs.

        Raises:
          RequestError: there is none, or it is still being loaded.
        """
        number = self._number(number, label)
        with self._lock:
            version = self._find(number)
            version.users += 1
        try:
            yield version
        finally:
            with self._lock:
                version.users -= 1
                self._lock.notify_all()

    def _number(self, number: int | None, label: str) -> int | None:
        if not label:
            return number
        if label not in self.labels:
            raise invalid(f"Unrecognized servable version label: {label}")
        return self.labels[label]

    def _find(self, number: int | None) -> LoadedVersion:
        wanted = max(self._loaded, default=None) if number is None else number
        if wanted in self._loaded:
            return self._loaded[wanted]
        if number is None:
            which, is_loading = f"Latest({self.name})", not self._looked.is_set()
        else:
            which = f"Specific({self.name}, {number})"
            is_loading = number in self._statuses and self._statuses[number].state == State.LOADING
        if is_loading:
            raise RequestError(grpc.StatusCode.UNAVAILABLE, f"Servable is being loaded: {which}")
        raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {which}")

    def _watch(self) -> None:
        while not self._stopped.is_set():
            try:
                self._look()
            except Exception as error:  # a folder that can't be read just now must not end the server
                _log(f"{self.path}: can't be looked at ({error})")
            self._looked.set()
            self._stopped.wait(self._poll_seconds)

    def _look(self) -> None:
        """Loads what should be served, then drops what should not."""
        while not self._stopped.is_set():
            found = _versions_in(self.path)
            usable = sorted(number for number, files in found.items() if self._failed.get(number) != files)
            wanted = set(usable[-1:]) | (set(self.labels.values()) & set(usable))
            missing = wanted - set(self._loaded)
            if not missing:
                break
            for number in missing:
                self._set_state(number, State.LOADING)
            self._load(max(missing), found[max(missing)])
        else:
            return
        for number in set(self._loaded) - wanted:
            self._unload(number)

    def _load(self, number: int, files: tuple) -> None:
        try:
            version = LoadedVersion(self.path / str(number), self._batching)
        except Exception as error:  # TensorFlow and protobuf have many kinds for a damaged folder
            self._failed[number] = files
            reason = in_one_line(str(error))
            self._set_state(number, State.END, error_codes_pb2.UNKNOWN, reason)
            _log(f"{self.path / str(number)}: can't be loaded ({reason})")
            return
        self._failed.pop(number, None)
        with self._lock:
            self._loaded[number] = version
            self._set_state(number, State.AVAILABLE)
        _log(f"{self.name}: version {number} is served")

    def _unload(self, number: int) -> None:
        with self._lock:
            version = self._loaded.pop(number)
            self._set_state(number, State.UNLOADING)
            self._lock.wait_for(lambda: not version.users, _SECONDS_TO_DRAIN)
        version.close()
        self._set_state(number, State.END)
        _log(f"{self.name}: version {number} is no longer served")

    def _set_state(self, number: int, state: int, error_code: int = error_codes_pb2.OK, reason: str = "") -> None:
        status = get_model_status_pb2.ModelVersionStatus(version=number, state=state)
        status.status.error_code, status.status.error_message = error_code, reason
        with self._lock:
            self._statuses[number] = status


def _versions_in(path: pathlib.Path) -> dict[int, tuple]:
    """The versions in a folder, each with what changes of its files while it is being written."""
    found = {}
    for folder in path.iterdir() if path.is_dir() else ():
        name = folder.name
        if name.isascii() and name.isdecimal() and str(int(name)) == name and (folder / "saved_model.pb").is_file():
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            with contextlib.suppress(FileNotFoundError):  # one that is just being removed
                found[int(name)] = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return found


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
