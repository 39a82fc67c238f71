"""A long list of rows through a model server: several batches in flight, results in order."""

import collections
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from nvae_tf.serving.clients.model_client import ModelClient
from nvae_tf.serving.clients.serving_errors import Cancelled

Batch = Mapping[str, np.ndarray]
# Is called with the number of rows done so far.
Progress = Callable[[int], None]


def batches_of(arrays: Batch, rows: int) -> Iterator[dict[str, np.ndarray]]:
    """The arrays in parts of at most so many rows.

    Raises:
      ValueError: `rows` is below 1, or the arrays differ in their number of rows.
    """
    if rows < 1:
        raise ValueError(f"{rows} rows a batch: must be 1 or more")
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"arrays of different numbers of rows: {counts}")
    for first in range(0, next(iter(counts.values())), rows):
        yield {name: array[first : first + rows] for name, array in arrays.items()}


def predict_batches(
    client: ModelClient,
    signature: str,
    batches: Iterable[Batch],
    outputs: Collection[str] = (),
    in_flight: int = 4,
    progress: Progress | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The results of batches, in the order of the batches, while the next ones are on their way.

    At most `in_flight` requests run and as many results wait to be taken, however many batches there are:
    `batches` may be a generator. If one fails, or the caller stops, the rest is canceled.

    Args:
      client: whom to ask; its patience's `total` is for all batches together.
      signature: the signature's name.
      batches: the inputs of each request.
      outputs: which outputs are wanted; all, if none is named.
      in_flight: how many requests run at once.
      progress: is called after each batch.

    Yields:
      The outputs of one batch.

    Raises:
      ValueError: `in_flight` is below 1.
      ServingError: the first that a batch met.
    """
    if in_flight < 1:
        raise ValueError(f"{in_flight} requests in flight: must be 1 or more")
    requests = _Requests(client, signature, outputs, in_flight)
    done = 0
    try:
        for rows, result in requests.of(batches):
            done += rows
            if progress:
                progress(done)
            yield result
    finally:
        requests.give_up()


class _Requests:
    """The requests of one job, some of them in flight."""

    def __init__(self, client: ModelClient, signature: str, outputs: Collection[str], in_flight: int):
        self._client, self._signature, self._outputs, self._in_flight = client, signature, outputs, in_flight
        self._job = client.new_job()
        self._failures: list[BaseException] = []
        self._waiting: collections.deque = collections.deque()
        self._pool = ThreadPoolExecutor(in_flight, thread_name_prefix="prediction")

    def of(self, batches: Iterable[Batch]) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        """The number of rows and the result of each batch, in their order."""
        for batch in batches:
            self._waiting.append(self._pool.submit(self._ask, batch))
            if len(self._waiting) >= 2 * self._in_flight:
                yield self._next_result()
        while self._waiting:
            yield self._next_result()

    def give_up(self) -> None:
        """Cancels what is not done; nothing where all is."""
        self._job.cancel()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _ask(self, batch: Batch) -> tuple[int, dict[str, np.ndarray]]:
        try:
            result = self._client.predict_in(self._job, self._signature, batch, self._outputs)
            return len(next(iter(batch.values()))), result
        except BaseException as error:
            self._failures.append(error)
            self._job.cancel()
            raise

    def _next_result(self) -> tuple[int, dict[str, np.ndarray]]:
        try:
            return self._waiting.popleft().result()
        except Cancelled:
            # An earlier batch that was given up because a later one failed.
            raise self._failures[0] from None
