"""Whole commands as a user types them, each turn in a process anew: TensorFlow's start is part of the time."""

import os
import pathlib
import shutil
import subprocess
import sys

from benchmarks.interleaved import how_it_ended

# Of Linux; macOS counts bytes.
_UNIT = 1 if sys.platform == "darwin" else 1024


def run_python(module: str, *arguments: str) -> int:
    """Runs a module's command and waits for it.

    Returns:
      The peak memory in bytes: of the largest of its process and those that it started.

    Raises:
      SystemExit: it failed.
    """
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    # Of this child alone, while getrusage has the largest of all that there ever were.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"The command {module} {how_it_ended(process.returncode)}.")
    return usage.ru_maxrss * _UNIT


class Command:
    """A command that is run again and again.

    Attributes:
      module: its module.
      prepared: what `benchmarks.workloads.preparation` makes for it.
    """

    module = ""
    prepared = ""

    def __init__(self, preset: str, batch_size: None, folder: pathlib.Path):
        self._folder = folder
        self.peak_memory_bytes = 0
        run_python("benchmarks.workloads.preparation", self.prepared, preset, str(folder))

    def run(self) -> None:
        """Runs it once; what it has written is removed before the next time."""
        output = self._folder / "output"
        shutil.rmtree(output, ignore_errors=True)
        flags = (f"{flag}={value}" for flag, value in self.flags(output).items())
        self.peak_memory_bytes = max(self.peak_memory_bytes, run_python(self.module, *flags))

    def flags(self, output: pathlib.Path) -> dict[str, pathlib.Path]:
        """Its flags, with the folder that it shall write."""
        raise NotImplementedError(f"{type(self).__name__} must say with which flags its command is run")


class Export(Command):
    """A run's model into a SavedModel, with the comparison before it appears."""

    module = "export.export_saved_model"
    prepared = "run"

    def flags(self, output: pathlib.Path) -> dict[str, pathlib.Path]:
        """See `Command`."""
        return {"--workdir": self._folder / "run", "--output": output}


class Import(Command):
    """A published file, with Adamax' moments, into a run folder."""

    module = "export.import_torch_checkpoint"
    prepared = "published"

    def flags(self, output: pathlib.Path) -> dict[str, pathlib.Path]:
        """See `Command`."""
        return {"--checkpoint": self._folder / "published.pt", "--output": output}
