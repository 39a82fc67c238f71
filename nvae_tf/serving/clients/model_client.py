"""What clients of a model server have in common, whichever protocol they speak."""

import abc
import threading
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

from nvae_tf.serving.clients.request_patience import Job, Patience
from nvae_tf.serving.clients.serving_errors import BadRequest, NotSupported, in_one_line
from nvae_tf.serving.clients.signature_specs import ModelMetadata, SignatureSpec, as_arrays, check_inputs, nearest

AVAILABLE = "AVAILABLE"
Client = TypeVar("Client", bound="ModelClient")


class VersionStatus(NamedTuple):
    """One version on a server: its state (`LOADING`, `AVAILABLE`, ...), and the error of one that failed, or ''."""

    version: int
    state: str
    error: str


class ModelClient(abc.ABC):
    """A client of one model on one server; may be used from many threads at once, and as a context manager.

    Args:
      server: where it is, in the words of the protocol.
      model: the model's name there.
      version: one version's number; the newest one that is served, if neither this nor a label is given.
      label: the label of a version instead, e.g. `stable`.
      patience: how long to wait, how often to ask again.

    Raises:
      ValueError: an argument makes no sense.
    """

    # Whether numbers are sent as text, many times longer than they are.
    numbers_are_text = False

    def __init__(
        self,
        server: str,
        model: str,
        version: int | None = None,
        label: str | None = None,
        patience: Patience | None = None,
    ):
        if not server or not model:
            raise ValueError("name a server and a model")
        if version is not None and label is not None:
            raise ValueError(f"version {version} and label {label!r}: give one of them")
        if version is not None and version < 0:
            raise ValueError(f"version {version}: versions are whole numbers from 0")
        self.server, self.model, self.version, self.label = server, model, version, label
        self.patience = patience or Patience()
        self._lock = threading.Lock()
        self._known: ModelMetadata | None = None
        self._unknowable = False

    def predict(self, signature: str, /, **arrays: Any) -> dict[str, np.ndarray]:
        """Runs one signature.

        Args:
          signature: its name.
          **arrays: its inputs, the batch first. Lists of numbers are given the dtype that is wanted; strings are
            bytes, in lists or object arrays.

        Returns:
          All outputs by name; strings as object arrays of bytes.

        Raises:
          BadRequest: the inputs don't fit (told before they are sent), or the model refuses them.
          ServingError: see its subclasses.
        """
        return self.predict_in(self.new_job(), signature, arrays)

    def predict_in(
        self, job: Job, signature: str, inputs: Mapping[str, Any], outputs: Collection[str] = ()
    ) -> dict[str, np.ndarray]:
        """`predict` as a part of a job, for the outputs that are named (all, if none is)."""
        arrays = self._checked(job, signature, inputs)
        what = self._told(signature)
        return job.until_ready(what, lambda seconds: self._predict(job, signature, arrays, outputs, seconds))

    def metadata(self) -> ModelMetadata:
        """The model's version and signatures, asked now.

        Raises:
          ServingError: see its subclasses.
        """
        return self._metadata_in(self.new_job())

    def signatures(self) -> dict[str, SignatureSpec]:
        """The signatures by name, asked once; another version may have others, `metadata` asks again."""
        known = self._known
        return (known or self.metadata()).signatures

    def model_status(self) -> list[VersionStatus]:
        """All versions that the server knows, newest first.

        Raises:
          ServingError: see its subclasses.
        """
        job = self.new_job()
        statuses = job.until_ready(self._told(), lambda seconds: self._status(job, seconds))
        return sorted(statuses, key=lambda status: -status.version)

    def new_job(self) -> Job:
        """A job for `predict_in`: its time runs from now."""
        return Job(self.patience)

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the connections."""

    def __enter__(self: Client) -> Client:
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

    def _told(self, signature: str | None = None) -> str:
        """The beginning of every message."""
        chosen = f" version {self.version}" if self.version is not None else ""
        chosen = f" label {self.label!r}" if self.label is not None else chosen
        return f"{self.server}, model {self.model!r}{chosen}" + (f", signature {signature!r}" if signature else "")

    def _metadata_in(self, job: Job) -> ModelMetadata:
        found = job.until_ready(self._told(), lambda seconds: self._metadata(job, seconds))
        with self._lock:
            self._known = found
        return found

    def _checked(self, job: Job, signature: str, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The inputs as arrays that fit the signature, as far as the server tells about it."""
        known, asked_now = self._known, False
        if known is None and not self._unknowable:
            try:
                known, asked_now = self._metadata_in(job), True
            except NotSupported:
                self._unknowable = True
        try:
            return _fitting(known, signature, inputs)
        except ValueError as error:
            if known is None or asked_now:
                raise BadRequest(f"{self._told(signature)}: {in_one_line(str(error))}") from None
        # Since it was asked the server may have gone to a version with other signatures.
        try:
            return _fitting(self._metadata_in(job), signature, inputs)
        except ValueError as error:
            raise BadRequest(f"{self._told(signature)}: {in_one_line(str(error))}") from None


def is_this_machine(server: str) -> bool:
    """Whether `HOST:PORT` is on this machine, which no proxy leads to."""
    host = server.rpartition("@")[2].rpartition(":")[0].strip("[]") or server
    return host in ("localhost", "::1") or host.startswith("127.")


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
