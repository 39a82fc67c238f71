"""How long a client waits and how often it asks again: only a server that is not ready is asked again."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from nvae_tf.serving.clients.serving_errors import Cancelled, DeadlineExceeded, ServerNotReady

Result = TypeVar("Result")


@dataclass(frozen=True)
class Patience:
    """How long to wait, in seconds.

    Attributes:
      request: for one answer.
      total: for one call of the client with all its requests, tries and waits, be it a single prediction or a
        job of many batches.
      tries: how often a request is sent while the server is not ready.
      first_wait: before the second try at most; each next one is `growth` times as long, up to `longest_wait`.
        The wait itself is drawn between half of that and all of it, so that many clients don't come back at once.
      growth: see there.
      longest_wait: see there.
    """

    request: float = 60.0
    total: float = 3600.0
    tries: int = 6
    first_wait: float = 0.2
    growth: float = 2.0
    longest_wait: float = 5.0

    def __post_init__(self):
        if min(self.request, self.total, self.first_wait, self.longest_wait) <= 0:
            raise ValueError(f"{self}: seconds must be above 0")
        if self.tries < 1 or self.growth < 1:
            raise ValueError(f"{self}: tries and growth must be 1 or more")

    def wait_after(self, tries: int) -> float:
        """Seconds to wait after so many tries, drawn at random."""
        # The power is bounded first: a float has no 2.0**2000.
        longest = min(self.longest_wait, self.first_wait * self.growth ** min(tries - 1, 64))
        return random.uniform(longest / 2, longest)


class Job:
    """One call of a client: when it must be over, and whether it was given up.

    Its methods may be called from several threads.
    """

    def __init__(self, patience: Patience):
        self.patience = patience
        self._end = time.monotonic() + patience.total
        self._given_up = threading.Event()
        self._lock = threading.Lock()
        self._running: set[Callable[[], object]] = set()

    def cancel(self) -> None:
        """Gives it up: waits end, requests in flight are canceled where the protocol can."""
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
        """How long the next request may take.

        Raises:
          Cancelled, DeadlineExceeded: it is not to be sent at all; `what` begins their message.
        """
        if self._given_up.is_set():
            raise Cancelled(f"{what}: given up, as another request of the same job failed")
        left = self._end - time.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"{what}: the {self.patience.total:g} s for the whole call are over; allow more")
        return min(left, self.patience.request)

    def until_ready(self, what: str, ask: Callable[[float], Result]) -> Result:
        """Calls `ask(seconds)`, again and again while it raises `ServerNotReady`.

        Raises:
          ServingError: what `ask` raises, or the time is over.
        """
        began, tries = time.monotonic(), 0
        while True:
            try:
                return ask(self.seconds_for_a_request(what))
            except ServerNotReady as error:
                tries += 1
                wait = self.patience.wait_after(tries)
                if tries == self.patience.tries or time.monotonic() + wait >= self._end:
                    told = f" (tried {tries} times in {time.monotonic() - began:.1f} s)" if tries > 1 else ""
                    raise ServerNotReady(f"{error}{told}") from error
            self._given_up.wait(wait)
