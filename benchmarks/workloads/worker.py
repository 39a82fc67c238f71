"""The process of one workload in `benchmarks.all`: python -m benchmarks.workloads.worker WORKLOAD PRESET FOLDER.

A workload is a class that is made of (preset, batch size, folder for its files). Making it builds everything and does
the work for the first time, commands aside; `run()` does it again, and `peak_memory_bytes`, if it has that, is what to
tell instead of this process's.
"""

import importlib
import pathlib
import sys
import time

from benchmarks import interleaved
from benchmarks.workloads import WORKLOADS

# Quick work is timed several times at once.
SECONDS_AT_A_TIME = 0.5
MOST_AT_A_TIME = 20


class TimedWorkload:
    """A workload with what it took to get it going.

    Args:
      name: one of `WORKLOADS`.
      preset: one of its presets.
      folder: an empty folder.
    """

    def __init__(self, name: str, preset: str, folder: str):
        workload = WORKLOADS[name]
        module, _, kind = workload.place.partition(":")
        start = time.perf_counter()
        made_by = getattr(importlib.import_module(f"benchmarks.workloads.{module}"), kind)
        imported = time.perf_counter()
        self._work = made_by(preset, workload.batch_sizes[preset], pathlib.Path(folder))
        first = time.perf_counter() - imported
        self._told = {
            "import_seconds": None if workload.is_command else imported - start,
            "first_step_seconds": None if workload.is_command else getattr(self._work, "first_seconds", first),
        }
        self._times = 1 if workload.is_command else None

    def step(self) -> float:
        """Does the work once, or several times if it is quick, and returns the seconds of one time."""
        if self._times is None:
            once = self._seconds(1)
            self._times = min(max(round(SECONDS_AT_A_TIME / once), 1), MOST_AT_A_TIME)
            if self._times == 1:
                return once
        return self._seconds(self._times)

    def _seconds(self, times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            self._work.run()
        return (time.perf_counter() - start) / times

    def summary(self) -> dict:
        """What is no time of a turn."""
        peak = getattr(self._work, "peak_memory_bytes", None)
        return self._told | ({} if peak is None else {"peak_memory_bytes": peak})


def main(name: str, preset: str, folder: str) -> None:
    timed = TimedWorkload(name, preset, folder)
    interleaved.serve(timed.step, timed.summary)


if __name__ == "__main__":
    main(*sys.argv[1:])
