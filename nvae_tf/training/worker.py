"""One worker process: where its output goes, how it is told to stop, and what is said of its end."""

import contextlib
import os
import pathlib
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

_LAST_LINES = 20
_LAST_BYTES = 2**16


class Worker:
    """A process with a session of its own, where a terminal's Ctrl-C does not reach it: it would get it twice.

    Attributes:
      index: its place among the workers.
      process: the process itself, leader of its group.
      is_killed: whether `kill` was called.
    """

    def __init__(
        self, index: int, command: Sequence[str], environment: Mapping[str, str], log: pathlib.Path | None = None
    ):
        """Starts the process. Its output is appended to the file `log`, or goes where this process's output goes."""
        self.index, self.is_killed = index, False
        self._log, self._log_start = log, 0
        streams = {}
        with contextlib.ExitStack() as files:
            if log is not None:
                log.parent.mkdir(parents=True, exist_ok=True)
                output = files.enter_context(open(log, "ab"))
                output.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}  {shlex.join(command)}\n".encode())
                output.flush()
                self._log_start = output.tell()
                streams = {"stdout": output, "stderr": subprocess.STDOUT}
            self.process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True, **streams
            )

    @property
    def exit_code(self) -> int:
        """As shells have it, once the process has ended: 128 and the signal's number where one has killed it."""
        code = self.process.returncode
        return code if code >= 0 else 128 - code

    def wait(self, then: "Callable[[Worker], None]") -> None:
        """Waits for the end, then calls `then`; in a thread of its own, so that the order of ends is known."""
        self.process.wait()
        then(self)

    def kill(self) -> None:
        """Kills it, with all that it has started."""
        self.is_killed = True
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> str:
        """How it ended, for people."""
        code = self.process.returncode
        if code >= 0:
            return f"worker {self.index} ended with exit code {code}"
        hint = " (by the system, if memory has run out)" if -code == signal.SIGKILL and not self.is_killed else ""
        return f"worker {self.index} was killed by {_name_of_signal(-code)}{hint}"

    def story(self) -> str:
        """How it ended, with the last lines of its output if they have not been seen."""
        if self._log is None:
            return f"{self.end()}."
        with contextlib.suppress(OSError):
            return "\n    ".join([f"{self.end()}; the end of {self._log}:", *self._last_lines()])
        return f"{self.end()}; its output was in {self._log}, which can't be read."

    def _last_lines(self) -> list[str]:
        with open(self._log, "rb") as file:
            file.seek(max(self._log_start, self._log.stat().st_size - _LAST_BYTES))
            return file.read().decode(errors="replace").splitlines()[-_LAST_LINES:]


def _name_of_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
