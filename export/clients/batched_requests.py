"""A long list of rows through a model server: several batches in flight, results in order."""

import collections
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from export.clients.model_client import ModelClient
from export.clients.serving_errors import Cancelled

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
    `batches` may be a generator. If one fails, or the caller stops, the rest is cancelled.

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
    job = client.new_job()
    failures: list[BaseException] = []
    waiting: collections.deque = collections.deque()
    done = 0

    def ask(batch: Batch) -> tuple[int, dict[str, np.ndarray]]:
        try:
            return len(next(iter(batch.values()))), client.predict_in(job, signature, batch, outputs)
        except BaseException as error:
            failures.append(error)
            job.cancel()
            raise

    def next_result() -> dict[str, np.ndarray]:
        nonlocal done
        try:
            rows, result = waiting.popleft().result()
        except Cancelled:
            # An earlier batch that was given up because a later one failed.
            raise failures[0] from None
        done += rows
        if progress:
            progress(done)
        return result

    pool = ThreadPoolExecutor(in_flight, thread_name_prefix="prediction")
    try:
        for batch in batches:
            waiting.append(pool.submit(ask, batch))
            if len(waiting) >= 2 * in_flight:
                yield next_result()
        while waiting:
            yield next_result()
    finally:
        job.cancel()
        pool.shutdown(wait=True, cancel_futures=True)
