"""The versions of one model: which are on disk, which are loaded, which one a request gets.

The folder is looked at again and again, as TensorFlow Serving does: new versions are loaded, and only then older
ones dropped, so that there is always one that answers; versions whose folder is gone are dropped.
"""

import contextlib
import pathlib
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import grpc

from nvae_tf.serving.clients.serving_errors import in_one_line
from nvae_tf.serving.clients.serving_messages import error_codes_pb2, get_model_status_pb2
from nvae_tf.serving.local_server.batching import Batching
from nvae_tf.serving.local_server.loaded_version import LoadedVersion
from nvae_tf.serving.local_server.request_errors import RequestError, invalid

State = get_model_status_pb2.ModelVersionStatus.State
# How long requests may take that still use a version which is being dropped.
_SECONDS_TO_DRAIN = 30.0


class Status(NamedTuple):
    """One version's state, one of TensorFlow Serving's, and the error of one that failed."""

    state: int
    error_code: int = error_codes_pb2.OK
    error_message: str = ""


class ServedVersions:
    """The versions of one model.

    Args:
      name: the model's name for clients.
      path: the folder of numbered versions.
      num_versions: how many of the newest versions are served; those with labels are served as well.
      labels: numbers of versions by their labels.
      batching: how rows of several requests are run together, if they are.
      poll_seconds: how often the folder is looked at.
    """

    def __init__(
        self,
        name: str,
        path: pathlib.Path,
        num_versions: int = 1,
        labels: Mapping[str, int] | None = None,
        batching: Batching | None = None,
        poll_seconds: float = 1.0,
    ):
        self.name, self.path, self.labels = name, path, dict(labels or {})
        self._num_versions, self._batching, self._poll_seconds = num_versions, batching, poll_seconds
        self._lock = threading.Lock()
        self._loaded: dict[int, LoadedVersion] = {}
        self._statuses: dict[int, Status] = {}
        # What the folders of versions that can't be loaded look like; they are tried again once that changes.
        self._failed: dict[int, tuple] = {}
        self._looked, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"versions of {name}", daemon=True)

    def start(self) -> None:
        """Begins to load what is there, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stops looking, and closes all versions."""
        self._stopped.set()
        self._thread.join()
        for number in list(self._loaded):
            self._unload(number)

    def wait_until_looked(self, seconds: float | None = None) -> bool:
        """Waits until what was there at the start is loaded, or has failed; False if that takes longer."""
        return self._looked.wait(seconds)

    def serves(self) -> bool:
        """Whether any version is loaded."""
        with self._lock:
            return bool(self._loaded)

    def statuses(self, number: int | None = None, label: str | None = None) -> dict[int, Status]:
        """The state of every version that was seen, or of one.

        Raises:
          RequestError: there is none.
        """
        number = self._number(number, label)
        with self._lock:
            found = {key: status for key, status in self._statuses.items() if number in (None, key)}
        if not found:
            which = "any versions" if number is None else f"version {number}"
            raise RequestError(grpc.StatusCode.NOT_FOUND, f"Could not find {which} of model {self.name}")
        return found

    @contextlib.contextmanager
    def using(self, number: int | None = None, label: str | None = None) -> Iterator[LoadedVersion]:
        """The newest version, or a certain one, which stays loaded while the block runs.

        Raises:
          RequestError: there is none, or it is still being loaded.
        """
        number = self._number(number, label)
        with contextlib.ExitStack() as stack:
            while True:
                version = self._find(number)
                if stack.enter_context(version.in_use()):
                    break
                stack.pop_all().close()  # dropped meanwhile: look again
            yield version

    def _number(self, number: int | None, label: str | None) -> int | None:
        if not label:
            return number
        if label not in self.labels:
            raise invalid(f"Unrecognized servable version label: {label}")
        return self.labels[label]

    def _find(self, number: int | None) -> LoadedVersion:
        with self._lock:
            wanted = max(self._loaded, default=None) if number is None else number
            if wanted in self._loaded:
                return self._loaded[wanted]
            loading = [key for key, status in self._statuses.items() if status.state == State.LOADING]
            first_look = not self._looked.is_set()
        which = f"Latest({self.name})" if number is None else f"Specific({self.name}, {number})"
        if first_look if number is None else number in loading:
            raise RequestError(grpc.StatusCode.UNAVAILABLE, f"Servable is being loaded: {which}")
        raise RequestError(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {which}")

    def _watch(self) -> None:
        while not self._stopped.is_set():
            try:
                self._look()
            except Exception as error:  # a folder that can't be read just now must not end the server
                _note(f"{self.path}: can't be looked at ({error})")
            self._looked.set()
            self._stopped.wait(self._poll_seconds)

    def _look(self) -> None:
        """Loads what should be served, then drops what should not."""
        while not self._stopped.is_set():
            found = _versions_in(self.path)
            usable = sorted(number for number, stamp in found.items() if self._failed.get(number) != stamp)
            wanted = set(usable[-self._num_versions :]) | (set(self.labels.values()) & set(usable))
            missing = wanted - set(self._loaded)
            if not missing:
                break
            for number in missing:
                self._set_status(number, Status(State.LOADING))
            self._load(max(missing), found[max(missing)])
        else:
            return
        for number in set(self._loaded) - wanted:
            self._unload(number)

    def _load(self, number: int, stamp: tuple) -> None:
        self._set_status(number, Status(State.LOADING))
        try:
            version = LoadedVersion(self.path / str(number), self._batching)
        except Exception as error:  # TensorFlow and protobuf have many kinds for a damaged folder
            self._failed[number] = stamp
            reason = in_one_line(str(error))
            self._set_status(number, Status(State.END, error_codes_pb2.UNKNOWN, reason))
            _note(f"{self.path / str(number)}: can't be loaded ({reason})")
            return
        self._failed.pop(number, None)
        with self._lock:
            self._loaded[number] = version
            self._statuses[number] = Status(State.AVAILABLE)
        _note(f"{self.name}: version {number} is served")

    def _unload(self, number: int) -> None:
        with self._lock:
            version = self._loaded.pop(number)
            self._statuses[number] = Status(State.UNLOADING)
        version.retire(_SECONDS_TO_DRAIN)
        self._set_status(number, Status(State.END))
        _note(f"{self.name}: version {number} is no longer served")

    def _set_status(self, number: int, status: Status) -> None:
        with self._lock:
            self._statuses[number] = status


def _versions_in(path: pathlib.Path) -> dict[int, tuple]:
    """The versions in a folder, and for each what would change if somebody went on writing it."""
    found = {}
    for folder in path.iterdir() if path.is_dir() else ():
        name = folder.name
        if name.isascii() and name.isdecimal() and str(int(name)) == name and (folder / "saved_model.pb").is_file():
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            with contextlib.suppress(FileNotFoundError):  # one that is just being removed
                found[int(name)] = tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return found


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
