"""Runs rows of concurrent requests together, as TensorFlow Serving's batching does.

The first request of a batch waits a moment for others of the same signature, runs all their rows at once in its own
thread, and hands each its rows. So there are no threads and no queue besides those of the requests.
"""

import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

Arrays = dict[str, np.ndarray]
# `run(signature, arrays, outputs)`.
Run = Callable[[str, Mapping[str, np.ndarray], tuple[str, ...]], Arrays]


class Batching(NamedTuple):
    """How requests are put together.

    Attributes:
      max_batch_size: the most rows that run together; a request with more runs alone.
      timeout: the most seconds that the first request waits for others.
    """

    max_batch_size: int = 32
    timeout: float = 0.005


@dataclass
class _Request:
    arrays: Arrays
    rows: int
    done: threading.Event = field(default_factory=threading.Event)
    result: Arrays | None = None
    error: Exception | None = None


@dataclass
class _Batch:
    requests: list[_Request] = field(default_factory=list)
    rows: int = 0
    full: threading.Event = field(default_factory=threading.Event)


class Batcher:
    """Puts requests together.

    Args:
      run: runs the rows of one batch, from any thread.
      batching: how.

    Raises:
      ValueError: a setting is out of range.
    """

    def __init__(self, run: Run, batching: Batching):
        if batching.max_batch_size < 1 or batching.timeout < 0:
            raise ValueError(f"{batching}: max_batch_size must be 1 or more, the timeout 0 or more")
        self._run, self._batching = run, batching
        self._lock = threading.Lock()
        self._open: dict[Hashable, _Batch] = {}

    def run(self, signature: str, arrays: Arrays, outputs: tuple[str, ...]) -> Arrays:
        """Runs one request, together with others or alone.

        Args:
          signature: the signature's name.
          arrays: its inputs, all with the same number of rows.
          outputs: the outputs that are wanted.

        Raises:
          Exception: what running these rows alone raises; an error of others' rows is theirs.
        """
        request = _Request(arrays, len(next(iter(arrays.values()))))
        if not 0 < request.rows < self._batching.max_batch_size:
            return self._run(signature, arrays, outputs)
        shapes = tuple((name, array.shape[1:]) for name, array in sorted(arrays.items()))
        key = (signature, outputs, shapes)
        batch, leads = self._joined(key, request)
        if leads:
            batch.full.wait(self._batching.timeout)
            with self._lock:
                self._close(key, batch)
            self._run_batch(signature, batch.requests, outputs)
        request.done.wait()
        if request.error is not None:
            raise request.error
        return request.result

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
        """Lets nobody join any more; wants the lock."""
        if self._open.get(key) is batch:
            del self._open[key]
        batch.full.set()

    def _run_batch(self, signature: str, requests: list[_Request], outputs: tuple[str, ...]) -> None:
        try:
            self._run_together(signature, requests, outputs)
        except Exception as error:
            # One of them spoils it for all, and nobody knows which: each is run by itself.
            for request in requests:
                if len(requests) == 1:
                    request.error = error
                    continue
                try:
                    request.result = self._run(signature, request.arrays, outputs)
                except Exception as own:
                    request.error = own
        except BaseException:  # the process ends: nobody may wait for ever
            for request in requests:
                request.error = RuntimeError("the batch was given up")
            raise
        finally:
            for request in requests:
                request.done.set()

    def _run_together(self, signature: str, requests: list[_Request], outputs: tuple[str, ...]) -> None:
        names = requests[0].arrays
        merged = {name: np.concatenate([request.arrays[name] for request in requests]) for name in names}
        results = self._run(signature, merged, outputs)
        rows = sum(request.rows for request in requests)
        if any(len(array) != rows for array in results.values()):
            raise ValueError("an output has other rows than the inputs, so it can't be split")
        first = 0
        for request in requests:
            request.result = {name: array[first : first + request.rows] for name, array in results.items()}
            first += request.rows
