"""Worker processes of one command: started together, told to stop, ended together, started again after a crash."""

import contextlib
import dataclasses
import pathlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from nvae_tf.errors import INTERRUPTED_CODE, USER_ERROR_CODE
from nvae_tf.training.worker import Worker
from nvae_tf.training.worker_watchdog import Watchdog

TERMINATED_CODE = 128 + signal.SIGTERM
STOPPED_CODES = (INTERRUPTED_CODE, TERMINATED_CODE)
_NO_CRASH = (0, USER_ERROR_CODE, *STOPPED_CODES)
_CTRL_C_TO_KILL = 3
_PASSED_ON = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}


@dataclasses.dataclass(frozen=True)
class WorkerPlan:
    """What is started, and how it ends.

    Attributes:
      command: of every worker.
      environments: makes the environment of each worker, anew at every start because ports may be taken meanwhile.
      log_folder: gets the output of all workers but the first, whose output is this process's.
      grace_seconds: how long workers may take to stop once another has ended; then they are killed.
      restarts: how often all are started again after a crash.
      patience_seconds: how long the others are left alone once one has failed: those with the same mistake, or that
        notice its end, end by themselves meanwhile.
    """

    command: Sequence[str]
    environments: Callable[[], Sequence[Mapping[str, str]]]
    log_folder: pathlib.Path
    grace_seconds: float
    restarts: int = 0
    patience_seconds: float = 3.0


def run_workers(plan: WorkerPlan, tell: Callable[[str], None]) -> int:
    """Starts the workers, passes signals on to them and waits for their end.

    SIGINT and SIGTERM go to all workers as they are, SIGHUP (a terminal that is closed) as SIGTERM; the third SIGINT
    kills them. Where one ends otherwise than with exit code 0, the others are told to stop, for they would wait for
    it. It is a crash, after which all may be started again, unless the exit code is that of a user's mistake or of
    an interruption.

    Args:
      plan: what is started.
      tell: takes text for people.

    Returns:
      The exit code of the worker that was first to end otherwise than with 0, as shells have it: 128 and the number
      of the signal that killed it.

    Raises:
      OSError: a process or the folder of logs can't be made.
    """
    events: queue.SimpleQueue = queue.SimpleQueue()
    with _stop_signals(events), Watchdog(plan.grace_seconds) as watchdog:
        for attempt in range(plan.restarts + 1):
            if attempt:
                tell(f"restart {attempt} of {plan.restarts}: all workers start again, from the latest checkpoint.")
            group = _WorkerGroup(plan, watchdog, events, tell)
            exit_code = group.run()
            if exit_code in _NO_CRASH or group.was_told_to_stop:
                break
    return exit_code


@contextlib.contextmanager
def _stop_signals(events: queue.SimpleQueue) -> Iterator[None]:
    """Signals become events; `SimpleQueue.put` may be called in the middle of itself."""
    # nohup ignores SIGHUP, and so must we.
    numbers = [number for number in _PASSED_ON if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: events.put(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _WorkerGroup:
    """The workers of one start, until all have ended."""

    def __init__(self, plan: WorkerPlan, watchdog: Watchdog, events: queue.SimpleQueue, tell: Callable[[str], None]):
        self._plan, self._watchdog, self._events, self._tell = plan, watchdog, events, tell
        self._running: list[Worker] = []
        self._ended: list[Worker] = []
        self._first_failure: Worker | None = None
        self._is_failure_told = False
        self._are_asked_to_stop = False
        self._deadline: float | None = None
        self._interruptions: list[int] = []

    @property
    def was_told_to_stop(self) -> bool:
        """Whether a signal has come."""
        return bool(self._interruptions)

    def run(self) -> int:
        """Starts the workers and waits for them; returns the exit code of the first that failed, or 0."""
        try:
            self._start()
            while self._running:
                event = self._next_event()
                if event is None:
                    self._end_the_others()
                elif isinstance(event, Worker):
                    self._note_end(event)
                else:
                    self._pass_on(event)
        finally:
            # Something went wrong here.
            for worker in self._running:
                worker.kill()
                worker.process.wait()
                self._watchdog.forget(worker.process.pid)
        self._tell_failure()
        return 0 if self._first_failure is None else self._first_failure.exit_code

    def _start(self) -> None:
        for index, environment in enumerate(self._plan.environments()):
            log = self._plan.log_folder / f"worker-{index}.log" if index else None
            worker = Worker(index, self._plan.command, environment, log)
            self._running.append(worker)
            self._watchdog.watch(worker.process.pid)
        for worker in self._running:
            threading.Thread(target=worker.wait, args=(self._events.put,), daemon=True).start()

    def _next_event(self) -> Worker | int | None:
        """A worker that has ended, or the number of a signal, or None at the deadline."""
        try:
            if self._deadline is None:
                return self._events.get()
            return self._events.get(timeout=max(0.0, self._deadline - time.monotonic()))
        except queue.Empty:
            return None

    def _note_end(self, worker: Worker) -> None:
        self._running.remove(worker)
        self._ended.append(worker)
        self._watchdog.forget(worker.process.pid)
        if worker.exit_code and self._first_failure is None:
            self._first_failure = worker
            self._wait_for(self._plan.grace_seconds if self._are_asked_to_stop else self._plan.patience_seconds)

    def _wait_for(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds

    def _pass_on(self, number: int) -> None:
        self._interruptions.append(number)
        self._are_asked_to_stop = True
        must_die = self._interruptions.count(signal.SIGINT) >= _CTRL_C_TO_KILL
        for worker in self._running:
            worker.kill() if must_die else worker.process.send_signal(_PASSED_ON[number])
        if self._first_failure is not None:
            self._wait_for(self._plan.grace_seconds)

    def _end_the_others(self) -> None:
        """At the deadline: first they are asked to stop, then they are killed."""
        self._tell_failure()
        names = ", ".join(str(worker.index) for worker in self._running)
        if self._are_asked_to_stop:
            self._tell(f"not ended within {self._plan.grace_seconds:g} s and killed: worker {names}.")
            for worker in self._running:
                worker.kill()
            self._deadline = None
        else:
            self._tell(f"the others would wait for it and are told to stop: worker {names}.")
            for worker in self._running:
                worker.process.send_signal(signal.SIGTERM)
            self._are_asked_to_stop = True
            self._wait_for(self._plan.grace_seconds)

    def _tell_failure(self) -> None:
        """Once: which worker failed first, and how; at the end: the others that failed in another way."""
        first = self._first_failure
        if first is None:
            return
        if not self._is_failure_told and not (self.was_told_to_stop and first.exit_code in STOPPED_CODES):
            # All have told the same mistake; that of worker 0 has been seen.
            same = [worker for worker in self._ended if worker.index == 0 and worker.exit_code == first.exit_code]
            self._tell((same or [first])[0].story())
        self._is_failure_told = True
        if not self._running:
            known = {0, first.exit_code, *STOPPED_CODES}
            for worker in self._ended:
                if worker.exit_code not in known and not worker.is_killed:
                    self._tell(f"after that {worker.end()}.")
