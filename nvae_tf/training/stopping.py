"""Ctrl-C, SIGTERM and a closed terminal (SIGHUP): a run ends at its next step, with a checkpoint."""

import contextlib
import signal
import threading
from types import FrameType

STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(Exception):
    """Raised by `StopRequest.check`, to leave an evaluation or the drawing of samples in the middle."""


class StopRequest:
    """Inside its `with` block the first signal only requests a stop; a second Ctrl-C ends the process at once.

    Attributes:
      signal_number: the signal that has come, or None.
    """

    def __init__(self):
        self.signal_number: int | None = None
        self._handlers_before: dict[int, object] = {}

    def check(self) -> None:
        """Raises StopRequested if a signal has come."""
        if self.signal_number is not None:
            raise StopRequested

    def __enter__(self) -> "StopRequest":
        # Python lets the main thread alone set handlers; a run in another thread is stopped by its owner.
        if threading.current_thread() is threading.main_thread():
            # `nohup` ignores the closing of the terminal.
            heeded = [number for number in STOPPING_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._handlers_before = {number: signal.signal(number, self._remember) for number in heeded}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers_before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number
        # The terminal may be gone: closing it sends SIGHUP.
        with contextlib.suppress(OSError):
            print("\nStopping soon, with a checkpoint ...", flush=True)
