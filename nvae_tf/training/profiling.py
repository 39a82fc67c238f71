"""A profile of some training steps, which TensorBoard shows (with its plugin for profiles)."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import tensorflow as tf

from nvae_tf.errors import first_line


class StepProfiler:
    """Profiles the steps from one to another, counted from 1, once; without steps it does nothing. Never ends a run.

    A profile begins with its first step alone: a run that continues behind it has none, because the first steps of a
    process, which build graphs, are not what one wants to see. It ends after its last step, at a step outside (a run
    may go back to a checkpoint), or with the block. `report` takes a line when it is in `folder`, or why it can't be.
    """

    def __init__(self, steps: tuple[int, ...], folder: pathlib.Path, report: Callable[[str], None]):
        self._steps = range(steps[0], steps[1] + 1) if steps else range(0)
        self._folder, self._report = folder, report
        self._newest: int | None = None  # of the steps in the profile that is running

    def __enter__(self) -> "StepProfiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def note_steps(self, first: int, last: int) -> None:
        """Reports that a run from one step to another will have no profile, if that is so."""
        if self._steps and first <= last and not first <= self._steps[0] <= last:
            begin = self._steps[0]
            self._report(f"No profile: train.profile_steps begin with {begin}, this run makes steps {first} to {last}.")

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around the step of this number."""
        if number not in self._steps:
            self._stop()
        elif self._newest is None and number == self._steps[0]:
            with self._giving_up():
                tf.profiler.experimental.start(str(self._folder))
                self._newest = number
        if self._newest is None:
            yield
            return
        self._newest = number
        # The name and `_r` are what TensorBoard finds steps by.
        with tf.profiler.experimental.Trace("train", step_num=number, _r=1):
            yield
        if number == self._steps[-1]:
            self._stop()

    def _stop(self) -> None:
        if self._newest is None:
            return
        with self._giving_up():
            # A GPU may still be busy with the last step.
            tf.test.experimental.sync_devices()
            tf.profiler.experimental.stop()
            self._report(f"A profile of steps {self._steps[0]} to {self._newest} is in {self._folder}.")
        self._steps, self._newest = range(0), None

    @contextlib.contextmanager
    def _giving_up(self) -> Iterator[None]:
        try:
            yield
        # Whatever a profiler's driver raises: a run of days is worth more than its profile.
        except Exception as error:
            reason = first_line(error).rstrip(".")
            self._report(f"No profile of steps {self._steps[0]} to {self._steps[-1]}: {reason}. The run goes on.")
            self._steps, self._newest = range(0), None
