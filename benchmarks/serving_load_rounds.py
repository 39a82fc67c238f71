"""The rounds of `benchmarks.serving_load`: clients that ask, wait for the answer, and ask again."""

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import grpc
import numpy as np

from benchmarks.serving_load_requests import Ask, Requests

_SOAK_CLIENTS = 8


class Round(NamedTuple):
    """What so many clients got of one signature."""

    clients: int
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


class Soak(NamedTuple):
    """A long run with malformed requests.

    Attributes:
      requests: how many were sent, malformed ones among them.
      errors: of those that make sense.
      malformed: how many did not.
      refused: how many of these were refused as INVALID_ARGUMENT.
      memory_bytes: of the server, after each tenth.
    """

    requests: int
    errors: int
    malformed: int
    refused: int
    memory_bytes: list[int]


def run_round(ask: Ask, clients: int, seconds: float) -> Round:
    """Each of the clients asks again and again for so many seconds, after a first request that is not counted."""
    ask()
    end = time.perf_counter() + seconds
    times: list[float] = []
    errors = itertools.count()

    def client() -> None:
        while (start := time.perf_counter()) < end:
            try:
                ask()
                times.append(time.perf_counter() - start)
            except grpc.RpcError:
                next(errors)

    started = time.perf_counter()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # The last requests end after the round's end.
    elapsed = time.perf_counter() - started
    median, late = np.percentile(times or [np.nan], [50, 99]) * 1000.0
    return Round(clients, len(times) / elapsed, float(median), float(late), next(errors))


def soak(
    made: Requests, signatures: Sequence[str], kinds: Sequence[str], requests: int, memory_bytes: Callable[[], int]
) -> Soak:
    """Sends many requests of all signatures, one in ten malformed, from several clients, and reads the memory."""
    sound = [made.one_row(signature) for signature in signatures]
    wrong = [made.malformed(kind) for kind in kinds]
    # Ten in turn: nine of the sound ones and a malformed one.
    turns = [
        wrong[number // 10 % len(wrong)] if number % 10 == 9 else sound[number % len(sound)] for number in range(50)
    ]
    is_wrong = [number % 10 == 9 for number in range(50)]

    def code_of(number: int) -> grpc.StatusCode:
        try:
            turns[number % 50]()
            return grpc.StatusCode.OK
        except grpc.RpcError as error:
            return error.code()

    errors = malformed = refused = 0
    memory, tenth = [], requests // 10
    with ThreadPoolExecutor(_SOAK_CLIENTS) as pool:
        for number, code in enumerate(pool.map(code_of, range(requests))):
            if is_wrong[number % 50]:
                malformed += 1
                refused += code == grpc.StatusCode.INVALID_ARGUMENT
            else:
                errors += code != grpc.StatusCode.OK
            if number % tenth == tenth - 1:
                memory.append(memory_bytes())
    return Soak(requests, errors, malformed, refused, memory)
